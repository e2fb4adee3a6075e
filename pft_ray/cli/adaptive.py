"""What ``pft plan`` says of phases whose clip norm moves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any


def quantile_fields(phase: Any, plan_value: Any) -> dict[str, Any]:
    """Returns how a phase's C moves and what noise it has; nothing when it stays.

    ``gradient_noise_multiplier`` is sigma_g; with the sigma_b of the quantile,
    sigma_g^-2 + sigma_b^-2 is sigma^-2 of the plan's event.
    """
    if phase.quantile is None:
        return {}
    sigma = plan_value.noise_multiplier
    noise = phase.quantile.gradient_noise_multiplier(sigma)
    return {
        "clipping": phase.clipping,
        "quantile": asdict(phase.quantile),
        "gradient_noise_multiplier": noise,
    }


def quantile_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns a line for each phase whose C moves."""
    rows = []
    for phase in result.get("phases", []):
        quantile = phase.get("quantile")
        if quantile is None:
            continue
        noise = phase["gradient_noise_multiplier"]
        growth = noise / result["noise_multiplier"] - 1
        words = (
            f"C from {phase['clip_norm']:g} to the {quantile['target']:g} quantile of "
            f"norms; noise multipliers: gradients {noise:.6g} ({growth:+.1%}), "
            f"count {quantile['count_noise_multiplier']:.6g}"
        )
        rows.append((f"adaptive, {phase['name']}", words))
    return rows

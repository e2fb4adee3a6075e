"""What ``pft plan`` says of the blocks that a job would draw on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pft_ray.cli.filter_plan import share_row, share_words


def block_fields(built: Any, ledger: str | None) -> list[dict[str, Any]]:
    """Returns what the job asks of each block and what would be left of it."""
    from pft_ray.ledger import Ledger
    from pft_ray.ledger.home import keys_dir, ledger_location

    location = (
        ledger_location(ledger)
        if ledger is not None
        else ledger_location(built.job.ledger.url, built.base_dir)
    )
    rows = []
    known = {}
    if "://" in location or Path(location).exists():
        opened = Ledger.open(location, keys_dir=keys_dir(), create=False)
        known = {status.name: status for status in opened.blocks()}
    for envelope in built.envelopes:
        row: dict[str, Any] = {
            "name": envelope.block,
            "purpose": envelope.purpose,
            "run_epsilon": envelope.epsilon,
            "run_delta": envelope.delta,
            "fits": None,
        }
        if envelope.block in built.block_owners:
            row["owner"] = built.block_owners[envelope.block]
        status = known.get(envelope.block)
        if status is not None:
            left = status.remaining_epsilon
            row["epsilon_left_now"] = left
            row["epsilon_left_after"] = left - envelope.epsilon
            row["fits"] = (
                left >= envelope.epsilon and status.remaining_delta >= envelope.delta
            )
            if (
                not row["fits"]
                and envelope.purpose == "training"
                and "owner" not in row
            ):
                row["affordable"] = _affordable(built.plan, status)
        rows.append(row)
    return rows + [share_row(built, share, known) for share in built.shares]


def block_rows(block: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of one block of :func:`block_fields`."""
    if block.get("mode") == "filter":
        return share_words(block)
    asks = f"asks epsilon {block['run_epsilon']:g}; "
    name = f"block {block['name']}"
    if block["fits"] is None:
        return [(name, asks + "not created yet: pft budget create JOB")]
    left = block["epsilon_left_now"]
    if block["fits"]:
        after = block["epsilon_left_after"]
        return [(name, f"{asks}{left:g} left now, {after:g} after")]
    rows = [(name, f"{asks}{left:g} left: it does NOT fit")]
    smaller = {k: v for k, v in block.get("affordable", {}).items() if v is not None}
    for key, words in (
        ("noise_multiplier", "that epsilon, by noise multiplier {:g}"),
        ("num_steps", "{:d} planned steps"),
        ("batch_size", "batch size {:d}"),
    ):
        if key in smaller:
            rows.append(("  would fit", words.format(smaller[key])))
    return rows


def _affordable(plan_value: Any, status: Any) -> dict[str, Any]:
    """Which smaller run would fit what is left of the block."""
    from pft_ray.accounting.calibration import largest_affordable

    return largest_affordable(
        plan_value, epsilon=status.remaining_epsilon, delta=status.remaining_delta
    )

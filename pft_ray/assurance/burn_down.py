"""A block's burn-down: what was left of its budget after each run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pft_ray.accounting.filters import UNITS
from pft_ray.errors import InputError, MissingExtraError
from pft_ray.ledger.records import EMPTY_STATUSES

if TYPE_CHECKING:
    from pathlib import Path

    from pft_ray.ledger import BlockStatus, RunStatus

SUFFIXES = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class BurnStep:
    """One run on a block, in the block's measure: epsilon, or rho of a filter block.

    Attributes:
        run_id: The run.
        taken: What it holds or has used of the block.
        is_used: Whether it was charged; else its part can still be given back.
        left: What nobody held after it.
    """

    run_id: str
    taken: float
    is_used: bool
    left: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the step as JSON."""
        return asdict(self)


def measure_of(block: BlockStatus) -> tuple[str, float]:
    """Returns what a block's burn-down counts, and how much of it there is."""
    if block.filter is not None:
        return "rho", block.filter.rho
    return "epsilon", block.epsilon


def burn_down(block: BlockStatus, runs: list[RunStatus]) -> list[BurnStep]:
    """Returns a block's runs in order of reservation and what each left.

    Args:
        block: The block.
        runs: All runs of the ledger; those that hold nothing of the block are left
            out.
    """
    left, steps, counted = measure_of(block)[1], [], set()
    for run in runs:
        if run.status in EMPTY_STATUSES or block.name not in run.blocks:
            continue
        taken = _taken(block, run)
        # Runs that were declared together hold one envelope.
        left -= 0 if run.group and run.group in counted else taken
        counted.add(run.group)
        used = run.num_steps_charged > 0 or run.num_looks_charged > 0
        steps.append(BurnStep(run.run_id, taken, used, max(0.0, left)))
    return steps


def _taken(block: BlockStatus, run: RunStatus) -> float:
    """Returns what a run holds of a block; a filter run that is over, what it used."""
    if block.filter is None:
        return sum(e.epsilon for e in run.envelopes if e.block == block.name)
    charged = {"training": run.num_steps_charged, "evaluation": run.num_looks_charged}
    shares = [share for share in run.shares if share.block == block.name]
    if not run.is_final:
        return sum(share.rho for share in shares)
    units = 0
    for share in shares:
        count = min(charged[share.role], share.num_events)
        charged[share.role] -= count
        units += count * share.units_each
    return units / UNITS


def check_plot(path: Path) -> None:
    """Refuses a file name that no picture can have.

    Raises:
        InputError: Another ending than .svg, .png or .pdf.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"The plot is to go to {str(path)!r}.",
            f"Give a file that ends in {', '.join(SUFFIXES)}.",
        )


def write_plot(path: Path, block: BlockStatus, steps: list[BurnStep]) -> None:
    """Draws a burn-down: what was left after each run, used runs filled.

    Raises:
        InputError: The file cannot be written or has another ending than a picture.
        MissingExtraError: Matplotlib is not installed.
    """
    check_plot(path)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "A plot needs matplotlib.", "Install it: pip install 'pft-ray[train]'."
        ) from None
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    name, whole = measure_of(block)
    levels = [whole, *(step.left for step in steps)]
    axes.step(range(len(levels)), levels, where="post", color="#2b6cb0")
    for place, step in enumerate(steps, start=1):
        face = "#2b6cb0" if step.is_used else "white"
        axes.plot(place, step.left, "o", color="#2b6cb0", markerfacecolor=face)
    axes.set_ylim(0, whole * 1.05)
    axes.set_xlabel("runs, in order of reservation (filled: charged)")
    axes.set_ylabel(f"{name} left")
    axes.set_title(f"{block.name}: epsilon {block.epsilon:g}", loc="left")
    axes.locator_params(axis="x", integer=True)
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(
            f"The plot {path} cannot be written: {error.strerror}.",
            "Name a file in a folder that can be written.",
        ) from error

"""Result cards: figures beside their targets, as Markdown and as JSON."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: What it is.
        value: The number.
        unit: Its unit; empty for a plain ratio.
        at_least: Target from below, or None.
        at_most: Target from above, or None.
    """

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> str:
        """The target in words; empty when the figure is only shown."""
        parts = []
        if self.at_least is not None:
            parts.append(f">= {self.at_least:g}")
        if self.at_most is not None:
            parts.append(f"<= {self.at_most:g}")
        return " and ".join(parts)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None when there is none."""
        if not self.target:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)


@dataclass
class Card:
    """What one benchmark found.

    Attributes:
        name: Short name; the file is ``DATE-name``.
        title: Heading.
        script: The script of this folder that writes it.
        measured: Paragraphs that say what was measured and how.
        figures: The numbers.
        notes: Sentences about the result.
        details: Everything else, for the JSON file.
    """

    name: str
    title: str
    script: str
    measured: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    quick: bool = False
    load: str = field(default_factory=machine.load)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    def write(self, folder: Path) -> bool:
        """Writes both files, prints the figures; says whether all targets are met."""
        folder.mkdir(parents=True, exist_ok=True)
        base = folder / f"{self.date}-{self.name}"
        base.with_suffix(".md").write_text(self._markdown(), encoding="utf-8")
        content = json.dumps(self._document(), indent=2, allow_nan=False)
        base.with_suffix(".json").write_text(content + "\n", encoding="utf-8")
        print(f"\n{self.title}")
        for figure in self.figures:
            print(f"  {figure.name}: {_show(figure)} {_verdict(figure)}")
        print(f"  {base}.md", flush=True)
        return all(figure.met is not False for figure in self.figures)

    def _document(self) -> dict[str, Any]:
        rows = [asdict(f) | {"target": f.target, "met": f.met} for f in self.figures]
        return {
            "name": self.name,
            "date": self.date,
            "quick": self.quick,
            "machine": machine.describe(),
            "load_before": self.load,
            "figures": rows,
            "notes": self.notes,
            "details": self.details,
        }

    def _markdown(self) -> str:
        lines = [f"# {self.title}", "", self.measured, ""]
        if self.quick:
            lines += ["**A smoke run at toy sizes: its figures mean nothing.**", ""]
        lines += ["| figure | measured | target | |", "|---|---|---|---|"]
        lines += [
            f"| {f.name} | {_show(f)} | {f.target or 'shown'} | {_verdict(f)} |"
            for f in self.figures
        ]
        lines += ["", *(f"- {note}" for note in self.notes), ""]
        lines += ["## Machine", "", f"- date: {self.date}"]
        lines += [f"- {key}: {value}" for key, value in machine.describe().items()]
        lines += [f"- load before: {self.load}", "", "## Again", ""]
        lines += ["```", f".venv/bin/python benchmarks/{self.script}.py", "```", ""]
        return "\n".join(lines)


def options(**more: Any) -> argparse.Namespace:
    """Parses the options that every benchmark has; ``more`` adds plain ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="toy sizes, no meaning")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of cards")
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    return parser.parse_args()


def _show(figure: Figure) -> str:
    value = figure.value
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) >= 100:
        text = f"{value:.0f}"
    else:
        text = f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}"
    return f"{text} {figure.unit}".strip()


def _verdict(figure: Figure) -> str:
    return {True: "met", False: "**missed**", None: ""}[figure.met]

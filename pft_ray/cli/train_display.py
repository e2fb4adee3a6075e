"""What ``pft train`` shows while it runs: progress, nodes, decisions and reasons."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from pft_ray.cli import render
from pft_ray.cli.queue import WaitLine, wait_words

if TYPE_CHECKING:
    from pft_ray.cluster.trainer import PrivateTrainer
    from pft_ray.ledger import WaitingRun

_NUM_LINES = 5
_SHORT_ID = 8
_STAGES = {
    "wanted": "will stop before the next grant",
    "met": "saving a checkpoint",
    "parked": "saved; the workers wait",
    "approved": "starting the new group",
}


class Display:
    """The operator's progress line: steps, epsilon, speed, time left."""

    def __init__(self, *, as_json: bool) -> None:
        self._enabled = not as_json and sys.stderr.isatty()
        self._wait_line = WaitLine(enabled=not as_json)
        self._progress: Any = None
        self._task: Any = None
        self._curve: list[tuple[int, float]] = []
        self._target = 0.0
        self._first: tuple[float, int] | None = None
        self._as_json = as_json
        self._view: ScalingView | None = None
        self._live: Any = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._progress is not None:
            self._progress.stop()

    def start(self, trainer: PrivateTrainer) -> None:
        """Says what is about to run and prepares the epsilon curve."""
        from pft_ray.assurance.wording import round_up
        from pft_ray.cluster.filter_jobs import curve_of

        plan = trainer.built.plan
        shown = round_up(trainer.built.epsilon, 4)
        out = render.console(stderr=True)
        out.print(
            f"{trainer.built.job.name}: epsilon {shown} at delta "
            f"{plan.delta:g}, T {plan.num_steps} + reserve {plan.fault_reserve}, "
            f"workers {trainer.built.job.cluster.workers}",
            markup=False,
        )
        self._target = trainer.built.epsilon
        if not self._enabled:
            return
        self._curve = curve_of(trainer.built)
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=out,
        )
        self._task = self._progress.add_task("starting Ray", total=plan.num_steps)
        elastic = trainer.built.job.cluster.elastic
        if elastic is None:
            self._progress.start()
            return
        from rich.console import Group
        from rich.live import Live

        view = ScalingView(elastic.min_workers, elastic.max_workers)
        self._view = view
        progress = self._progress
        self._live = Live(
            get_renderable=lambda: Group(progress, *view.parts()), console=out
        )
        self._live.start()

    def wait(self, row: WaitingRun) -> None:
        """Shows where the run stands in the queue."""
        if self._progress is None:
            self._wait_line(row)
        else:
            self._progress.update(self._task, description=wait_words(row))

    def tell(self, event: dict[str, Any]) -> None:
        """Shows a decision or a resize; away from a terminal as one line of a log."""
        if self._view is not None:
            self._view.tell(event)
        elif not self._enabled and not self._as_json:
            from pft_ray.cluster.scaling_story import event_words

            words = event_words(event)
            if words is not None:
                sys.stderr.write(words + "\n")
                sys.stderr.flush()

    def update(self, status: dict[str, Any]) -> None:
        """Shows the coordinator's status."""
        if self._progress is None:
            return
        if self._view is not None:
            self._view.see(status)
        step, charged = status["step"], status["num_steps_charged"]
        now = time.monotonic()
        if step > 0 and self._first is None:
            self._first = (now, step)
        words = [f"paid {charged}/{status['num_steps_max']}"]
        spent = self._epsilon_at(charged)
        words.append(f"epsilon {spent:.2f} now, {self._target:.2f} reserved")
        if self._first is not None and step > self._first[1]:
            speed = (step - self._first[1]) / (now - self._first[0])
            left_s = (status["num_steps"] - step) / speed
            words.append(f"{speed:.2f} steps/s, {left_s:.0f} s left")
        if status["attempts"] > 1:
            words.append(f"attempt {status['attempts']}")
        self._progress.update(self._task, completed=step, description=", ".join(words))

    def _epsilon_at(self, charged: int) -> float:
        """Epsilon of the steps so far, for information, from the prepared curve."""
        value = 0.0
        for steps, epsilon in self._curve:
            if steps <= charged:
                value = epsilon
        return value


class ScalingView:
    """Nodes, size and the last decisions of an elastic run.

    Args:
        min_workers: The least workers the job allows.
        max_workers: The most.
    """

    def __init__(self, min_workers: int, max_workers: int) -> None:
        self._range = f"{min_workers}-{max_workers}"
        self._scaling: dict[str, Any] = {}
        self._boundary: dict[str, Any] = {}
        self._lines: deque[tuple[str, str]] = deque(maxlen=_NUM_LINES)

    def see(self, status: dict[str, Any]) -> None:
        """Takes the coordinator's status; a note without nodes keeps the last ones."""
        self._scaling = self._scaling | (status.get("scaling") or {})
        self._boundary = status.get("boundary") or {}

    def tell(self, event: dict[str, Any]) -> None:
        """Takes a line of the run's events."""
        from pft_ray.cluster.scaling_story import event_words, impact_words

        words = event_words(event)
        if words is not None:
            changes = event.get("action") in ("grow", "shrink")
            impact = impact_words(event.get("impact")) if changes else ""
            self._lines.append((words, impact))

    def parts(self) -> list[Any]:
        """Returns what is shown below the progress line."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("node", "region", "market", "workers/slots", "leaves in"):
            table.add_column(column)
        for node in self._scaling.get("nodes", ()):
            leaves_in_s = node["leaves_in_s"]
            table.add_row(
                Text(node["node_id"][-_SHORT_ID:]),
                Text(node["region"] or "-"),
                "spot" if node["is_spot"] else "on demand",
                f"{node['workers']}/{node['slots']}",
                "-" if leaves_in_s is None else f"{leaves_in_s:.0f} s",
            )
        parts: list[Any] = [table, Text(self._size_words())]
        for words, impact in self._lines:
            parts.append(Text(words))
            if impact:
                parts.append(Text(f"         {impact}", style="dim"))
        return parts

    def _size_words(self) -> str:
        words = f"workers {self._scaling.get('workers', '-')} of {self._range}"
        pending = self._scaling.get("num_pending_slots", 0)
        if pending:
            words += f", {pending} slot(s) starting"
        stage = _STAGES.get(self._boundary.get("stage", "none"))
        if stage is not None:
            words += f", resize to {self._boundary['num_workers']}: {stage}"
        return words

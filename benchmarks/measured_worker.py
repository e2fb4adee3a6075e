"""A worker of a real run that notes its times, and exact scores of public data."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pieces
import ray

from pft_ray.cluster.actors import CoordinatorClient, connect
from pft_ray.cluster.worker import Worker, WorkerSettings
from pft_ray.crypto import new_token

if TYPE_CHECKING:
    from pft_ray.training.loop import TrainingLoop
    from pft_ray.training.step import PrivateStep, StepKeys


class Notes:
    """What one rank notes, by the number of steps it has made.

    Attributes:
        steps: Seconds of every step.
        calls: Seconds of every call that waited for the coordinator, with its name.
        checkpoints: Seconds of every checkpoint, its calls included.
        scores: Exact scores at every look.
        step: Steps made so far.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []
        self.calls: list[tuple[int, str, float]] = []
        self.checkpoints: list[tuple[int, float]] = []
        self.scores: dict[int, dict[str, float]] = {}
        self.step = 0


class NotingClient(CoordinatorClient):
    """The coordinator's client; notes how long each call waited, by step."""

    def __init__(self, actor: Any, rank: int, notes: Notes) -> None:
        super().__init__(actor, rank, new_token())
        self._notes = notes

    def _note(self, method: str, seconds: float) -> None:
        super()._note(method, seconds)
        self._notes.calls.append((self._notes.step, method, seconds))


class NotingStep:
    """A private step that notes how long it takes."""

    def __init__(self, inner: PrivateStep, notes: Notes) -> None:
        self._inner = inner
        self._notes = notes
        self.collective = inner.collective

    def run(self, keys: StepKeys) -> None:
        began = time.perf_counter()
        self._inner.run(keys)
        self._notes.steps.append((keys.step, time.perf_counter() - began))
        self._notes.step = keys.step + 1


class MeasuredWorker(Worker):
    """A worker that also writes what it noted into the run's folder."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        self.notes = Notes()
        actor = connect(settings.run_id)
        self.client = NotingClient(actor, self.rank, self.notes)

    def _loop(self) -> TrainingLoop:
        loop = super()._loop()
        loop.private_step = NotingStep(loop.private_step, self.notes)  # type: ignore[assignment]
        return loop

    def _checkpoint(self, step: int, attempt: int) -> None:
        began = time.perf_counter()
        super()._checkpoint(step, attempt)
        self.notes.checkpoints.append((step, time.perf_counter() - began))

    def _evaluate(self, key: bytes) -> list[int]:
        table = self.inputs.validation
        assert table is not None
        assert table.targets is not None
        probabilities = self.work.evaluate_probabilities(table)
        exact = pieces.score(probabilities, table.targets)
        self.notes.scores[self.notes.step] = exact._asdict()
        return super()._evaluate(key)

    def run(self) -> dict[str, Any]:
        outcome = super().run()
        path = Path(self.settings.run_dir) / f"measured-{self.rank}.json"
        path.write_text(json.dumps(vars(self.notes)), encoding="utf-8")
        return outcome


def train_measured(settings: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's entry point, in the place of the ordinary one."""
    return MeasuredWorker(WorkerSettings(**settings)).run()


def read_notes(run_dir: Path) -> list[dict[str, Any]]:
    """Returns what each rank of a run noted."""
    files = sorted(run_dir.glob("measured-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def by_value() -> None:
    """Lets Ray send this folder's code to workers, which cannot import it."""
    import measured_worker

    for module in (measured_worker, pieces):
        ray.cloudpickle.register_pickle_by_value(module)

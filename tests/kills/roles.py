"""The processes of a run without Ray: coordinator, workers, driver.

Everything that decides about privacy is the real thing: ledger, coordinator, step
loop, sampler, noise, gloo. Only Ray's part is played: starting processes, restarting
a worker group or a coordinator, naming the newest checkpoint.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from pft_ray.assurance.report import build_report
from pft_ray.cluster.collective import GlooCollective
from pft_ray.cluster.ledger_place import open_place
from pft_ray.cluster.summary import report_facts
from pft_ray.config import BuiltJob
from pft_ray.errors import StaleCoordinatorError
from pft_ray.mechanisms import SampledGaussian, noisy_counts
from pft_ray.training.checkpoint import read_checkpoint, write_checkpoint
from pft_ray.training.headers import CheckpointHeader
from pft_ray.training.loop import LoopOutcome, TrainingLoop
from pft_ray.training.step import PrivateStep
from pft_ray.training.types import ClippedSum
from tests.contracts.kills import SIZE, WORLD, fill_ledger, unit_digests
from tests.kills.collective import SpyCollective
from tests.kills.journal import RUN, Journal, JournalMechanism, mark_of
from tests.kills.line import Line, serve_coordinator
from tests.kills.strikes import Strikes, read_pid, write_pid
from tests.kills.zygote import is_gone, kill, open_pid, spawn

_MOST_LIVES = 12


def play(scene: dict, template) -> None:
    """Is the process that a scene describes."""
    torch.set_num_threads(1)
    if scene.get("clock_jumps"):
        _jump_clock()
    role, folder = scene["role"], Path(scene["folder"])
    if role == "fill":
        fill_ledger(template.built, scene["ledger"], folder / "keys")
    elif role == "coordinator":
        strike = Strikes(folder, scene["kills"])
        serve_coordinator(folder, scene["ledger"], strike)
    elif role == "worker":
        WorkerPart(scene, template.built).live()
    else:
        DriverPart(scene, template.built).live()


def _jump_clock() -> None:
    """The wall clock jumps by years, to and fro, at every look at it."""
    real, jumps = time.time, iter(range(1, 1 << 30))
    year = 365 * 86400.0
    time.time = lambda: real() + (-1) ** next(jumps) * 5 * year


@dataclass
class Work:
    """A model of SIZE numbers; each unit pushes one of them by C."""

    strike: Strikes
    pause_s: float
    vector: torch.Tensor = field(default_factory=lambda: torch.zeros(SIZE))

    def clipped_sum(self, positions, clip_norm):
        total = torch.zeros(SIZE, dtype=torch.float64)
        for position in positions:
            total[int(position) % SIZE] += clip_norm
        time.sleep(self.pause_s)
        return ClippedSum(total, clip_norm)

    def apply(self, grad):
        self.vector = self.vector + grad.vector


class WorkerPart:
    """One rank of one life of the worker group."""

    def __init__(self, scene: dict, built: BuiltJob) -> None:
        self.scene, self.plan = scene, built.plan
        self.folder, self.rank = Path(scene["folder"]), scene["rank"]
        write_pid(self.folder, f"worker-{self.rank}", os.getpid())
        self.journal = Journal(self.folder / "journal")
        self.journal.note("born", life=scene["life"])
        self.strike = Strikes(self.folder, scene["kills"], self.rank)
        self.mechanism = JournalMechanism(
            SampledGaussian.from_plan(self.plan),
            self.journal,
            self.rank,
            (scene["ledger"], RUN),
        )
        self.line = Line(self.folder, self.rank, learn=self.mechanism.learn)
        self.work = Work(self.strike, scene.get("pause_s", 0.0))

    def live(self) -> None:
        _end_with(self.scene["driver"])
        life = self.scene["life"]
        dist.init_process_group(
            "gloo",
            init_method=f"file://{self.folder}/meeting-{life}",
            rank=self.rank,
            world_size=WORLD,
        )
        step = PrivateStep(
            self.plan,
            self.mechanism,
            self.work,
            unit_digests(30)[self.rank :: WORLD],
            SpyCollective(self),
        )
        start = self._restore()
        loop = TrainingLoop(
            self.plan,
            step,
            self.line,
            enter_phase=lambda index: None,
            checkpoint=self._save,
            evaluate=self._evaluate,
        )
        outcome = loop.run(start, "resume" if start else "start")
        self._tell(outcome)

    def _restore(self) -> int:
        name = self.scene["checkpoint"]
        if not name:
            return 0
        folder = self.folder / "checkpoints" / name
        tensors, header = read_checkpoint(folder, self.plan.digest)
        self.work.vector = tensors["vector"]
        return header.step

    def _save(self, step: int, attempt: int) -> None:
        self.strike("saving")
        GlooCollective.gather(None, np.zeros(1, dtype=np.int64))
        if self.rank == 0:
            name = f"step-{step:06d}-attempt-{attempt}"
            draft = self.folder / f".{name}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            position = self.line.position
            header = CheckpointHeader(RUN, self.plan.digest, step, attempt, **position)
            write_checkpoint(draft, {"vector": self.work.vector}, header)
            draft.rename(self.folder / "checkpoints" / name)
            self.strike("stored")
            self.line.checkpoint_registered(attempt, step, name)

    def _evaluate(self, key: bytes) -> list[int]:
        evaluation = self.plan.evaluation
        self.journal.note("look", key=mark_of(key))
        counts = [80, 20, *([1] * (2 * evaluation.num_bins))]
        values = noisy_counts(key, counts, evaluation.sigma)
        return [int(value) for value in values]

    def _tell(self, outcome: LoopOutcome) -> None:
        told = {
            "status": outcome.status,
            "step": outcome.step,
            "error": getattr(outcome.error, "code", None),
            "vector": mark_of(self.work.vector.numpy().tobytes()),
        }
        name = f"outcome-{self.scene['life']}-{self.rank}"
        draft = self.folder / f".{name}"
        draft.write_text(json.dumps(told))
        draft.rename(self.folder / name)


def _end_with(pid: int) -> None:
    """Ends this process when its driver is gone, as Ray ends a driver's workers."""
    descriptor = open_pid(pid)
    if descriptor is None:
        os._exit(1)

    def watch():
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class DriverPart:
    """The run's driver: starts processes, restarts them, ends the run, reports."""

    def __init__(self, scene: dict, built: BuiltJob) -> None:
        self.scene, self.built = scene, built
        self.folder = Path(scene["folder"])
        self.journal = Journal(self.folder / "journal")
        self.coordinator = -1
        self.frozen: int | None = None
        self.since = 0.0

    def spawn(self, role: str, **more) -> int:
        shared = {k: v for k, v in self.scene.items() if k != "role"}
        return spawn(self.scene["address"], role, **shared, **more)

    def live(self) -> None:
        write_pid(self.folder, "driver", os.getpid())
        self.journal.note("driver")
        self._replace_coordinator()
        checkpoint = self._named_checkpoint()
        for _ in range(_MOST_LIVES):
            outcomes = self._run_group(checkpoint)
            if outcomes is not None:
                self._end(outcomes)
                return
            checkpoint = self._newest_checkpoint()
        raise AssertionError("the run did not end")

    # -- the coordinator --------------------------------------------------------

    def _replace_coordinator(self) -> None:
        """Ends the coordinator that an earlier driver left, and starts another."""
        if (self.folder / "coordinator.pid").exists():
            kill(read_pid(self.folder, "coordinator"))
        self._start_coordinator()

    def _start_coordinator(self) -> None:
        self.coordinator = self.spawn("coordinator")

    def _mind_coordinator(self) -> None:
        """Restarts a dead coordinator; replaces one that does not answer."""
        if is_gone(self.coordinator):
            self._start_coordinator()
        elif self.frozen is None and (self.folder / "frozen.pid").exists():
            self.frozen = read_pid(self.folder, "frozen")
            self._start_coordinator()
            self.since = time.monotonic()
        elif self.frozen and read_pid(self.folder, "coordinator") != self.frozen:
            self._thaw()

    def _thaw(self) -> None:
        """Wakes the replaced coordinator, and asks it for a charge."""
        frozen, self.frozen = self.frozen, 0
        time.sleep(0.1)
        os.kill(frozen, signal.SIGCONT)
        probe = _ProbeLine(self.folder, pid=frozen)
        try:
            probe.call("open_attempt", [probe.token], 0, "start")
            self.journal.note("stale", answer="appended")
        except StaleCoordinatorError as error:
            self.journal.note("stale", answer=error.code)

    # -- the workers ------------------------------------------------------------

    def _run_group(self, checkpoint: str) -> list[dict] | None:
        """Runs a group to its end; None when one of its processes died."""
        life = len(list(self.folder.glob("life-*")))
        (self.folder / f"life-{life}").touch()
        pids = [
            self.spawn(
                "worker",
                rank=rank,
                life=life,
                driver=os.getpid(),
                checkpoint=checkpoint,
            )
            for rank in range(WORLD)
        ]
        alive = dict(enumerate(pids))
        while alive:
            self._mind_coordinator()
            for rank, pid in list(alive.items()):
                if not is_gone(pid, 0.01):
                    continue
                del alive[rank]
                if not (self.folder / f"outcome-{life}-{rank}").exists():
                    for other in alive.values():
                        kill(other)
                    return None
        return [
            json.loads((self.folder / f"outcome-{life}-{rank}").read_text())
            for rank in range(WORLD)
        ]

    def _newest_checkpoint(self) -> str:
        """Returns what Ray has registered: all that is whole."""
        names = sorted(
            (path for path in (self.folder / "checkpoints").iterdir()),
            key=lambda path: path.stat().st_mtime_ns,
        )
        return names[-1].name if names else ""

    def _named_checkpoint(self) -> str:
        """Returns the newest that the ledger names, as a new driver does."""
        with open_place(self.scene["ledger"], str(self.folder / "keys")) as ledger:
            names = ledger.run_status(RUN).checkpoints
        return names[-1] if names else ""

    # -- the end ----------------------------------------------------------------

    def _end(self, outcomes: list[dict]) -> None:
        while self.frozen:
            self._mind_coordinator()
        with open_place(self.scene["ledger"], str(self.folder / "keys")) as ledger:
            report = build_report(report_facts(self.built, ledger, RUN))
        status = outcomes[0]["status"]
        # As the real driver: results first, then the end, each by someone new if
        # this process dies in between.
        ended = threading.Thread(
            target=Line(self.folder).call, args=("end_run", status, 0), daemon=True
        )
        ended.start()
        while ended.is_alive():
            self._mind_coordinator()
            ended.join(0.02)
        kill(self.coordinator)
        document = {"outcomes": outcomes, "report": report}
        (self.folder / ".done").write_text(json.dumps(document))
        (self.folder / ".done").rename(self.folder / "done.json")


class _ProbeLine(Line):
    """A line to one coordinator, whoever has taken its place."""

    def _now(self) -> int:
        return self.pid

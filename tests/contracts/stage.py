"""Runs ``PrivateTrainer`` with its own worker code and no Ray: ranks are threads.

What a run writes is made by the very code that makes it on a cluster. Only Ray's part
is played: starting ranks, registering checkpoints, restarting a group, calling an
actor.
"""

from __future__ import annotations

import shutil
import threading
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from pft_ray.cluster import actors, fit, trainer, worker
from pft_ray.cluster.coordinator import Coordinator
from pft_ray.crypto import derive_key
from tests.training.ranks import Ranks

FIXED = bytes(range(1, 33))


class FixedKeys(Coordinator):
    """Attempt keys that depend on the attempt's number alone: runs can be compared."""

    def open_attempt(self, tokens, start, reason):
        number = super().open_attempt(tokens, start, reason)
        self._attempt.key = derive_key(FIXED, "attempt", number)
        return number


@dataclass
class Stage:
    """Plays Ray for one process.

    Attributes:
        die_at: Planned steps at which rank 0 dies, once each, after its sum is final.
        coordinator: The coordinator of the run under way.
        absent: Workers that no node holds.
    """

    die_at: list[int] = field(default_factory=list)
    absent: int = 0
    coordinator: Coordinator | None = None
    checkpoints: list[Path] = field(default_factory=list)
    storage: Path = Path()
    group: Ranks | None = None
    local: threading.local = field(default_factory=threading.local)

    def start_coordinator(self, config, cls):
        self.coordinator = cls(config)
        return self.handle

    @property
    def handle(self) -> Any:
        """What stands for the actor's handle: calls without waiting."""

        def sender(name):
            return SimpleNamespace(
                remote=lambda *args: Sent.of(getattr(self.coordinator, name), args)
            )

        names = ("progress", "request_stop", "request", "checkpoint_registered")
        return SimpleNamespace(**{name: sender(name) for name in names})

    def call(self, _actor, method, *args, timeout_s=60.0, sent=None, **named):
        if sent is not None:
            return sent.get()
        return getattr(self.coordinator, method)(*args, **named)

    def report(self, metrics, checkpoint=None, checkpoint_dir_name=None):
        if checkpoint is not None:
            target = self.storage / checkpoint_dir_name
            shutil.copytree(checkpoint.path, target)
            self.checkpoints.append(target)
        self.group.of(self.local.rank).gather(np.zeros(1, dtype=np.int64))

    def get_checkpoint(self):
        return Checkpoint(self.checkpoints[-1]) if self.checkpoints else None


@dataclass
class Sent:
    """The pending reply of a call: what it gave or raised is told when asked for."""

    value: Any = None
    error: Exception | None = None

    @classmethod
    def of(cls, method, args):
        try:
            return cls(method(*args))
        except Exception as error:  # noqa: BLE001 - told later
            return cls(error=error)

    def get(self):
        if self.error is not None:
            raise self.error
        return self.value


@dataclass
class Checkpoint:
    """Ray's checkpoint, as far as a worker uses it."""

    path: Path

    @classmethod
    def from_directory(cls, path):
        return cls(Path(path))

    @contextmanager
    def as_directory(self):
        yield str(self.path)


@dataclass
class Trainer:
    """Ray's TorchTrainer: runs a group and starts another when one dies."""

    stage: Stage
    function: Any
    settings: dict[str, Any]
    world: int
    storage: Path
    most_failures: int
    failures: dict[int, Exception] = field(default_factory=dict)

    def fit(self):
        self.stage.storage = self.storage
        for _ in range(self.most_failures + 1):
            results = self._run_group()
            if all(result is not None for result in results):
                return SimpleNamespace(return_value=results[0])
        words = "\n".join(str(error) for error in self.failures.values())
        raise WorkerGroupError(words, self.failures)

    def _run_group(self) -> list[Any]:
        self.stage.group = Ranks(self.world)
        results: list[Any] = [None] * self.world
        errors: list[tuple[int, BaseException, str]] = []

        def live(rank):
            self.stage.local.rank = rank
            try:
                results[rank] = self.function(self.settings)
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:  # noqa: BLE001 - as a process that ends
                errors.append((rank, error, traceback.format_exc()))
            finally:
                if results[rank] is None:
                    self.stage.group.barrier.abort()

        threads = [
            threading.Thread(target=live, args=(rank,), daemon=True)
            for rank in range(self.world)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.failures = {
            rank: UserExceptionWithTraceback(error, trace)
            for rank, error, trace in errors
        }
        return results


def set_stage(monkeypatch, stage: Stage | None = None) -> Stage:
    """Puts the stand-ins in place until the test ends; returns the stage."""
    stage = stage or Stage()
    train = worker.ray.train
    for module, name, value in (
        (trainer, "ray_cluster", _no_cluster),
        (trainer, "check_placement", lambda workers, *_, **__: workers - stage.absent),
        (trainer, "start_coordinator", stage.start_coordinator),
        (trainer, "stop_coordinator", lambda _run: None),
        (trainer, "call", stage.call),
        (trainer, "_POLL_S", 0.02),
        (actors, "call", stage.call),
        (actors, "reply_if_there", lambda _sent: None),
        (fit, "TorchTrainer", partial(_torch_trainer, stage)),
        (worker, "connect", lambda _run: stage.handle),
        (worker, "GlooCollective", partial(Collective, stage)),
        (worker, "load_model", _one_at_a_time(worker.load_model)),
        (train, "get_context", partial(_context, stage)),
        (train, "report", stage.report),
        (train, "get_all_reported_checkpoints", lambda: None),
        (train, "get_checkpoint", stage.get_checkpoint),
        (train, "Checkpoint", Checkpoint),
    ):
        monkeypatch.setattr(module, name, value)
    torch.set_num_threads(1)
    return stage


class Collective:
    """The rank's collective; a listed step is where rank 0 dies."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._inner = stage.group.of(stage.local.rank)

    def gather(self, words):
        stage = self._stage
        is_header = len(words) > 2  # what ranks agree on is shorter
        if is_header and stage.local.rank == 0 and words[1] in stage.die_at:
            stage.die_at.remove(int(words[1]))
            raise SystemExit(17)
        return self._inner.gather(words)

    def reduce(self, share):
        return self._inner.reduce(share)

    def reduce_public(self, vector):
        return sum(self._inner.gather(vector))


@contextmanager
def _no_cluster(_address, *, num_cpus):
    yield True


def _torch_trainer(stage: Stage, function, **kwargs) -> Trainer:
    run = kwargs["run_config"]
    return Trainer(
        stage,
        function,
        kwargs["train_loop_config"],
        kwargs["scaling_config"].num_workers,
        Path(run.storage_path) / run.name,
        run.failure_config.max_failures,
    )


def _context(stage: Stage) -> Any:
    return SimpleNamespace(
        get_world_rank=lambda: stage.local.rank,
        get_world_size=lambda: stage.group.world,
    )


def _one_at_a_time(function):
    """transformers sets process-wide state while it loads a model."""
    lock = threading.Lock()

    def locked(*args, **kwargs):
        with lock:
            return function(*args, **kwargs)

    return locked

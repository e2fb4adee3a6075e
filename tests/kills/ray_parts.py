"""Ray Train's workers and the coordinator's actor, open to kills; and the driver.

The driver is this module, run as a program: it is killed like everything else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pft_ray.cluster import fit
from pft_ray.cluster.actors import actor_name, connect
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.cluster.worker import Worker, WorkerSettings
from pft_ray.errors import PftError
from tests.kills.collective import SpyCollective
from tests.kills.journal import Journal, JournalMechanism
from tests.kills.line import KilledCoordinator
from tests.kills.ray_names import KEYS, SCENE
from tests.kills.strikes import OrderedStrikes, write_pid


def scene() -> dict:
    """Returns what is to happen; the cluster's processes find it by a variable."""
    return json.loads((Path(os.environ[SCENE]) / "scene.json").read_text())


class RayCoordinator(KilledCoordinator):
    """The coordinator's actor; its keys are kept for a search of Ray's storage."""

    def __init__(self, config) -> None:
        told = scene()
        folder = Path(told["folder"])
        strike = OrderedStrikes(folder, told["kills"])
        super().__init__(config, Journal(folder / "journal"), strike)
        write_pid(folder, "coordinator", os.getpid())
        self._folder = folder

    def open_attempt(self, tokens, start, reason):
        number = super().open_attempt(tokens, start, reason)
        with (self._folder / KEYS).open("a") as file:
            file.write(self._attempt.key.hex() + "\n")
        return number


class SpiedWorker(Worker):
    """The worker, with its keys and shares noted and its points open to kills."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        told = scene()
        self.folder, self.told = Path(told["folder"]), told
        write_pid(self.folder, f"worker-{self.rank}", os.getpid())
        self.journal = Journal(self.folder / "journal")
        self.journal.note("born", life=0)
        self._strike = OrderedStrikes(self.folder, told["kills"], self.rank)
        self.collective = SpyCollective(self)
        self._spy_on_client()

    def strike(self, point: str) -> None:
        if point == "checked" and self.rank == 0:
            write_pid(self.folder, "step", self.mechanism.place[1])
        self._strike(point)

    def _spy_on_client(self) -> None:
        request = self.client.request
        registered = self.client.checkpoint_registered

        def learned(*arguments):
            reply = request(*arguments)
            self.mechanism.learn(reply.steps)
            return reply

        def stored(*arguments):
            self.strike("stored")
            registered(*arguments)

        self.client.request = learned
        self.client.checkpoint_registered = stored

    def _set_up(self) -> None:
        super()._set_up()
        self.mechanism = JournalMechanism(
            self.private_step.mechanism,
            self.journal,
            self.rank,
            (self.told["ledger"], self.settings.run_id),
        )
        self.private_step.mechanism = self.mechanism

    def _checkpoint(self, step: int, attempt: int) -> None:
        self.strike("saving")
        super()._checkpoint(step, attempt)


def spied_worker(settings):
    return SpiedWorker(WorkerSettings(**settings)).run()


class SpiedTrainer(PrivateTrainer):
    """The trainer, with the coordinator that is open to kills."""

    coordinator_class = RayCoordinator


def drive() -> None:
    """Runs or resumes the scene's job; what it came to is left in a file."""
    told = scene()
    folder = Path(told["folder"])
    write_pid(folder, "driver", os.getpid())
    fit.train_worker = spied_worker
    trainer = SpiedTrainer(told["job"], ledger=told["ledger"])
    try:
        result = trainer.fit(address=told["address"])
        end = {
            "run_id": result.run_id,
            "status": result.status,
            "report": result.report,
            "folder": str(result.folder),
            "error": None,
        }
    except PftError as error:
        end = {"status": "failed", "error": error.to_dict(), "report": None}
    (folder / ".end").write_text(json.dumps(end))
    (folder / ".end").rename(folder / "end.json")
    os._exit(0)  # what Ray's own clean-up waits for may have been killed


def ask(run_id: str) -> None:
    """Prints the status of a run's coordinator as JSON; null when there is none."""
    import ray

    from pft_ray.cluster.actors import call
    from pft_ray.cluster.local import ray_cluster

    with ray_cluster(scene()["address"], num_cpus=1):
        status = None
        if actor_name(run_id) in ray.util.list_named_actors():
            status = call(connect(run_id), "status", timeout_s=60.0)
    print(json.dumps(status), flush=True)  # noqa: T201
    os._exit(0)


if __name__ == "__main__":
    # What runs as a program has another name; workers import it by this one.
    from tests.kills import ray_parts

    if len(sys.argv) > 1:
        ray_parts.ask(sys.argv[1])
    else:
        ray_parts.drive()

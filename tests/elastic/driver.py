"""A driver of an elastic run, as a program: Ray connects once a process.

    python -m tests.elastic.driver JOB ADDRESS OUT PAUSE_S

What the run came to is left in OUT; while it goes on, ``OUT.status`` holds the newest
status of the coordinator. Where PFT_KILLS names a folder, keys and shares are noted in
a journal there, as the kill tests do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pft_ray.cluster import fit
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import PftError
from tests.kills.ray_names import SCENE
from tests.kills.ray_parts import SpiedTrainer

# What the probe would find on a model that is worth a second worker.
STEP_S = 30.0


def slow_worker(pause_s: float):
    """Returns a worker function of slow steps, which says so of made-up ones too."""

    def train_worker(settings):
        import os
        import time

        from pft_ray.cluster import worker as module
        from pft_ray.training.step import PrivateStep
        from tests.elastic.driver import SCENE
        from tests.kills.ray_parts import SpiedWorker

        base = SpiedWorker if SCENE in os.environ else module.Worker

        class SlowWorker(base):
            def _measure_phases(self):
                one = {"serial_s": 0.0, "parallel_s": STEP_S, "keep_s": 0.0}
                self.client.tell_step_times([one] * len(self.plan.phases))

        original = PrivateStep._check

        def check(self, keys, phase, clip_norm):
            time.sleep(pause_s)
            original(self, keys, phase, clip_norm)

        PrivateStep._check = check
        try:
            return SlowWorker(module.WorkerSettings(**settings)).run()
        finally:
            PrivateStep._check = original

    return train_worker


def main(job: str, address: str, out: str, pause_s: str) -> None:
    place = Path(out)
    fit.train_worker = slow_worker(float(pause_s))
    trainer_class = SpiedTrainer if SCENE in os.environ else PrivateTrainer

    def keep(status):
        leave(place.with_suffix(".status"), status | {"time": time.time()})

    try:
        trainer = trainer_class(job, on_progress=keep)
        result = trainer.fit(address=address)
        end = {
            "run_id": result.run_id,
            "status": result.status,
            "folder": str(result.folder),
            "report": result.report,
            "error": None,
        }
    except PftError as error:
        end = {"status": "failed", "error": error.to_dict(), "report": None}
    leave(place, end)
    os._exit(0)  # Ray's own clean-up may wait for what was killed


def leave(place: Path, content: dict) -> None:
    partial = place.with_suffix(".part")
    partial.write_text(json.dumps(content))
    partial.rename(place)


if __name__ == "__main__":
    main(*sys.argv[1:])

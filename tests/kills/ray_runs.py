"""Runs on Ray Train in which everything is killed, one after the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pft_ray.accounting.accountants import epsilon as epsilon_of
from pft_ray.cluster.registration import create_budget
from pft_ray.config import build_job, load_job
from pft_ray.ledger import Ledger
from tests.kills.cases import Kill
from tests.kills.ray_head import Head
from tests.kills.ray_names import KEYS
from tests.kills.strikes import struck, write_pid
from tests.kills.zygote import kill
from tests.postgres_server import PostgresServer
from tests.tiny_job import job_dict, write_job

PASSWORD = "a-pass-word-that-is-looked-for"  # the server trusts everybody
_RUN_S = 600.0
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class RayRun:
    """What one run came to.

    Attributes:
        folder: Its journal and marks.
        reborn: Status of the coordinator after the head node was restarted, before
            any driver was there; None when the head was not killed.
    """

    folder: Path
    ledger: str
    run_id: str
    status: str
    report: dict | None
    error: dict | None
    struck: list[Kill]
    drivers: int
    reborn: dict | None
    epochs: list[int]
    elapsed_s: float


def long_job(folder: Path, num_kills: int) -> Path:
    """A job long enough for the kills, with a reserve that pays for all of them."""
    job = job_dict()
    steps = max(16, 4 * num_kills)
    phases = [phase | {"steps": steps} for phase in job["training"]["phases"]]
    return write_job(
        folder,
        training__phases=phases,
        training__checkpoint_interval=4,
        privacy__fault_reserve=12 * max(1, num_kills),
        cluster__workers=2,
        cluster__cpus_per_worker=0.5,
        cluster__max_failures=num_kills + 3,
    )


def planned_epsilon(folder: Path) -> float:
    """Returns what a job's report has to say, as its plan has it before it runs."""
    plan = build_job(load_job(folder / "job.yaml"), folder).plan
    look = plan.evaluation
    return max(epsilon_of(plan.event, plan.delta), epsilon_of(look.event, look.delta))


def secrets_stored(stage: RayStage, run: RayRun) -> list[str]:
    """Returns what of a run's secrets is in the storage of Ray's control store."""
    places = (stage.head.storage, *run.folder.glob("stored-*"))
    files = [p for place in places for p in place.rglob("*") if p.is_file()]
    stored = b"".join(path.read_bytes() for path in files)
    # What the actor is constructed with is there, as plain bytes.
    if f"ledger-of-{run.run_id}".encode() not in stored:
        return ["the storage does not show what actors are constructed with"]
    keys = (run.folder / KEYS).read_text().split()
    found = [
        "an attempt's key is stored"
        for key in keys
        if bytes.fromhex(key) in stored or key.encode() in stored
    ]
    if PASSWORD.encode() in stored:
        found.append("the ledger's password is stored")
    return found


def rebirth_faults(run: RayRun) -> list[str]:
    """Returns what is wrong with the coordinator that came back with its node."""
    if all(kill.victim != "head" for kill in run.struck):
        return []
    if run.reborn is None:
        return ["no coordinator came back with the head node"]
    found = []
    if run.reborn["released"]:
        found.append("the coordinator came back with an attempt")
    if run.reborn["epoch"] not in run.epochs[1:]:
        found.append("the coordinator came back without an epoch of its own")
    return found


class RayStage:
    """A head, a database server, and the runs on them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pft-rk-", dir="/tmp"))
        self.home = self.folder / "home"
        self.server = PostgresServer()
        try:
            self.head = Head(self.folder, {"PFT_HOME": str(self.home)})
        except BaseException:
            self.server.close()
            raise
        self.environment = self.head.environment | {"HOME": str(self.folder)}
        self._number = 0

    def close(self) -> None:
        self.head.close()
        self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, kills: list[Kill], *, look_at_reborn: bool = False) -> RayRun:
        """Runs a job of its own through the kills, to its end."""
        self._number += 1
        folder = self.folder / f"run-{self._number}"
        job = long_job(folder, len(kills))
        url = self.server.new_schema().replace("//postgres@", f"//postgres:{PASSWORD}@")
        self._create_budget(job, url)
        write_pid(folder, "postgres", self.server.pid)
        write_pid(folder, "gcs", self.head.control_store.pid)
        write_pid(folder, "step", 0)
        scene = {
            "folder": str(folder),
            "job": str(job),
            "ledger": url,
            "address": self.head.address,
            "kills": [kill.to_dict() for kill in kills],
        }
        (self.folder / "scene.json").write_text(json.dumps(scene))
        return _Supervisor(self, folder, url, look_at_reborn=look_at_reborn).run()

    def _create_budget(self, job: Path, url: str) -> None:
        saved = os.environ.get("PFT_HOME")
        os.environ["PFT_HOME"] = str(self.home)
        try:
            create_budget(job, runs=1, ledger=url)
        finally:
            if saved is None:
                del os.environ["PFT_HOME"]
            else:
                os.environ["PFT_HOME"] = saved

    def program(self, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.kills.ray_parts", *arguments]
        return subprocess.Popen(command, env=self.environment, cwd=_ROOT, **options)


class _Supervisor:
    """Starts drivers and restarts what was killed, until the run is over."""

    def __init__(
        self, stage: RayStage, folder: Path, url: str, *, look_at_reborn: bool
    ) -> None:
        self.stage, self.folder, self.url = stage, folder, url
        self.look_at_reborn = look_at_reborn
        self.reborn: dict | None = None

    def run(self) -> RayRun:
        started = time.monotonic()
        drivers = 0
        while not (self.folder / "end.json").exists():
            drivers += 1
            assert drivers < 12, "the run does not end"
            self._watch(self._start_driver(drivers), started + _RUN_S)
        end = json.loads((self.folder / "end.json").read_text())
        with Ledger.open(self.url, keys_dir=self.stage.home / "keys") as ledger:
            (status,) = ledger.runs()
            rows = ledger.history(1 << 20, run_id=status.run_id)
        epochs = [row.body["epoch"] for row in rows if row.kind == "epoch"]
        return RayRun(
            folder=self.folder,
            ledger=self.url,
            run_id=status.run_id,
            status=end["status"],
            report=end["report"],
            error=end["error"],
            struck=struck(self.folder),
            drivers=drivers,
            reborn=self.reborn,
            epochs=epochs[::-1],
            elapsed_s=time.monotonic() - started,
        )

    def _start_driver(self, number: int) -> subprocess.Popen:
        log = (self.folder / f"driver-{number}.log").open("w")
        return self.stage.program(stdout=log, stderr=log)

    def _watch(self, driver: subprocess.Popen, end: float) -> None:
        try:
            while driver.poll() is None:
                assert time.monotonic() < end, self._logs()
                time.sleep(0.05)
                self._mind(driver)
        finally:
            kill(driver.pid)
            driver.wait()
        done = (self.folder / "end.json").exists()
        assert done or (self.folder / "struck-0").exists(), self._logs()

    def _mind(self, driver: subprocess.Popen) -> None:
        stage = self.stage
        if stage.server.is_dead():
            time.sleep(0.5)  # requests meet a database that is away
            stage.server.start()
            write_pid(self.folder, "postgres", stage.server.pid)
        wanted = self.folder / "head-wanted.pid"
        if wanted.exists():
            stage.head.kill()
            self._keep_storage()
            wanted.unlink()
            kill(driver.pid)  # a driver on a node goes with it
            stage.head.start()
            write_pid(self.folder, "gcs", stage.head.control_store.pid)
            if self.look_at_reborn:
                self.reborn = self._ask()
        elif stage.head.lost_control_store():
            time.sleep(0.5)
            self._keep_storage()
            stage.head.restart_control_store()
            write_pid(self.folder, "gcs", stage.head.control_store.pid)

    def _keep_storage(self) -> None:
        """Copies it as it is: a store that starts again packs what it has."""
        number = len(list(self.folder.glob("stored-*")))
        shutil.copytree(self.stage.head.storage, self.folder / f"stored-{number}")

    def _ask(self) -> dict | None:
        with Ledger.open(self.url, keys_dir=self.stage.home / "keys") as ledger:
            (status,) = ledger.runs()
        program = self.stage.program(status.run_id, stdout=subprocess.PIPE, text=True)
        output, _ = program.communicate(timeout=120)
        return json.loads(output.strip().splitlines()[-1])

    def _logs(self) -> str:
        texts = [p.read_text()[-3000:] for p in self.folder.glob("driver-*.log")]
        return "\n".join([str(struck(self.folder)), *texts])

"""Kills with a real Ray: the guarantee holds and the run comes to its end."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from pft_ray.assurance.claims import collect_claims
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import RunFailedError
from pft_ray.ledger import verify
from tests.ray.conftest import wait_until
from tests.tiny_job import write_job

PUBLIC_DIFFERENCES = ("run_id", "ledger", "utility", "utility_all")


def prepare(folder: Path, runs: int = 3, **changes) -> Path:
    changes = {"cluster__workers": 2, "cluster__cpus_per_worker": 0.5} | changes
    job = write_job(folder, **changes)
    create_budget(job, runs=runs)
    return job


def operator(result) -> dict:
    return json.loads((result.folder / "operator.json").read_text())


def assert_sound(result, job: Path) -> None:
    """What holds after every run, whatever was killed."""
    notes = operator(result)
    trainer = PrivateTrainer(job)
    plan = trainer.built.plan
    assert notes["num_steps_released"] <= notes["num_steps_charged"]
    assert notes["num_steps_charged"] <= plan.num_steps_max
    found = verify(trainer.ledger_url, collect_claims(trainer.built.output_dir))
    assert "complete up to row" in found.words
    check = next(run for run in found.runs if run.run_id == result.run_id)
    assert check.num_steps_charged == notes["num_steps_charged"]
    if result.report is not None:
        assert result.report["epsilon"] == pytest.approx(check.epsilon, abs=1e-9)
        assert result.report["status"] == "released"


def assert_same_report(one: dict, other: dict) -> None:
    """Reports agree in everything but run id, ledger position and released values."""
    left = {k: v for k, v in one.items() if k not in PUBLIC_DIFFERENCES}
    right = {k: v for k, v in other.items() if k not in PUBLIC_DIFFERENCES}
    assert left == right
    assert [look["step"] for look in one["utility_all"]] == [
        look["step"] for look in other["utility_all"]
    ]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, tiny_model, local_ray):
    """A run without any kill, to compare with."""
    folder = tmp_path_factory.mktemp("quiet")
    saved = os.environ["PFT_HOME"]
    os.environ["PFT_HOME"] = str(folder / "home")
    try:
        job = prepare(folder / "job")
        result = PrivateTrainer(job).fit()
        assert_sound(result, job)
        return result
    finally:
        os.environ["PFT_HOME"] = saved


def test_a_quiet_run_releases_an_adapter_that_plain_peft_loads(quiet, tiny_model):
    from peft import PeftModel
    from transformers import AutoModel

    notes = operator(quiet)
    assert quiet.status == "completed"
    assert notes["attempts"] == 1
    assert notes["num_steps_charged"] == notes["num_steps_released"] == 16
    base = AutoModel.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, quiet.folder / "adapter")
    assert any("lora" in name for name, _ in model.named_parameters())


class KillOnce:
    """Kills a process of the run when it has made a given step."""

    def __init__(self, at_step: int, find):
        self.at_step = at_step
        self.find = find
        self.killed = None

    def __call__(self, status):
        if self.killed is None and status["step"] >= self.at_step:
            self.killed = self.find(status)
            os.kill(self.killed, signal.SIGKILL)


def test_a_coordinator_killed_between_grants_comes_back_with_its_budget(
    fresh_home, job_folder, quiet, watchable
):
    job = prepare(job_folder)
    kill = KillOnce(2, lambda status: status["pid"])
    result = PrivateTrainer(job, on_progress=kill).fit()
    assert kill.killed is not None
    notes = operator(result)
    assert result.status == "completed"
    assert notes["attempts"] >= 2
    assert_sound(result, job)
    assert_same_report(result.report, quiet.report)


def test_a_worker_that_dies_in_mid_step_restarts_the_group_as_a_new_attempt(
    fresh_home, job_folder, quiet, monkeypatch
):
    flag = job_folder / "die-at-6"
    flag.write_text("1")
    monkeypatch.setattr(
        "pft_ray.cluster.fit.train_worker", dying_worker(str(flag), rank=1, step=6)
    )
    job = prepare(job_folder)
    result = PrivateTrainer(job).fit()
    assert not flag.exists(), "the worker died"
    notes = operator(result)
    assert result.status == "completed"
    assert notes["attempts"] == 2
    assert notes["num_steps_charged"] > notes["num_steps_in_model"] == 16
    assert_sound(result, job)
    assert_same_report(result.report, quiet.report)


def dying_worker(flag: str, rank: int, step: int, *, keep: bool = False):
    """Returns a worker function whose rank exits in mid-step, after the sum."""

    def train_worker(settings):
        import os
        from pathlib import Path

        from pft_ray.cluster import worker as module
        from pft_ray.training.step import PrivateStep

        original = PrivateStep._check
        mine = module.Worker(module.WorkerSettings(**settings))

        def check(self, keys, phase, clip_norm):
            if mine.rank == rank and keys.step == step and Path(flag).exists():
                if not keep:
                    Path(flag).unlink()
                os._exit(17)
            original(self, keys, phase, clip_norm)

        PrivateStep._check = check
        try:
            return mine.run()
        finally:
            PrivateStep._check = original

    return train_worker


def slow_worker(pause_s: float):
    """Returns a worker function whose steps take long enough to be watched."""

    def train_worker(settings):
        import time

        from pft_ray.cluster import worker as module
        from pft_ray.training.step import PrivateStep

        original = PrivateStep._check

        def check(self, keys, phase, clip_norm):
            time.sleep(pause_s)
            original(self, keys, phase, clip_norm)

        PrivateStep._check = check
        try:
            return module.Worker(module.WorkerSettings(**settings)).run()
        finally:
            PrivateStep._check = original

    return train_worker


@pytest.fixture
def watchable(monkeypatch):
    """Steps of at least 0.25 s: the driver polls twice a second."""
    monkeypatch.setattr("pft_ray.cluster.fit.train_worker", slow_worker(0.25))


def test_a_worker_that_dies_twice_at_one_step_ends_the_run(
    fresh_home, job_folder, monkeypatch
):
    flag = job_folder / "die"
    flag.write_text("1")
    monkeypatch.setattr(
        "pft_ray.cluster.fit.train_worker",
        dying_worker(str(flag), rank=1, step=5, keep=True),
    )
    job = prepare(job_folder)
    with pytest.raises(RunFailedError, match="charged up to step"):
        PrivateTrainer(job).fit()
    (folder,) = [p for p in (job_folder / "runs").iterdir() if p.is_dir()]
    assert not (folder / "report.json").exists()
    assert not (folder / "adapter").exists()
    assert json.loads((folder / "operator.json").read_text())["status"] == "failed"


def test_t_max_used_up_halts_with_a_usable_adapter(
    fresh_home, job_folder, monkeypatch, quiet
):
    flag = job_folder / "die"
    flag.write_text("1")
    monkeypatch.setattr(
        "pft_ray.cluster.fit.train_worker", dying_worker(str(flag), rank=0, step=11)
    )
    job = prepare(job_folder, privacy__fault_reserve=2)
    result = PrivateTrainer(job).fit()
    assert result.status == "budget_exhausted"
    notes = operator(result)
    assert notes["num_steps_charged"] == 18
    assert 8 <= notes["num_steps_in_model"] < 16
    assert (result.folder / "adapter" / "adapter_model.safetensors").exists()
    assert_sound(result, job)
    from pft_ray.cluster.released import predict_texts

    found = predict_texts(result.folder, ["word1 word2 word3"])
    assert found[0]["label"] in ("no", "yes")


def test_a_signal_finishes_the_grant_checkpoints_and_can_be_resumed(
    fresh_home, job_folder, quiet, watchable
):
    job = prepare(job_folder)
    sent = []

    def interrupt(status):
        if status["step"] >= 4 and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    first = PrivateTrainer(job, on_progress=interrupt).fit()
    assert first.status == "interrupted"
    assert first.signal == signal.SIGTERM
    assert first.report is None
    second = PrivateTrainer(job).fit()
    assert second.resumed
    assert second.run_id == first.run_id
    assert second.status == "completed"
    assert_sound(second, job)
    assert_same_report(second.report, quiet.report)


def test_an_older_run_folder_put_back_does_not_lower_what_was_spent(
    fresh_home, job_folder, watchable
):
    import shutil

    job = prepare(job_folder)
    copies = []

    def copy_early(status):
        folders = list((job_folder / "runs").glob("tiny-*/checkpoints/*/step-000004*"))
        if folders and not copies:
            source = next((job_folder / "runs").glob("tiny-*"))
            shutil.copytree(source, job_folder / "old" / source.name)
            copies.append(source)
        if status["step"] >= 12 and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    sent: list[int] = []
    first = PrivateTrainer(job, on_progress=copy_early).fit()
    if first.status == "completed":
        pytest.fail("the run was too quick to be interrupted")
    charged = operator(first)["num_steps_charged"]
    shutil.rmtree(first.folder)
    shutil.copytree(job_folder / "old" / first.folder.name, first.folder)
    second = PrivateTrainer(job).fit()
    assert second.resumed
    assert operator(second)["num_steps_charged"] > charged
    assert_sound(second, job)


def test_a_worker_without_units_and_empty_batches_make_every_step(
    fresh_home, job_folder
):
    """Six records on three workers: some ranks and most batches are empty."""
    from tests.tiny_job import make_rows, write_csv

    write_csv(job_folder / "data.csv", make_rows(8))
    job = prepare(
        job_folder,
        data__num_train=6,
        data__num_validation=2,
        training__batch_size=None,
        training__sample_rate=0.05,
        privacy__delta=1e-3,
        cluster__workers=3,
    )
    result = PrivateTrainer(job).fit()
    assert result.status == "completed"
    assert operator(result)["num_steps_released"] == 16
    assert_sound(result, job)


def test_the_driver_waits_in_a_thread_too(fresh_home, job_folder):
    """A program may call fit from a thread, where signals cannot be handled."""
    job = prepare(job_folder, cluster__workers=1)
    box = []
    thread = threading.Thread(target=lambda: box.append(PrivateTrainer(job).fit()))
    thread.start()
    wait_until(lambda: not thread.is_alive(), 120, "the run")
    assert box[0].status == "completed"

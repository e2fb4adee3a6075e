"""Drivers and reservations: who continues which run, who waits, what expires."""

from __future__ import annotations

import pytest

from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.reservations import reserve_job
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import MustWaitError, ReservationExpiredError, ResumeError
from pft_ray.ledger import Ledger
from tests.contracts.stage import set_stage
from tests.tiny_job import write_job


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    path = write_job(tmp_path / "job", cluster__workers=1)
    create_budget(path, runs=2)
    return path


@pytest.fixture
def ledger(job, tmp_path):
    with Ledger.open(tmp_path / "home" / "ledger.db") as opened:
        yield opened


def statuses(ledger):
    return [run.status for run in ledger.runs()]


def test_train_continues_exactly_the_reserved_run(job, ledger, monkeypatch):
    set_stage(monkeypatch)
    reserved = reserve_job(job)["run_id"]
    result = PrivateTrainer(job).fit()
    assert (result.run_id, result.status) == (reserved, "completed")
    assert result.report["ledger"]["sequence"] == 1
    assert statuses(ledger) == ["completed"]


def test_train_takes_up_no_run_that_waits_left_or_expired(job, ledger, monkeypatch):
    stage = set_stage(monkeypatch)
    first = reserve_job(job, expires_s=1)["run_id"]
    plan, envelopes = ledger.run_status(first).plan, ledger.run_status(first).envelopes
    ledger.queue.expire(first, 0)
    second = reserve_job(job)["run_id"]
    third = reserve_job(job)["run_id"]
    ledger.queue.request("waits", plan, envelopes)
    (job.parent / "runs" / "waits").mkdir()
    (job.parent / "runs" / "waits" / "plan.json").write_text("{}")
    for run_id, error in (("waits", ResumeError), (first, ReservationExpiredError)):
        with pytest.raises(error):
            PrivateTrainer(job).fit(resume=run_id)
    assert PrivateTrainer(job).fit().run_id == third
    ledger.release_reservation(second)
    with pytest.raises(MustWaitError):
        PrivateTrainer(job).fit()
    ledger.queue.leave("waits")
    stage.checkpoints.clear()  # of the run before
    result = PrivateTrainer(job).fit()
    assert result.run_id not in (first, second, third, "waits")
    assert statuses(ledger) == ["expired", "released", "completed", "left", "completed"]


def test_fit_waits_for_its_turn_and_then_runs(job, ledger, monkeypatch):
    set_stage(monkeypatch)
    held = [reserve_job(job)["run_id"] for _ in range(2)]
    seen = []

    def on_wait(row):
        seen.append(row)
        if len(seen) == 2:
            ledger.release_reservation(held[0])

    result = PrivateTrainer(job, on_wait=on_wait).fit(new=True, wait=True)
    assert result.status == "completed"
    assert not result.resumed
    assert seen[0].run_id == result.run_id
    assert (seen[0].place, seen[0].num_ahead) == (1, 0)
    assert statuses(ledger) == ["released", "reserved", "completed"]


def test_an_interrupted_wait_leaves_nothing_behind(job, ledger, monkeypatch):
    set_stage(monkeypatch)
    for _ in range(2):
        reserve_job(job)

    def interrupt(row):
        raise KeyboardInterrupt

    trainer = PrivateTrainer(job, on_wait=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(new=True, wait=True)
    assert statuses(ledger) == ["reserved", "reserved", "left"]
    folders = {path.name for path in (job.parent / "runs").iterdir() if path.is_dir()}
    assert folders == {run.run_id for run in ledger.runs()[:2]}
    assert ledger.queue.waiting() == []


def test_waiting_does_not_help_who_asks_for_what_was_used(job, ledger, monkeypatch):
    """Two runs are charged while a third waits: it is told, and holds nobody up."""
    set_stage(monkeypatch)
    for _ in range(2):
        reserve_job(job)

    def use_all(row):
        for number in range(2):
            run_id = ledger.runs()[number].run_id
            epoch = ledger.take_epoch(run_id)
            attempt = ledger.open_attempt(run_id, epoch, 0, "start")
            ledger.charge_steps(run_id, epoch, attempt, 0, 1, f"{number:032x}")

    with pytest.raises(Exception, match="no waiting would help") as found:
        PrivateTrainer(job, on_wait=use_all).fit(new=True, wait=True)
    assert found.value.code == "budget-refused"
    assert statuses(ledger)[2] == "left"


def test_every_coordinator_lets_time_limits_pass(job, ledger, monkeypatch):
    """Of any run of its ledger, on the polls for status, by its own clock."""
    stage = set_stage(monkeypatch)
    mine = reserve_job(job)["run_id"]
    other = reserve_job(job, expires_s=100)["run_id"]
    now = [0.0]

    def jump(status):
        now[0] += 60

    start = stage.start_coordinator

    def start_coordinator(config, cls):
        handle = start(config, cls)
        stage.coordinator._time_limits._clock = lambda: now[0]
        stage.coordinator.status()
        return handle

    monkeypatch.setattr("pft_ray.cluster.trainer.start_coordinator", start_coordinator)
    monkeypatch.setattr("pft_ray.cluster.trainer._POLL_S", 0.05)
    trainer = PrivateTrainer(job, on_progress=jump)
    result = trainer.fit(resume=mine)
    assert result.status == "completed"
    assert ledger.run_status(other).status == "expired"


def test_a_reservation_that_expires_while_ray_starts_is_told_in_words(
    job, ledger, monkeypatch
):
    set_stage(monkeypatch)
    run_id = reserve_job(job, expires_s=1)["run_id"]

    def check_placement(workers, *_args, **_options):
        ledger.queue.expire(run_id, 0)
        return workers

    monkeypatch.setattr("pft_ray.cluster.trainer.check_placement", check_placement)
    with pytest.raises(ReservationExpiredError):
        PrivateTrainer(job).fit()
    assert statuses(ledger) == ["expired"]


@pytest.mark.parametrize("at", ["start", "grant"])
def test_a_run_that_expires_under_its_own_driver_ends_in_words(
    job, ledger, monkeypatch, at
):
    """Between taking the run and its first grant; nothing is charged or released."""
    stage = set_stage(monkeypatch)
    run_id = reserve_job(job, expires_s=100)["run_id"]
    start = stage.start_coordinator

    def start_coordinator(config, cls):
        handle = start(config, cls)
        if at == "start":
            assert ledger.queue.expire(run_id, 1)
            return handle
        request = stage.coordinator.request

        def late(*args):
            ledger.queue.expire(run_id, 1)
            return request(*args)

        monkeypatch.setattr(stage.coordinator, "request", late)
        return handle

    monkeypatch.setattr("pft_ray.cluster.trainer.start_coordinator", start_coordinator)
    with pytest.raises(ReservationExpiredError):
        PrivateTrainer(job).fit()
    assert statuses(ledger) == ["expired"]
    assert ledger.run_status(run_id).num_steps_charged == 0
    assert [block.reserved_epsilon for block in ledger.blocks()] == [0.0, 0.0]
    assert not (job.parent / "runs" / run_id / "report.json").exists()

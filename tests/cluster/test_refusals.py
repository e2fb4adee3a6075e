"""A budget that is too small: refused before data is read, with what would fit."""

from __future__ import annotations

import pytest

from pft_ray.accounting.accountants import epsilon
from pft_ray.accounting.events import PoissonGaussian, Repeat
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import BudgetError
from pft_ray.ledger import Ledger
from tests.tiny_job import write_job


def test_a_plan_that_does_not_fit_is_refused_before_data_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    job = write_job(tmp_path / "job")
    made = create_budget(job, epsilon=6.0, delta=1e-5)
    before = Ledger.open(made["ledger"]).position()
    (tmp_path / "job" / "data.csv").unlink()  # reading it would fail
    trainer = PrivateTrainer(job)
    with pytest.raises(BudgetError) as caught:
        trainer.fit()
    error = caught.value
    assert error.exit_code == 3
    assert "epsilon 6" in error.message
    assert Ledger.open(made["ledger"]).position() == before
    plan, found = trainer.built.plan, error.details
    steps = found["fits_num_steps"] + plan.fault_reserve
    assert epsilon(Repeat(plan.step_event, steps), plan.delta) <= 6.0
    assert epsilon(Repeat(plan.step_event, steps + 2), plan.delta) > 6.0
    rate = found["fits_batch_size"] / plan.size
    smaller = PoissonGaussian(rate, plan.noise_multiplier)
    assert epsilon(Repeat(smaller, plan.num_steps_max), plan.delta) <= 6.0
    louder = PoissonGaussian(plan.sample_rate, found["fits_noise_multiplier"])
    assert epsilon(Repeat(louder, plan.num_steps_max), plan.delta) <= 6.0
    assert "steps" in error.fix

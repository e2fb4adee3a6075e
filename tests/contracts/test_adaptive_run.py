"""Whole runs whose clip norm moves: one C on all ranks, kept over deaths, released."""

from __future__ import annotations

import json
import math

import pytest

from pft_ray.cluster import trainer
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.training.step import take_fraction
from tests.contracts.stage import FIXED, FixedKeys, Stage, set_stage
from tests.tiny_job import job_dict, write_job

PHASES = [
    phase | {"clipping": "adaptive", "quantile": {"target": 0.6, "learning_rate": 0.4}}
    for phase in job_dict()["training"]["phases"]
]
USERS = {
    "data__user": "sender",
    "data__num_train": 73,
    "training__batch_size": 20,
    "privacy__unit": "user",
    "privacy__max_records_per_user": 3,
    "privacy__num_train_records": 200,
}


def run(folder, monkeypatch, *, die_at=(), workers=2, **changes):
    """Makes a run of the tiny job under fixed keys; returns it and operator.json."""
    monkeypatch.setenv("PFT_HOME", str(folder / "home"))
    keys = folder / "home" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    (keys / "fingerprint.key").write_bytes(FIXED)
    (keys / "fingerprint.key").chmod(0o600)
    fields = {
        "privacy__epsilon": None,
        "privacy__noise_multiplier": 1.0,
        "training__phases": PHASES,
        "training__noise_shares": 2,
        "cluster__workers": workers,
    }
    path = write_job(folder / "job", rows=300, **(fields | changes))
    text = path.read_text().replace("evaluation:\n  spare_looks: 1", "evaluation: null")
    path.write_text(text)
    create_budget(path)
    set_stage(monkeypatch, Stage(die_at=list(die_at)))
    monkeypatch.setattr(trainer, "new_run_id", lambda _name: "run-1")
    monkeypatch.setattr(PrivateTrainer, "coordinator_class", FixedKeys)
    result = PrivateTrainer(path).fit()
    assert result.status == "completed"
    notes = json.loads((result.folder / "operator.json").read_bytes())
    return result, notes


def check_lineage(notes):
    used, now = notes["clip_norms"]["used"], notes["clip_norms"]["now"]
    assert len(used) == 16
    assert (used[0], used[8]) == (1.0, 0.5), "each phase starts at its own C"
    assert len(set(used)) == 16
    for last, phase_end in zip(now, (7, 15), strict=True):
        assert last != used[phase_end]
    return used


def moved(clip_norm, fraction):
    """The next C, as the paper has it, with the eta and gamma of the job."""
    return clip_norm * math.exp(-0.4 * (fraction - 0.6))


def test_a_run_moves_its_c_and_reports_the_last(tmp_path, monkeypatch):
    fractions = []

    def noted(*args):
        found = take_fraction(*args)
        fractions.append(found[1])
        return found

    monkeypatch.setattr("pft_ray.training.step.take_fraction", noted)
    result, notes = run(tmp_path, monkeypatch)
    used, now = check_lineage(notes), notes["clip_norms"]["now"]
    assert fractions[::2] == fractions[1::2], "two ranks, one reduced vector"
    after = [*used[1:8], now[0], *used[9:], now[1]]
    for before, fraction, found in zip(used, fractions[::2], after, strict=True):
        assert found == pytest.approx(moved(before, fraction), rel=1e-12)
    assert result.report["last_clip_norm"] == notes["clip_norms"]["now"]
    assert result.report["clip_norm"] == [1.0, 0.5]
    page = (result.folder / "report.html").read_text()
    assert "adaptive, 0.6 quantile" in page


def test_one_and_two_workers_have_the_same_sequence(tmp_path, monkeypatch):
    sequences = [
        check_lineage(run(tmp_path / str(n), monkeypatch, workers=n)[1]) for n in (1, 2)
    ]
    assert sequences[0] == pytest.approx(sequences[1], rel=1e-5)


def test_after_a_death_c_goes_on_from_the_checkpoint(tmp_path, monkeypatch):
    """Steps up to the checkpoint at 4 have one history, those after it another."""
    quiet = check_lineage(run(tmp_path / "quiet", monkeypatch)[1])
    _, notes = run(tmp_path / "died", monkeypatch, die_at=[6])
    assert notes["attempts"] == 2
    died = check_lineage(notes)
    assert died[:5] == quiet[:5], "C of step 5 is what the first four released"
    assert died[5:8] != quiet[5:8], "a new attempt has other noise"


@pytest.mark.parametrize("level", ["uls", "els"])
def test_users_vote_too(tmp_path, monkeypatch, level):
    changes = USERS | {"privacy__user_level": level}
    result, notes = run(tmp_path, monkeypatch, **changes)
    check_lineage(notes)
    assert result.report["user"]["kind"] == level

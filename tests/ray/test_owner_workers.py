"""Three owners on three real Ray workers: each is charged to its own account."""

from __future__ import annotations

import json

import pytest

from pft_ray.assurance.claims import check_reports, collect_claims
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.errors import BudgetError, PlacementError
from pft_ray.ledger import Ledger
from pft_ray.ledger.home import keys_dir
from pft_ray.ledger.verify import verify
from tests.tiny_job import write_job

EPSILONS = {"a": 2.0, "b": 4.0, "c": 8.0}
SIZES = {"a": 60, "b": 90, "c": 150}
MEMBERS = [{"name": n, "size": SIZES[n], "epsilon": e} for n, e in EPSILONS.items()]


def test_three_workers_of_three_owners(fresh_home, job_folder):
    job = write_job(
        job_folder,
        privacy__mode="owners",
        privacy__epsilon=None,
        privacy__owners={"field": "sender", "salt": "o", "members": MEMBERS},
        cluster__workers=3,
        cluster__cpus_per_worker=0.5,
    )
    create_budget(job, runs=1)
    trainer = PrivateTrainer(job)
    result = trainer.fit()
    assert result.status == "completed"
    report = result.report
    assert report["workers"] == 3
    for row in report["owners"]:
        declared = EPSILONS[row["name"]]
        assert 0.998 * declared < row["epsilon"] <= declared
        assert row["epsilon_against_colluders"] > row["epsilon"]
        assert row["block"] == f"tiny-data/train/{row['name']}"
    assert report["epsilon"] == max(row["epsilon"] for row in report["owners"])
    operator = json.loads((result.folder / "operator.json").read_text())
    assert (operator["attempts"], operator["num_steps_charged"]) == (1, 16)
    with Ledger.open(trainer.ledger_url, keys_dir=keys_dir(), create=False) as ledger:
        for name, epsilon in EPSILONS.items():
            status = ledger.block_status(f"tiny-data/train/{name}")
            assert (status.used_epsilon, status.remaining_epsilon) == (epsilon, 0)
        assert ledger.block_status("tiny-data/validation").used_epsilon == 2.0
        anchors = collect_claims(job_folder / "runs")
        verified = verify(ledger, anchors, fingerprint_key=ledger.fingerprint_key())
        assert check_reports(job_folder / "runs", verified) == 1
        position = ledger.position()
    # Nothing is left on any account: the second run is refused before it starts.
    with pytest.raises(BudgetError, match="owner 'a' is short") as caught:
        PrivateTrainer(job).fit(new=True)
    assert caught.value.exit_code == 3
    with Ledger.open(trainer.ledger_url, keys_dir=keys_dir(), create=False) as ledger:
        assert ledger.position() == position


def test_a_cluster_without_room_for_the_last_owner(fresh_home, job_folder):
    """Four CPUs hold two of three workers: the roster is short from its start."""
    owners = {"field": "sender", "salt": "o", "members": MEMBERS}
    changes = {
        "privacy__mode": "owners",
        "privacy__epsilon": None,
        "privacy__owners": owners,
        "cluster__workers": 3,
        "cluster__cpus_per_worker": 1.5,
        "cluster__placement_timeout_s": 1,
    }
    job = write_job(job_folder, **changes)
    create_budget(job)
    with pytest.raises(PlacementError, match="asks for 3 workers"):
        PrivateTrainer(job).fit()
    job = write_job(job_folder, **changes, cluster__tolerate_missing=1)
    result = PrivateTrainer(job).fit()
    assert result.status == "completed"
    assert result.report["tolerate_missing"] == 1
    events = (result.folder / "events.jsonl").read_text()
    assert '"short_roster"' in events
    assert '"workers": 2' in events

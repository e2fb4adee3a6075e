"""Accounts of owners from the file to the report: each pays for its own units."""

from __future__ import annotations

import html
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.cluster.inputs import load_inputs
from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.config import build_job, load_job, read_job
from pft_ray.data.owners import OwnerRule
from pft_ray.errors import ConfigError, DataError, GrantRefusedError, InputError
from pft_ray.ledger import Ledger
from pft_ray.ledger.home import keys_dir, ledger_location
from pft_ray.ledger.owner_blocks import are_apart
from tests.contracts.stage import Stage, set_stage
from tests.e2e.refusals import pft
from tests.tiny_job import job_dict, make_rows, write_csv, write_job

MEMBERS = [
    {"name": "a", "size": 60, "epsilon": 2.0},
    {"name": "b", "size": 90, "epsilon": 4.0},
    {"name": "c", "size": 150, "epsilon": 8.0},
]
JOB = {
    "privacy__mode": "owners",
    "privacy__epsilon": None,
    "privacy__owners": {"field": "tenant", "members": MEMBERS},
    "cluster__workers": 3,
}
ACCOUNTS = {f"tiny-data/train/{m['name']}": m["epsilon"] for m in MEMBERS}


def rows_of(num_rows=400, shift=0):
    rows = make_rows(num_rows, shift)
    return [row | {"tenant": "abcbc"[i % 5]} for i, row in enumerate(rows)]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job of three owners that a column names, on private data."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "job"
    folder.mkdir()
    write_csv(folder / "data.csv", rows_of())
    return write_job(folder, **JOB)


def opened():
    return Ledger.open(ledger_location(None), keys_dir=keys_dir())


names = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=5, unique=True)


@given(names, st.data(), st.one_of(st.none(), st.text(min_size=1, max_size=3)))
def test_a_value_is_in_the_cut_of_its_owner_alone(owners, data, salt):
    sizes = data.draw(
        st.lists(st.integers(1, 9), min_size=len(owners), max_size=len(owners))
    )
    rule = OwnerRule(tuple(owners), tuple(sizes), salt)
    cuts = [rule.cut(number, "tenant") for number in range(len(owners))]
    for one, cut in enumerate(cuts):
        for other, another in enumerate(cuts):
            assert are_apart(cut, another) == (one != other)
    value = data.draw(st.one_of(st.sampled_from("abcdefgh"), st.text(max_size=5)))
    owner = rule.number(value)
    # Another rule may tell that its cuts hold none of the first one's units only when
    # no value is in both.
    moved = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    again = OwnerRule(tuple("hgfed"[: len(moved)]), tuple(moved), salt)
    number = again.number(value)
    if owner is not None and number is not None:
        assert not are_apart(cuts[owner], again.cut(number, "tenant"))


def test_an_account_for_each_owner_is_made_once(job):
    first, again = create_budget(job, runs=3), create_budget(job, runs=3)
    assert [block["created"] for block in first["blocks"]] == [True] * 4
    assert [block["created"] for block in again["blocks"]] == [False] * 4
    assert not again["registered"]
    for block, member in zip(first["blocks"], MEMBERS, strict=False):
        assert block["name"] == f"tiny-data/train/{member['name']}"
        assert block["owner"] == member["name"]
        assert block["epsilon"] == 3 * member["epsilon"]
        assert block["runs_left"] == 3
    assert first["blocks"][3]["name"] == "tiny-data/validation"
    assert first["blocks"][3]["epsilon"] == 3 * 2.0, "the least of all owners'"
    assert "owner" not in first["blocks"][3]
    with opened() as ledger:
        assert "owner:tenant" in ledger.dataset("tiny-data").namespaces
        for status in ledger.blocks():
            assert status.overlapping == ()
    table = pft("budget", "show").out
    assert all(name in table for name in ACCOUNTS)
    shown = " ".join(pft("plan", job).out.split())
    assert "block tiny-data/train/b asks epsilon 4; 12 left now, 8 after" in shown


def test_a_record_cannot_move_to_another_owner_after_registration(job, monkeypatch):
    create_budget(job)
    data, spec = job.parent / "data.csv", load_job(job)
    plan = build_job(spec, job.parent).plan
    rows = rows_of()
    assert rows[0]["tenant"] == "a"
    moved = [rows[0] | {"tenant": "b"}, *rows[1:]]
    swapped = [rows[0] | {"tenant": "b"}, rows[1] | {"tenant": "a"}, *rows[2:]]

    class Source:
        """What a worker asks the coordinator for."""

        def data_key(self):
            with opened() as ledger:
                return ledger.fingerprint_key()

        def dataset_commitment(self, name):
            with opened() as ledger:
                return ledger.dataset(name).commitment

    for edited in (moved, swapped, [rows[0] | {"tenant": "none"}, *rows[1:]]):
        write_csv(data, edited)
        with pytest.raises(DataError, match="not those registered"):
            PrivateTrainer(job).check()
        with pytest.raises(DataError, match="not those registered"):
            load_inputs(spec, job.parent, Source(), rank=0, world=1, plan=plan)
        with pytest.raises(InputError, match="registered with other data"):
            create_budget(job)
    write_csv(data, rows)
    assert PrivateTrainer(job).check()["would_resume"] is False


def test_records_are_known_again_whoever_owns_them(job, tmp_path):
    create_budget(job)
    other = tmp_path / "other"
    other.mkdir()
    rows = [row | {"tenant": "c"} for row in rows_of(400, shift=399)]
    write_csv(other / "data.csv", rows)
    copy = write_job(other, **(JOB | {"data__registration": "moved"}))
    with pytest.raises(InputError, match="shares units with 'tiny-data'"):
        create_budget(copy)
    write_csv(other / "data.csv", rows[1:])
    assert create_budget(copy)["registered"]


def test_the_jobs_rule_has_to_be_that_of_the_accounts(job):
    create_budget(job)
    sizes = [m | {"size": 100} for m in MEMBERS]
    salted = {"field": "tenant", "salt": "s", "members": sizes}
    write_job(job.parent, **(JOB | {"privacy__owners": salted}))
    with pytest.raises(InputError, match="owner differ"):
        PrivateTrainer(job).check()
    write_job(job.parent, **(JOB | {"privacy__owners": None} | CENTRAL))
    before = pft("budget", "show", "--json").json
    create = pft("budget", "create", job)
    assert (create.code, pft("budget", "show", "--json").json) == (2, before)


CENTRAL = {"privacy__mode": "central", "privacy__epsilon": 8.0}


def test_a_run_is_charged_to_every_account_and_verifies(job, monkeypatch):
    create_budget(job, runs=2)
    set_stage(monkeypatch)
    result = PrivateTrainer(job).fit()
    report = result.report
    plan = build_job(load_job(job), job.parent).plan
    assert {row["block"]: row["epsilon"] for row in report["owners"]} == {
        block: pytest.approx(epsilon, rel=2e-3) for block, epsilon in ACCOUNTS.items()
    }
    assert [row["delta"] for row in report["owners"]] == [1e-5] * 3
    lines = {line["name"]: line for line in report["blocks"]}
    assert list(lines) == [*ACCOUNTS, "tiny-data/validation"]
    for name, epsilon in ACCOUNTS.items():
        assert lines[name]["run_epsilon"] == epsilon
        assert lines[name]["epsilon"] == 2 * epsilon
        assert lines[name]["owner"] == name[-1]
    worst = plan.owners.members[plan.owners.worst()].name
    assert report["block"]["name"] == f"tiny-data/train/{worst}"
    assert report["epsilon"] == max(row["epsilon"] for row in report["owners"])
    assert report["delta"] == 1e-5, "no unit is in two of the blocks"
    page = html.unescape((result.folder / "report.html").read_text())
    assert all(name in page for name in ACCOUNTS)
    with opened() as ledger:
        for name, epsilon in ACCOUNTS.items():
            status = ledger.block_status(name)
            assert (status.used_epsilon, status.remaining_epsilon) == (epsilon, epsilon)
    check = ("budget", "verify", "--runs", job.parent / "runs", "--json")
    verified = pft(*check)
    assert (verified.code, verified.json["num_reports_checked"]) == (0, 1)
    assert verified.json["runs"][0]["epsilon"] == pytest.approx(report["epsilon"])
    path = result.folder / "report.json"
    for change in (
        {"epsilon": 0.5 * report["owners"][0]["epsilon"]},
        {"name": "b"},
        {"block": "tiny-data/train/b"},
        {"delta": 1e-6},
    ):
        first, *rest = report["owners"]
        edited = report | {"owners": [first | change, *rest]}
        path.write_text(json.dumps(edited))
        assert pft(*check).code == 4, change
    path.write_text(json.dumps({k: v for k, v in report.items() if k != "owners"}))
    assert pft(*check).code == 4


def test_a_short_account_refuses_the_run_and_names_its_owner(job):
    create_budget(job)
    rich = [m | {"epsilon": 3.0} if m["name"] == "a" else m for m in MEMBERS]
    owners = JOB["privacy__owners"] | {"members": rich}
    write_job(job.parent, **(JOB | {"privacy__owners": owners}))
    with opened() as ledger:
        before = ledger.position()
    for verb in (["train"], ["train", "--dry-run"]):
        refused = pft(*verb, job, "--json")
        assert refused.code == 3
        assert "owner 'a' is short" in str(refused.json["error"])
    with opened() as ledger:
        assert ledger.position() == before
        assert ledger.runs() == []
    assert not (job.parent / "runs").exists()
    asked = [b["fits"] for b in pft("plan", job, "--json").json["blocks"]]
    assert asked == [False, True, True, False]


SHORT = JOB | {"cluster__tolerate_missing": 1}


def test_a_run_without_its_last_owner(job, monkeypatch):
    write_job(job.parent, **SHORT)
    said = pft("plan", job, "--json").json
    assert said["tolerance"]["noise_inflation"] == pytest.approx(1.5**0.5)
    central = pft("plan", job, "--json", "--set", "cluster.tolerate_missing=0").json
    assert said["noise_multiplier"] == central["noise_multiplier"]
    shown = " ".join(pft("plan", job).out.split())
    assert "1 of 3 workers may be absent when a roster is fixed" in shown
    assert "+22.5% noise when all are there" in shown
    create_budget(job, runs=2)
    set_stage(monkeypatch, Stage(absent=1))
    result = PrivateTrainer(job).fit()
    assert result.status == "completed"
    report = result.report
    assert (report["tolerate_missing"], report["workers"]) == (1, 3)
    assert "with 1 worker(s) absent" in report["owners_note"]
    # Every account pays, whoever was there: who is absent is for the operator only.
    assert {line["run_epsilon"] for line in report["blocks"]} == {2.0, 4.0, 8.0}
    assert "3, 3 (1 may be absent)" in (result.folder / "report.html").read_text()
    events = (result.folder / "events.jsonl").read_text()
    assert '"short_roster"' in events
    set_stage(monkeypatch)
    whole = PrivateTrainer(job).fit(new=True).report
    assert set(whole) == set(report)
    assert whole["owners"] == report["owners"]


def test_an_owner_too_many_away_makes_no_step(job, monkeypatch):
    write_job(job.parent, **SHORT)
    create_budget(job)
    set_stage(monkeypatch, Stage(absent=2))
    with pytest.raises(GrantRefusedError, match="1 of 3 workers"):
        PrivateTrainer(job).fit()
    with opened() as ledger:
        (run,) = ledger.runs()
        assert (run.num_attempts, run.num_steps_charged) == (0, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (CENTRAL | {"privacy__owners": None}, "no absence costs anything"),
        ({"cluster__tolerate_missing": 3}, "fewer than all workers"),
        ({"training__noise_shares": 6}, "each worker has one share"),
    ],
)
def test_jobs_that_cannot_tolerate_absences(change, says):
    read_job(job_dict(**SHORT))
    with pytest.raises(ConfigError) as caught:
        read_job(job_dict(**(SHORT | change)))
    assert says in caught.value.fix

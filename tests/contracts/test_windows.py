"""Blocks of time windows from the file to the ledger."""

from __future__ import annotations

import pytest

from pft_ray.cluster.registration import create_budget
from pft_ray.config import build_job, load_job
from pft_ray.data.prepare import prepare_data
from pft_ray.errors import ConfigError, InputError
from pft_ray.ledger import BlockSpec, Ledger, dataset_commitment
from pft_ray.ledger.home import keys_dir, ledger_location
from tests.tiny_job import make_rows, write_csv, write_job

JANUARY = {"field": "day", "since": "2026-01-01", "until": "2026-02-01"}
FEBRUARY = {"field": "day", "since": "2026-02-01", "until": "2026-03-01"}


def rows_of(num_rows=400):
    days = ("2026-01-31T23:59:59", "2026-02-01", "2026-02-28", "never")
    rows = make_rows(num_rows)
    return [row | {"day": days[i % 4]} for i, row in enumerate(rows)]


def job_of(folder, window, name, **changes):
    """A job of one window whose blocks are named after it."""
    folder.mkdir(exist_ok=True)
    write_csv(folder / "data.csv", rows_of())
    path = write_job(
        folder,
        data__split__window=window,
        privacy__block=f"{name}/train",
        evaluation__block=f"{name}/validation",
        **changes,
    )
    write_csv(folder / "data.csv", rows_of())
    return path


@pytest.fixture
def months(tmp_path, monkeypatch):
    """Budgets of January and February, cut from one registration."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    jobs = {
        "january": job_of(tmp_path / "january", JANUARY, "january"),
        "february": job_of(tmp_path / "february", FEBRUARY, "february"),
    }
    first = create_budget(jobs["january"])
    second = create_budget(jobs["february"])
    assert (first["registered"], second["registered"]) == (True, False)
    return jobs


def opened():
    return Ledger.open(ledger_location(None), keys_dir=keys_dir())


def prepared(job):
    """What a job reads of its file, as its workers do."""
    built = build_job(load_job(job), job.parent)
    with opened() as ledger:
        return prepare_data(built.job.data_spec(job.parent), ledger.fingerprint_key())


def numbers_of(job):
    """Places in the file of all records that a job reads."""
    found = prepared(job)
    return {*found.train.numbers, *found.validation.numbers}


def test_each_month_reads_its_own_records_and_the_faulty_none(months):
    january, february = (numbers_of(months[name]) for name in months)
    assert january == {n for n in range(1, 401) if n % 4 == 1}
    assert february == {n for n in range(1, 401) if n % 4 in (2, 3)}


def test_blocks_of_two_months_compose_in_parallel(months):
    with opened() as ledger:
        status = {block.name: block for block in ledger.blocks()}
        assert len(status) == 4
        assert all(block.overlapping == () for block in status.values())
        both = dict(status["january/train"].predicate)
        both["window"] = {**both["window"], "until": "2026-02-02T00:00:00.000000Z"}
        ledger.create_block(BlockSpec("both", "tiny-data", both, "record", 1.0, 1e-6))
        status = ledger.block_status("both")
        assert set(status.overlapping) == {"january/train", "february/train"}
        users = [
            BlockSpec(f"user/{name}", "tiny-data", predicate, "user", 1.0, 1e-6)
            for name, predicate in (
                ("january", ledger.block_status("january/train").predicate),
                ("february", ledger.block_status("february/train").predicate),
            )
        ]
        for spec in users:
            ledger.create_block(spec)
        # A user's records lie in many windows.
        assert "user/february" in ledger.block_status("user/january").overlapping


def test_a_record_cannot_be_moved_to_another_month_after_it_was_charged(months):
    job = months["february"]
    rows = rows_of()
    rows[0]["day"] = "2026-02-03"
    write_csv(job.parent / "data.csv", rows)
    with opened() as ledger:
        key, known = ledger.fingerprint_key(), ledger.dataset("tiny-data").commitment
    assert dataset_commitment(key, prepared(job).fingerprints) != known
    with pytest.raises(InputError, match="other data"):
        create_budget(job)


def test_a_window_that_the_registration_does_not_commit_to_is_refused(months):
    with opened() as ledger:
        predicate = dict(ledger.block_status("january/train").predicate)
        predicate["window"] = {**predicate["window"], "field": "other"}
        position = ledger.position()
        with pytest.raises(InputError, match="without the moments"):
            ledger.create_block(
                BlockSpec("x", "tiny-data", predicate, "record", 1.0, 1e-6)
            )
        predicate["window"] = {"field": "day", "since": "2026", "until": "2027"}
        with pytest.raises(InputError, match="cannot be read"):
            ledger.create_block(
                BlockSpec("x", "tiny-data", predicate, "record", 1.0, 1e-6)
            )
        assert ledger.position() == position


def test_a_date_without_quotes_is_refused_with_the_cure(months):
    path = months["january"]
    words = path.read_text().replace("'2026-01-01'", "2026-01-01")
    assert words != path.read_text()
    path.write_text(words)
    with pytest.raises(ConfigError, match="since is read as a date"):
        load_job(path)


def test_two_mails_of_one_text_cannot_change_days_with_one_another(
    tmp_path, monkeypatch
):
    """Each column by itself looks the same; together they decide other blocks."""
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    rows = [
        {"text": f"mail {i}", "label": "ab"[i % 2], "sender": f"s{i}", "day": 5}
        for i in range(40)
    ]
    window = {"field": "day", "since": 0, "until": 10}
    job = job_of(
        tmp_path / "job",
        window,
        "first",
        data__split={"field": "sender", "window": window},
        data__labels=["a", "b"],
        data__id=None,
        data__user=None,
    )
    pairs = []
    for days in ((5, 15), (15, 5)):
        twins = [
            {"text": "twin", "label": "a", "sender": name, "day": day}
            for name, day in zip(("one", "two"), days, strict=True)
        ]
        write_csv(job.parent / "data.csv", [*rows, *twins])
        create_budget(job) if not pairs else None
        pairs.append(prepared(job))
    marginal = [
        {k: v.tobytes() for k, v in p.fingerprints.items() if "+" not in k}
        for p in pairs
    ]
    assert marginal[0] == marginal[1]
    with pytest.raises(InputError, match="other data"):
        create_budget(job)

"""What may leave the house holds nothing of the data, its size, or what went on."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import stat
from pathlib import Path

import pytest

from pft_ray.cluster.registration import create_budget
from pft_ray.cluster.trainer import PrivateTrainer
from pft_ray.crypto import KEY_BYTES
from pft_ray.data import prepare_data
from pft_ray.data.units import content_bytes
from pft_ray.ledger import Ledger
from tests.contracts.searches import (
    Haystack,
    find_hashes,
    find_numbers,
    find_paths,
    find_times,
    find_words,
    hashes_of,
    leaves,
    release_files,
    shape_of,
)
from tests.contracts.stage import Stage, set_stage
from tests.tiny_job import make_rows, write_csv, write_job

NUM_ROWS = 437
REPORT_KEYS = {
    *("schema_version", "pft_ray_version", "run_id", "status", "unit", "relation"),
    *("relation_domain", "relation_note", "guarantee_scope", "scope_note"),
    *("guarantee", "not_covered", "epsilon", "delta", "target_epsilon"),
    *("epsilon_by_accountant", "block", "blocks", "noise_multiplier", "sample_rate"),
    *("clip_norm", "phases", "num_steps_planned", "num_steps_max", "workers"),
    *("utility", "utility_all", "interval_note", "ledger", "plan_digest"),
}
OPERATORS_WORDS = (
    *("attempt", "charged", "dropped", "duplicate", "faulty", "truncated", "found"),
    *("second", "elapsed", "duration", "timing", "hostname", "exit_cause"),
)


def rows_of_tickets(num_rows: int) -> list[dict]:
    """Rows whose ids and senders are long enough to be searched for."""
    rows = make_rows(num_rows)
    for number, row in enumerate(rows):
        row["id"] = f"ticket-{number * 7919:07d}"
        row["sender"] = f"person-{number * 104729:09d}@example.org"
    rows[3]["label"] = "maybe"  # not declared: dropped
    rows[5]["text"] = ""  # empty: dropped
    rows[8]["text"] = " ".join(["word1"] * 60)  # truncated
    return rows


def run_tickets(folder: Path, monkeypatch, *, die_at=()):
    """Makes one run on private tickets; returns its result and where it came from."""
    monkeypatch.setenv("PFT_HOME", str(folder / "home"))
    job_folder = folder / "job"
    job_folder.mkdir(parents=True)
    write_csv(job_folder / "data.csv", rows_of_tickets(NUM_ROWS))
    job = write_job(job_folder, cluster__workers=2, data__split__field="sender")
    create_budget(job)
    set_stage(monkeypatch, Stage(die_at=list(die_at)))
    result = PrivateTrainer(job).fit()
    assert result.status == "completed"
    return result, job


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run in which a worker died once."""
    folder = tmp_path_factory.mktemp("tickets")
    with pytest.MonkeyPatch.context() as patch:
        return *run_tickets(folder, patch, die_at=[6]), folder


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """The same run in which nothing happened."""
    folder = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patch:
        result, _ = run_tickets(folder, patch)
        return result


def private_values(job: Path, folder: Path) -> dict[str, list[bytes]]:
    """Returns what is private, and what is made of it, as bytes."""
    rows = rows_of_tickets(NUM_ROWS)
    key = (folder / "home" / "keys" / "fingerprint.key").read_bytes()
    prepared = prepare_data(PrivateTrainer(job).built.job.data.spec(job.parent), key)
    raw = (job.parent / "data.csv").read_bytes()
    ids = [row["id"] for row in rows]
    texts = [row["text"] for row in rows if row["text"]]
    return {
        "texts": [text.encode() for text in texts],
        "ids": [value.encode() for value in ids],
        "people": [row["sender"].encode() for row in rows],
        "lines": [line for line in raw.splitlines() if line],
        "rows": [json.dumps(row).encode() for row in rows],
        "contents": [content_bytes(text) for text in texts],
        "whole": [
            raw,
            raw.strip(),
            *(j.join(v).encode() for j in ("", "\n", ",") for v in (ids, sorted(ids))),
            *(j.join(v).encode() for j in ("", "\n") for v in (texts, sorted(texts))),
            str(len(rows)).encode(),
        ],
        "keyed": [
            digest.tobytes()
            for block in (prepared.train, prepared.validation)
            for digest in block.digests
        ],
        "secret": [key],
    }


def counts_of(job: Path, folder: Path) -> set[int]:
    """Returns true sizes of the data of three digits: shorter ones stand anywhere."""
    key = (folder / "home" / "keys" / "fingerprint.key").read_bytes()
    spec = PrivateTrainer(job).built.job.data.spec(job.parent)
    prepared = prepare_data(spec, key)
    sizes = {len(prepared.train), len(prepared.validation), NUM_ROWS}
    for block in (prepared.train, prepared.validation):
        sizes |= {int((block.targets == c).sum()) for c in (0, 1)}
    sizes.add(len(prepared.train) + len(prepared.validation))
    return {size for size in sizes if size > 100}


def words_of(path: Path) -> str:
    """Returns a text file without the coordinates of its drawings."""

    def words(drawing: re.Match) -> str:
        return re.sub(r"<[^>]*>", " ", drawing.group())

    return re.sub("<svg.*?</svg>", words, path.read_text(), flags=re.DOTALL)


def test_the_search_finds_what_it_looks_for():
    """The searches below are no use if they are blind."""
    (digest,) = [d for name, d in hashes_of([b"secret"]) if name == "sha256"]
    for content in (digest, digest.hex().upper().encode(), digest.hex()[:16].encode()):
        assert find_hashes(b"xx" + content + b"yy", [b"other", b"secret"]) == ["sha256"]
    assert find_hashes(b"nothing of it", [b"secret"]) == []
    assert find_words(b"Hello PERSON-1@x", ["person-1@x", "bob"]) == ["person-1@x"]
    assert find_numbers('{"n": 437, "m": 4370, "x": 0.437}', [437, 43]) == [437]
    assert find_numbers("of 437 mails", [437]) == [437]
    assert find_paths('"base": "/home/ann/model"') == ["/home/ann/model"]
    assert find_times("at 2026-11-24") == ["2026-11-24"]
    assert find_times("took until 1795508876.3") == ["1795508876.3"]


def test_no_private_value_and_no_hash_of_one_is_released(finished):
    result, job, folder = finished
    values = private_values(job, folder)
    files = release_files(result.folder)
    assert {f.name for f in files} >= {"report.json", "report.html", "head.json"}
    words = [v.decode() for kind in ("texts", "ids", "people") for v in values[kind]]
    hidden = [value for kind in values for value in values[kind]]
    for path in [*files, result.folder / "plan.json"]:
        content = path.read_bytes()
        assert find_words(content, words) == [], path.name
        assert find_hashes(content, hidden) == [], path.name
        haystack = Haystack(content)
        for value in (*values["keyed"], *values["secret"]):
            assert not haystack.holds(value), path.name


def test_no_true_count_is_released(finished):
    result, job, folder = finished
    counts = counts_of(job, folder)
    assert len(counts) >= 5
    assert not counts & {300, 100}, "true sizes differ from the declared ones"
    for path in [*release_files(result.folder), result.folder / "plan.json"]:
        if path.suffix == ".safetensors":
            continue
        assert find_numbers(words_of(path), counts) == [], path.name


def test_no_time_no_place_and_no_operators_word_is_released(finished):
    result, job, _ = finished
    names = {getpass.getuser(), socket.gethostname(), platform.node()}
    places = [str(job.parent), str(Path.home()), *(n for n in names if len(n) > 4)]
    for path in release_files(result.folder):
        content = path.read_bytes()
        # The run's own name holds the day it started; that is for the operator to say.
        content = content.replace(result.run_id.encode(), b"RUN")
        text = content.decode(errors="replace")
        assert find_words(content, places) == [], path.name
        if path.suffix != ".safetensors":
            assert find_paths(text) == [], path.name
            assert find_times(text) == [], path.name
        if path.name.startswith("report"):
            assert find_words(content, OPERATORS_WORDS) == [], path.name


def test_the_report_has_known_keys_and_no_other(finished):
    result, _, _ = finished
    report = json.loads((result.folder / "report.json").read_bytes())
    assert set(report) == REPORT_KEYS
    paths = {path for path, _ in leaves(report)}
    assert {p for p in paths if p.startswith("ledger")} == {
        "ledger.sequence",
        "ledger.root",
    }
    assert {p for p in paths if p.startswith("utility_all")} == {
        *(
            "utility_all[].step",
            "utility_all[].phase",
            "utility_all[].metrics[].metric",
        ),
        *("utility_all[].metrics[].private", "utility_all[].metrics[].interval[]"),
        "utility_all[].metrics[].trivial",
    }


def test_a_death_does_not_show_in_what_is_released(finished, quiet):
    """Two runs on the same data, one with a second attempt: released alike."""
    result, _, _ = finished
    notes = json.loads((result.folder / "operator.json").read_bytes())
    assert notes["attempts"] == 2, "the death happened"
    assert notes["num_steps_charged"] > 16
    one, two = result.report, quiet.report
    released = ("run_id", "ledger", "utility", "utility_all")
    for name in one.keys() - set(released):
        assert one[name] == two[name], name
    assert one["ledger"]["sequence"] == two["ledger"]["sequence"] == 1
    names = [p.relative_to(result.folder) for p in release_files(result.folder)]
    assert names == [p.relative_to(quiet.folder) for p in release_files(quiet.folder)]
    for name in names:
        assert shape_of(result.folder / name) == shape_of(quiet.folder / name), name


def test_scaling_does_not_show_in_what_is_released(tmp_path, monkeypatch, quiet):
    """Decisions and resizes are in the events, and the report has no word of them."""
    from tests.contracts.stage import FixedKeys

    class Telling(FixedKeys):
        def open_attempt(self, tokens, start, reason):
            told = {"action": "grow", "num_workers": 2, "code": "zebra-code"}
            told |= {"reason": "zebra-reason", "impact": None, "workers": 1}
            self.tell_scaling(told, is_new=True)
            self._resizes._note("resized", step=5, num_workers=[1, 2])
            return super().open_attempt(tokens, start, reason)

    monkeypatch.setattr(PrivateTrainer, "coordinator_class", Telling)
    result, _ = run_tickets(tmp_path, monkeypatch)
    events = (result.folder / "events.jsonl").read_text()
    assert "zebra-reason" in events
    assert '"resized"' in events
    assert not (result.folder / "scaling.svg").exists(), "a run of a fixed size"
    files = release_files(result.folder)
    for path in files:
        words = ["zebra", "scaling", "resize"] if "report" in path.name else ["zebra"]
        assert find_words(path.read_bytes(), words) == [], path.name
    assert set(result.report) == set(quiet.report) == REPORT_KEYS
    names = [p.relative_to(result.folder) for p in files]
    assert names == [p.relative_to(quiet.folder) for p in release_files(quiet.folder)]
    for name in names:
        assert shape_of(result.folder / name) == shape_of(quiet.folder / name), name


def test_what_is_for_the_operator_can_be_read_by_the_operator_alone(finished):
    result, _, _ = finished
    for name in ("operator.json", "events.jsonl"):
        mode = stat.S_IMODE((result.folder / name).stat().st_mode)
        assert mode == 0o600, name
    checkpoints = result.folder / "checkpoints"
    assert stat.S_IMODE(checkpoints.stat().st_mode) & 0o077 == 0, (
        "names of checkpoints tell attempts, their headers the number of grants"
    )


def test_keys_are_in_no_file_of_the_run_and_not_in_the_ledger(tmp_path, monkeypatch):
    from tests.contracts.stage import FixedKeys

    seen: list[bytes] = []

    class Noting(FixedKeys):
        def open_attempt(self, tokens, start, reason):
            number = super().open_attempt(tokens, start, reason)
            seen.append(self._attempt.key)
            return number

        def _keys(self, current, rank, start, stop):
            steps = super()._keys(current, rank, start, stop)
            seen.extend(k for s in steps for k in (s.sample_key, *s.noise_keys))
            return steps

        def charge_look(self, *args):
            reply = super().charge_look(*args)
            seen.append(reply.key)
            return reply

    monkeypatch.setattr(PrivateTrainer, "coordinator_class", Noting)
    result, _ = run_tickets(tmp_path, monkeypatch)
    assert len(seen) > 16
    assert all(len(key) == KEY_BYTES for key in seen)
    everything = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any(p.name.startswith("ledger.db") for p in everything)
    for path in everything:
        content = path.read_bytes()
        for key in seen:
            assert key[:12] not in content, path.name
            assert key[:12].hex().encode() not in content.lower(), path.name
    with Ledger.open(tmp_path / "home" / "ledger.db") as ledger:
        assert ledger.run_status(result.run_id).status == "completed"

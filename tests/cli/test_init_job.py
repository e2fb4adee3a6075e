"""`pft init` writes jobs that load, and the jobs shipped cost what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pft_ray.config import build_plan, load_job
from tests.e2e.refusals import pft
from tests.tiny_job import make_rows, write_csv

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"question {k}"},
            {"role": "assistant", "content": f"answer {k}"},
        ]
    }
    for k in range(200)
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_labelled_text_becomes_a_classification(place):
    write_csv(place / "tickets.csv", make_rows(400))
    answer = pft("init", "tickets.csv")
    assert answer.code == 0, answer.err
    assert "makes them public" in " ".join(answer.out.split())
    assert "pft plan job.yaml" in answer.out
    text = Path("job.yaml").read_text()
    assert text.startswith("# The values below were read off the data.")
    job = load_job("job.yaml")
    assert (job.model.task, job.data.labels) == ("classification", ("no", "yes"))
    assert (job.data.text, job.data.label, job.data.id) == ("text", "label", "id")
    assert (job.data.num_train, job.data.num_validation) == (320, 80)
    assert job.data.public is False
    plan, epsilon = build_plan(job)
    assert epsilon <= job.privacy.epsilon == 3
    assert plan.size == 320


@pytest.mark.parametrize(
    ("name", "rows", "column"),
    [
        ("chats.jsonl", CHAT, "messages"),
        ("texts.jsonl", [{"body": f"a longer text {k}"} for k in range(200)], "text"),
    ],
)
def test_chats_and_plain_text_become_a_language_model(place, name, rows, column):
    (place / name).write_text(lines(rows))
    answer = pft("init", name, "--json")
    assert answer.code == 0, answer.out
    assert set(answer.json) == {"job_file", "job", "warning"}
    job = load_job("job.yaml")
    assert job.model.task == "causal_lm"
    assert getattr(job.data, column) is not None
    assert job.data.num_train == 160


def test_the_data_are_found_from_another_folder(place):
    (place / "in").mkdir()
    (place / "out").mkdir()
    write_csv(place / "in" / "tickets.csv", make_rows(100))
    assert pft("init", "in/tickets.csv", "--out", "out/my.yaml").code == 0
    spec = load_job("out/my.yaml").data.spec(place / "out")
    assert spec.path == place / "in" / "tickets.csv"


def test_force_replaces_a_job_file(place):
    write_csv(place / "tickets.csv", make_rows(100))
    Path("job.yaml").write_text("name: mine\n")
    assert pft("init", "tickets.csv").code == 2
    assert Path("job.yaml").read_text() == "name: mine\n"
    assert pft("init", "tickets.csv", "--force").code == 0
    assert load_job("job.yaml").name == "tickets"


def test_there_are_jobs_to_start_from():
    assert ROOT / "jobs" / "quickstart.yaml" in JOBS


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_shipped_job_costs_what_its_comment_says(path):
    text = path.read_text()
    match = re.search(
        r"Expected: epsilon ([\d.]+) at delta ([\de.-]+), unit = one (\w+)", text
    )
    assert match, "no line `# Expected: epsilon E at delta D, unit = one ...`"
    job = load_job(path)
    plan, epsilon = build_plan(job)
    assert f"{epsilon:.2f}" == match[1]
    assert plan.delta == float(match[2].rstrip(","))
    assert (job.privacy.unit == "user") == (match[3] == "user")
    data = job.data.spec(path.parent)
    if data.path.exists():
        assert data.path.is_relative_to(ROOT)

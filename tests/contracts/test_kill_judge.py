"""The judge of the kill matrix sees each fault that it is there for."""

from __future__ import annotations

import json

import pytest

from pft_ray.crypto import new_token
from tests.cluster.reserved import reserve
from tests.kills.journal import mark_of
from tests.kills.judge import Evidence, Judge

STEPS = (0, 1, 2)


@pytest.fixture
def paid(tmp_path):
    """A run whose steps 0 to 2 of attempt 1 are paid."""
    reserved = reserve(tmp_path, fault_reserve=1, grant_size=6)
    coordinator = reserved.coordinator()
    tokens = [new_token(), new_token()]
    attempt = coordinator.open_attempt(tokens, 0, "start")
    coordinator.request(attempt, 0, tokens[0], 0, 3)
    return reserved


def key(domain, step, share, rank, *, paid=True, of=None, attempt=1):
    mark = mark_of(repr(of or (domain, attempt, step, share)).encode())
    return {
        "what": "key",
        "pid": 10 + rank,
        "domain": domain,
        "key": mark,
        "place": [attempt, step, share],
        "rank": rank,
        "paid": paid,
    }


def entered(step, rank, *, share=None, attempt=1):
    mark = mark_of(repr(share or (attempt, step, rank)).encode())
    place = [attempt, step]
    return {"what": "entered", "pid": 10 + rank, "place": place, "rank": rank} | {
        "share": mark
    }


def sound_lines() -> list[dict]:
    lines = [{"what": "born", "pid": 10 + rank, "life": 0} for rank in (0, 1)]
    lines.append({"what": "attempt", "pid": 1, "number": 1, "key": "aa", "epoch": 1})
    for step in STEPS:
        for rank in (0, 1):
            lines.append(key("sample", step, 0, rank))
            lines.append(key("noise", step, rank, rank))
            lines.append(entered(step, rank))
    return lines


def judged(paid, lines, judge=None, epsilon=None) -> list[str]:
    journal = paid.folder / f"journal-{len(list(paid.folder.iterdir()))}"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evidence = Evidence(paid.url, paid.run_id, journal, epsilon)
    return (judge or Judge(8.0)).faults(evidence)


def test_a_sound_run_has_no_fault(paid):
    assert judged(paid, sound_lines()) == []


FAULTS = {
    "noise key twice": (key("noise", 0, 0, 0), "noise key drawn twice"),
    "one key, two places": (
        key("noise", 1, 5, 0, of=("noise", 1, 0, 0)),
        "noise key drawn twice",
    ),
    "sampling key twice": (key("sample", 0, 0, 1), "sampling key twice"),
    "share sent twice": (entered(2, 0), "share sent twice"),
    "equal shares": (entered(2, 2, share=(1, 2, 0)), "share bytes sent twice"),
    "unpaid when drawn": (
        key("noise", 2, 7, 0, paid=False),
        "drawn before it was charged",
    ),
    "never paid": (entered(3, 0), "never paid"),
    "earlier key": (
        {"what": "attempt", "pid": 1, "number": 2, "key": "aa", "epoch": 2},
        "earlier attempt's key",
    ),
    "stale append": (
        {"what": "stale", "pid": 1, "answer": "appended"},
        "replaced coordinator appended",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_seen(paid, name):
    line, words = FAULTS[name]
    found = judged(paid, [*sound_lines(), line])
    assert any(words in fault for fault in found), found


def test_a_key_of_another_run_is_seen(paid):
    judge = Judge(8.0)
    assert judged(paid, sound_lines(), judge) == []
    found = judged(paid, sound_lines(), judge)
    assert any("another run" in fault for fault in found)
    assert any("earlier attempt's key" in fault for fault in found)


def test_a_release_of_more_than_t_max_is_seen(paid):
    """The loss of what left is compared with what the ledger says, not with rows."""
    steps = range(paid.plan.num_steps_max)
    within = [entered(step, 0) for step in steps]
    beyond = [*within, entered(len(steps), 0)]
    assert not any("released epsilon" in f for f in judged(paid, within))
    assert any("released epsilon" in f for f in judged(paid, beyond))


def test_another_epsilon_is_seen(paid):
    found = judged(paid, sound_lines(), epsilon=7.9)
    assert any("instead of 8.0" in fault for fault in found)
    assert any("report and ledger" in fault for fault in found)

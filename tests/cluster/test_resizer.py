"""The resizer against a real coordinator: nothing is resized before it is approved."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pft_ray.scaling import Grow, Hold, Shrink
from tests.cluster import resizing
from tests.cluster.resizing import SCRIPTED, Run, limits_of, scripted_run


@pytest.fixture(autouse=True)
def no_script():
    resizing.SCRIPT.clear()
    yield
    resizing.SCRIPT.clear()


@pytest.fixture
def fixed(tmp_path):
    """One worker on node a and room for a second on node b; nothing can be added."""
    run = Run(tmp_path, limits=limits_of(1, 3), kinds=())
    run.nodes.add("a")
    run.nodes.add("b")
    run.start("a")
    return run


@pytest.fixture
def run(tmp_path):
    """One worker on node a; up to three, and nodes that may be added."""
    run = Run(tmp_path, limits=limits_of(1, 3))
    run.nodes.add("a")
    run.resizer.at_start()
    run.start("a")
    return run


def test_a_whole_growth_returns_a_size_only_once_the_workers_are_parked(run):
    assert run.look() is None
    assert run.last_told()["action"] == "grow"
    assert run.nodes.asked[-1] == 3
    assert run.line.stage == "none", "nobody stops for a node that is not there"
    run.nodes.pending = {"kind": 2}
    assert run.look() is None
    assert run.nodes.asked[-1] == 3, "held while nodes start"
    run.nodes.pending = {}
    run.nodes.add("b")
    run.nodes.add("c")
    assert run.look() is None
    assert run.line.stage == "wanted"
    assert run.work() == "boundary"
    assert run.line.stage == "parked"
    assert run.line.named("approve_resize") == []
    assert run.look() == 3
    assert run.line.named("approve_resize") == [("approve_resize", 3, True)]
    attempt = run.attempt
    run.start("a", "b", "c", reason="resume")
    assert run.attempt == attempt
    assert run.work() == "granted"
    run.look()
    assert run.nodes.asked[-1] == 0, "a running group holds its own nodes"


def test_nothing_is_returned_while_the_boundary_is_wanted_or_met(fixed):
    fixed.look()
    for _ in range(5):
        assert fixed.look() is None
    fixed.coordinator.request(fixed.attempt, 0, fixed.tokens[0], 0, 3)
    assert fixed.line.stage == "met"
    assert fixed.look() is None
    assert fixed.line.named("approve_resize") == []


def test_a_request_is_made_again_before_it_runs_out(run):
    run.look()
    run.nodes.pending = {"kind": 2}
    before = len(run.nodes.asked)
    for _ in range(10):
        run.look(20.0)
    again = run.nodes.asked[before:]
    assert len(again) >= 4
    assert set(again) == {3}


def test_a_request_is_made_again_while_a_boundary_is_awaited(run):
    run.nodes.add("b")
    run.nodes.add("c")
    run.look()
    before = len(run.nodes.asked)
    for _ in range(6):
        run.look(31.0)
    assert run.nodes.asked[before:] == [3] * 6


def test_a_shrink_drains_nodes_of_ours_alone_and_each_once(tmp_path):
    shrink = Shrink(1, ("b", "c"), "Cheaper.", None)
    run = scripted_run(tmp_path, shrink, "a", "b", "c")
    run.nodes.change("c", is_ours=False)  # it holds somebody else, too
    run.look()
    assert run.nodes.drained == []
    run.work()
    assert run.look() == 1
    assert run.nodes.drained == ["b"]
    run.start("a", reason="resume")
    resizing.SCRIPT.clear()
    for _ in range(3):
        run.work()
        run.look()
    assert run.nodes.drained == ["b"]


def test_the_head_is_never_drained(tmp_path):
    run = Run(tmp_path, policy=SCRIPTED)
    run.nodes.add("head", is_head=True)
    run.nodes.add("b")
    run.start("head", "b")
    resizing.SCRIPT[:] = [Shrink(1, ("head",), "Cheaper.", None)]
    run.look()
    run.work()
    assert run.look() == 1
    assert run.nodes.drained == []


def test_a_size_that_was_approved_is_returned_even_when_a_drain_fails(tmp_path):
    run = scripted_run(tmp_path, Shrink(1, ("b",), "Cheaper.", None), "a", "b")
    run.nodes.drain = None  # calling it raises
    run.look()
    run.work()
    assert run.look() == 1


def test_a_node_left_as_planned_is_not_taken_for_lost(tmp_path):
    run = scripted_run(tmp_path, Shrink(1, ("b",), "Cheaper.", None), "a", "b")
    run.look()
    run.work()
    assert run.look() == 1
    del run.nodes.there["b"]
    assert run.wait() == 1, "the new group's start failed once"
    assert run.line.named("expect_new_roster") == []


def test_a_notice_is_passed_on_at_once_and_the_run_moves_before_it(run):
    run.nodes.add("b")
    run.nodes.change("a", is_draining=True, leaves_in_s=100.0)
    run.look()
    assert run.line.named("warn_of_leaving") == [("warn_of_leaving", True, None)]
    assert run.coordinator.progress(run.attempt, 0), "workers save at once"
    run.work()
    assert run.look() == 1
    run.start("b", reason="resume")
    run.look()
    assert not run.coordinator.progress(run.attempt, run.step)
    assert run.attempt == 1


def test_a_notice_with_nowhere_to_go_holds_and_the_run_goes_on(tmp_path):
    run = Run(tmp_path, kinds=(), limits=limits_of(1, 3))
    run.nodes.add("a")
    run.start("a")
    run.nodes.change("a", is_draining=True, leaves_in_s=100.0)
    assert run.look() is None
    assert run.last_told()["action"] == "hold"
    assert run.line.stage == "none"
    assert run.work() == "granted"


def test_a_notice_in_the_middle_of_a_growth_changes_the_target(fixed):
    """The old target has no room any more; the next one leaves the node."""
    fixed.look()
    assert fixed.line.stage == "wanted"
    fixed.nodes.change("a", is_draining=True, leaves_in_s=100.0)
    assert fixed.look() is None
    assert fixed.line.named("warn_of_leaving")[-1][1] is True
    assert fixed.line.stage == "none"
    fixed.look()
    fixed.work()
    assert fixed.look() == 1


def test_room_that_vanishes_gives_the_boundary_up(fixed):
    fixed.look()
    fixed.work()
    assert fixed.line.stage == "parked"
    del fixed.nodes.there["b"]
    assert fixed.look() is None
    assert fixed.line.named("give_up_boundary")
    assert fixed.work() == "granted"
    assert fixed.line.named("approve_resize") == []


def test_workers_that_gave_up_are_not_resized(run):
    run.nodes.add("b")
    run.nodes.add("c")
    run.look()
    run.work()
    run.clock.now += 100.0
    assert run.work() == "granted", "their patience is over"
    assert run.look() is None
    assert run.line.named("approve_resize") == []
    assert run.look() is None
    assert run.line.stage == "wanted", "the policy is asked anew"


def test_an_approval_whose_reply_was_lost_is_taken_up(run):
    run.nodes.add("b")
    run.nodes.add("c")
    run.look()
    run.work()
    run.line.loses_reply_of = "approve_resize"
    with pytest.raises(ConnectionError):
        run.look()
    assert run.line.stage == "approved"
    assert run.look() == 3


def test_a_wish_whose_reply_was_lost_is_dropped_when_nobody_wants_it(tmp_path):
    run = scripted_run(tmp_path, Grow(2, (), "Faster.", None), "a")
    run.nodes.add("b")
    run.line.loses_reply_of = "want_boundary"
    with pytest.raises(ConnectionError):
        run.look()
    assert run.line.stage == "wanted"
    resizing.SCRIPT.clear()
    run.look()
    assert run.line.stage == "none"


def test_a_new_group_is_not_resized_by_the_approval_of_the_last(fixed):
    """Its workers have not opened their attempt yet."""
    fixed.look()
    fixed.work()
    assert fixed.look() == 2
    fixed.nodes.add("c")
    fixed.roster = {"a": 1, "b": 1}
    assert fixed.line.stage == "approved"
    for _ in range(4):
        assert fixed.look() is None


def test_an_operator_who_stops_the_run_stops_resizes(run):
    run.nodes.add("b")
    run.look()
    run.work()
    run.coordinator.request_stop()
    assert run.look() is None
    assert run.look() is None
    assert run.line.stage in ("none", "parked")
    assert run.work() == "stop"


def test_a_refused_approval_resizes_nothing(fixed):
    """The operator stops the run between the look at it and the approval."""
    fixed.look()
    fixed.work()
    views = fixed.nodes.views

    def views_of_a_stopped_run(roster):
        fixed.coordinator.request_stop()
        return views(roster)

    fixed.nodes.views = views_of_a_stopped_run
    asked = len(fixed.nodes.asked)
    assert fixed.look() is None
    assert fixed.line.named("approve_resize") == [("approve_resize", 2, False)]
    assert len(fixed.nodes.asked) == asked
    assert fixed.work() == "stop"


def test_a_plug_in_that_raises_only_holds(tmp_path):
    run = Run(tmp_path, policy="tests.cluster.resizing:raising")
    run.nodes.add("a")
    run.start("a")
    assert run.look() is None
    assert run.last_told()["code"] == "policy-failed"
    assert "ZeroDivisionError" in run.last_told()["reason"]
    assert "private" not in str(run.line.told)
    assert run.work() == "granted"


def test_a_plug_in_that_is_gone_only_holds(tmp_path):
    run = Run(tmp_path, policy="no_such_module:function")
    run.nodes.add("a")
    assert run.wait() == 1
    run.start("a")
    assert run.look() is None
    assert run.last_told()["code"] == "policy-failed"


def test_a_decision_is_new_only_when_it_changed(tmp_path):
    run = Run(tmp_path, kinds=())
    run.nodes.add("a")
    run.start("a")
    for _ in range(3):
        run.look()
    assert [is_new for _, is_new in run.line.told] == [True, False, False]
    run.nodes.add("b")
    run.look()
    assert run.line.told[-1][1] is True


def test_a_reading_without_workers_forgets_neither_the_roster_nor_its_size(tmp_path):
    """The group ended or did not start yet; that says nothing about its nodes."""
    run = scripted_run(tmp_path, Hold("Nothing to do."), "a", "b")
    run.look()
    run.clock.now += 2.0
    assert run.resizer.while_running({}) is None
    assert run.last_told()["workers"] == 2
    assert [n["workers"] for n in run.last_told()["nodes"]] == [1, 1]
    del run.nodes.there["b"]
    assert run.wait(4.0) == 1
    assert len(run.line.named("expect_new_roster")) == 1, "b held a worker"


def test_a_reading_without_workers_is_no_first_start(tmp_path):
    run = Run(tmp_path, start_workers=2)
    run.nodes.add("a")
    assert run.resizer.while_running({}) is None
    assert run.wait() is None, "still waits for the size that the job names"


def test_a_steady_group_holds_no_idle_node(tmp_path):
    """What the start asked for may be held by c, which the group does not use."""
    run = Run(tmp_path, start_workers=2, limits=limits_of(2, 2))
    for name in "abc":
        run.nodes.add(name)
    assert run.wait() == 2
    assert run.nodes.asked == [2]
    run.start("a", "b")
    for _ in range(3):
        assert run.look() is None
    assert run.last_told()["action"] == "hold"
    assert run.nodes.asked == [2, 0], "given back once"
    assert run.nodes.drained == [], "and left to the cluster"


# -- whatever happens ----------------------------------------------------------------

MOVES = st.sampled_from(
    [
        *("look", "look", "look", "work", "work", "add", "lose", "notice", "pending"),
        *("mute", "patience", "unreachable", "reachable", "lost approval", "stop"),
    ]
)


@given(st.lists(MOVES, max_size=40), st.integers(1, 2))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_a_size_is_returned_only_with_an_approval_and_within_limits(moves, floor):
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            Path(folder), limits=limits_of(floor, 3), start_workers=floor, kinds=()
        )
        for number in range(floor):
            run.nodes.add(f"n{number}")
        run.start(*run.nodes.there)
        for move in ["add", "look", "work", *moves]:
            size = _move(run, move)
            if size is None:
                continue
            assert run.line.stage == "approved"
            assert floor <= size <= 3
            names = [n for n, v in run.nodes.there.items() if not v.is_draining]
            assert len(names) >= size
            attempt, charged = run.attempt, run.step
            run.start(*names[:size], reason="resume")
            assert (run.attempt, run.step) == (attempt, charged), "no step twice"


def _move(run, move):  # noqa: C901 - one line a case
    nodes = run.nodes
    last = next(reversed(nodes.there), None)
    match move:
        case "look":
            try:
                return run.look()
            except ConnectionError:
                return None
        case "work" if run.step < 12:
            run.work()
        case "add":
            nodes.add(f"m{run.clock.now}")
            run.clock.now += 0.5
        case "lose" if last is not None and last not in run.roster:
            del nodes.there[last]
        case "notice" if last is not None:
            nodes.change(last, is_draining=True, leaves_in_s=50.0)
        case "pending":
            nodes.pending = {} if nodes.pending else {"kind": 1}
        case "mute" if last is not None:
            nodes.mute ^= {last}
        case "patience":
            run.clock.now += 61.0
        case "unreachable" | "reachable":
            run.line.unreachable = move == "unreachable"
        case "lost approval":
            run.line.loses_reply_of = "approve_resize"
        case "stop" if run.step > 6:
            run.coordinator.request_stop()
    return None

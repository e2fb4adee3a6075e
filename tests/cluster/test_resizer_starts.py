"""Starts of a worker group: what room there has to be, and why the last one ended."""

from __future__ import annotations

import pytest

from pft_ray.errors import PlacementError, RunFailedError
from pft_ray.scaling import Grow
from tests.cluster import resizing
from tests.cluster.resizing import Run, limits_of, scripted_run


@pytest.fixture(autouse=True)
def no_script():
    resizing.SCRIPT.clear()
    yield
    resizing.SCRIPT.clear()


def test_the_first_start_waits_for_the_wanted_size_and_then_takes_what_is_there(
    tmp_path,
):
    run = Run(tmp_path, start_workers=3)
    run.nodes.add("a")
    assert run.wait() is None
    assert run.nodes.asked == [3]
    assert run.wait(8.0) is None
    assert run.wait(2.0) == 1


def test_the_first_start_takes_the_wanted_size_at_once(tmp_path):
    run = Run(tmp_path, start_workers=2)
    run.nodes.add("a", num_slots=3)
    assert run.wait() == 2


def test_no_start_below_the_floor_ends_in_a_placement_error(tmp_path):
    run = Run(tmp_path, start_workers=2, limits=limits_of(2, 3))
    run.nodes.add("a")
    run.nodes.add("b", is_draining=True)
    for _ in range(59):
        assert run.wait() is None
    assert set(run.nodes.asked) == {2}
    with pytest.raises(PlacementError, match="found 1;"):
        run.wait(2.0)


def test_a_long_node_start_is_no_placement_error_when_the_floor_fits(tmp_path):
    run = Run(tmp_path, start_workers=2, node_start_s=120.0)
    run.nodes.add("a")
    assert run.wait(100.0) is None
    assert run.wait(30.0) == 1


def test_a_size_that_never_starts_ends_the_run(tmp_path):
    """Room is there by Ray's count, and no group comes up on it."""
    run = scripted_run(tmp_path, None, "a")
    run.look()
    assert [run.wait(30.0) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(PlacementError, match="did not start"):
        run.wait(30.0)


def test_room_that_others_took_meanwhile_is_not_counted(tmp_path):
    """Places of the ended group are free, or somebody else's; they are not ours."""
    run = scripted_run(tmp_path, None, "a", "b")
    run.look()
    seen = []
    views = run.nodes.views
    run.nodes.views = lambda roster: seen.append(dict(roster)) or views(roster)
    run.wait()
    assert seen[-1] == {}


def test_what_goes_after_a_worker_died_did_not_end_the_group(tmp_path):
    run = scripted_run(tmp_path, None, "a", "b")
    run.look()
    run.nodes.mute.clear()
    assert run.wait() == 2, "a worker died, all nodes are there"
    del run.nodes.there["b"]
    assert run.wait(4.0) == 1
    assert run.line.named("expect_new_roster") == []


def test_nodes_lost_when_no_start_follows_are_told_at_the_end(tmp_path):
    run = scripted_run(tmp_path, None, "a", "b")
    run.look()
    del run.nodes.there["b"]
    run.resizer.close()
    expected = [("expect_new_roster", "node-loss", None)]
    assert run.line.named("expect_new_roster") == expected
    assert run.nodes.asked[-1] == 0


def test_a_lost_node_is_a_public_cause_and_survivors_start_soon(tmp_path):
    """Places of the group that ended take a moment to be seen as free."""
    run = scripted_run(tmp_path, None, "a", "b")
    run.look()
    del run.nodes.there["b"]
    assert run.wait() is None
    assert run.wait(3.0) == 1
    expected = [("expect_new_roster", "node-loss", None)]
    assert run.line.named("expect_new_roster") == expected
    assert run.wait() == 1
    assert run.line.named("expect_new_roster") == expected, "told once"


def test_a_loss_of_all_nodes_is_told_once_and_explains_one_end_alone(tmp_path):
    run = scripted_run(tmp_path, None, "a")
    run.work()
    run.look()
    del run.nodes.there["a"]
    assert run.wait() is None
    assert run.wait() is None
    run.nodes.add("b")
    assert run.wait() == 1, "not a first start: what is there is taken"
    run.step = 0
    run.start("b", reason="resume")
    assert run.wait() == 1, "a worker died before the first look"
    assert len(run.line.named("expect_new_roster")) == 1


def test_a_dead_worker_on_living_nodes_is_no_public_cause(tmp_path):
    run = scripted_run(tmp_path, None, "a", "b")
    run.look()
    assert run.wait() == 2
    assert run.line.named("expect_new_roster") == []


def test_a_silent_node_makes_the_start_wait_and_then_counts_as_lost(tmp_path):
    run = scripted_run(tmp_path, None, "a", "b")
    run.look()
    run.nodes.mute = {"b"}
    assert run.wait() is None
    assert run.line.named("expect_new_roster") == []
    assert run.wait(60.0) == 1, "a silent node is no room"
    assert len(run.line.named("expect_new_roster")) == 1


def test_a_cause_left_over_does_not_excuse_a_later_death(tmp_path):
    """Two deaths at one place end the run, whatever was expected before a resize."""
    run = scripted_run(tmp_path, Grow(2, (), "Faster.", None), "a")
    run.nodes.add("b")
    run.look()
    run.work()
    assert run.look() == 2
    run.coordinator.expect_new_roster("node-loss")
    run.start("a", "b", reason="resume")
    assert run.attempt == 1
    run.start("a", "b", reason="resume")
    with pytest.raises(RunFailedError):
        run.start("a", "b", reason="resume")


@pytest.mark.parametrize(("impossible", "fix"), [(True, "may have"), (False, "Add")])
def test_a_run_without_room_says_what_the_cluster_cannot_do(tmp_path, impossible, fix):
    run = Run(tmp_path, start_workers=2, limits=limits_of(2, 3))
    run.nodes.impossible = impossible
    with pytest.raises(PlacementError) as caught:
        run.wait(61.0)
    assert fix in caught.value.fix

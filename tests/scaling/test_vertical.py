"""The plan of one worker: it fits, it is not slower, and it is no more than needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_ray.errors import InputError, PlacementError
from pft_ray.scaling.vertical import (
    Measurement,
    Profile,
    Setting,
    merge_phases,
    plan_vertical,
)

GIB = 1 << 30
SETTINGS = st.builds(
    Setting, st.integers(1, 8), st.sampled_from([1, 4, 16, 64]), st.booleans()
)
MEASUREMENTS = st.builds(
    Measurement,
    SETTINGS,
    st.sampled_from([1.0, 1.01, 1.02, 1.04, 2.0]) | st.floats(1e-6, 1e3),
    st.none() | st.integers(0, 64 * GIB),
)


@st.composite
def profiles(draw):
    """Profiles that mostly hold the job's own setting, with times close together."""
    found = draw(
        st.lists(MEASUREMENTS, min_size=1, max_size=12, unique_by=lambda m: m.setting)
    )
    own = st.sampled_from([measurement.setting for measurement in found])
    return Profile(tuple(found), draw(own | SETTINGS))


PROFILES = profiles()


def profile(*rows, current=(1, 16, False)):
    """Rows are ((threads, micro_batch, checkpointing), seconds, GiB or None)."""
    return Profile(
        tuple(
            Measurement(Setting(*s), t, None if m is None else int(m * GIB))
            for s, t, m in rows
        ),
        Setting(*current),
    )


@given(PROFILES, st.integers(1, 8), st.none() | st.integers(0, 64 * GIB))
def test_a_plan_fits_and_is_never_slower_than_the_job(found, cpus, limit):
    usable = [
        m
        for m in found.measurements
        if m.setting.threads <= cpus
        and (limit is None or (m.peak_bytes is not None and m.peak_bytes <= limit))
    ]
    if not usable:
        with pytest.raises(PlacementError) as caught:
            plan_vertical(found, cpus, limit)
        assert caught.value.fix
        return
    plan = plan_vertical(found, cpus, limit)
    (chosen,) = (m for m in usable if m.setting == plan.setting)
    assert plan.peak_bytes == chosen.peak_bytes
    plain_s = [
        m.seconds_per_record for m in usable if not m.setting.gradient_checkpointing
    ]
    best_s = min(plain_s, default=chosen.seconds_per_record)
    assert chosen.seconds_per_record <= 1.03 * best_s * (1 + 1e-12)
    for mine in usable:
        if mine.setting == found.current:
            assert chosen.seconds_per_record <= mine.seconds_per_record
            assert plan.speedup >= 1.0
    assert plan.reason


@given(PROFILES, st.integers(1, 8))
def test_layers_run_again_only_where_memory_asks_for_it(found, cpus):
    try:
        plan = plan_vertical(found, cpus, 8 * GIB)
    except PlacementError:
        return
    if plan.gradient_checkpointing and plan.setting != found.current:
        plain = Setting(plan.threads, plan.max_micro_batch)
        other = found.at(plain)
        assert other is None or other.peak_bytes is None or other.peak_bytes > 8 * GIB


def test_the_fastest_that_fits():
    found = profile(
        ((1, 16, False), 0.010, 2),
        ((2, 16, False), 0.006, 2),
        ((2, 64, False), 0.004, 6),
        ((2, 64, True), 0.005, 3),
        ((4, 64, False), 0.001, 6),
    )
    free = plan_vertical(found, 2)
    assert free.setting == Setting(2, 64, gradient_checkpointing=False)
    assert free.speedup == pytest.approx(2.5)
    assert free.reason.startswith("The fastest of those that fit: 2 threads")
    tight = plan_vertical(found, 2, 4 * GIB)
    assert tight.setting == Setting(2, 64, gradient_checkpointing=True)
    assert tight.peak_bytes == 3 * GIB
    assert plan_vertical(found, 1, 4 * GIB).setting == found.current


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([((1, 16, False), 1.02, 1), ((2, 16, False), 1.0, 1)], (1, 16, False)),
        ([((1, 16, True), 1.0, 1), ((1, 64, False), 1.02, 9)], (1, 64, False)),
        ([((1, 16, True), 1.0, 1), ((1, 16, False), 1.9, 9)], (1, 16, False)),
        ([((1, 4, False), 1.0, 1), ((1, 16, False), 1.02, 2)], (1, 16, False)),
        ([((1, 64, False), 1.0, 9), ((1, 4, False), 1.02, 1)], (1, 4, False)),
        ([((1, 16, False), 1.04, 1), ((2, 16, False), 1.0, 1)], (2, 16, False)),
    ],
    ids=["threads", "checkpointing", "busy-machine", "as-it-is", "smaller", "too-slow"],
)
def test_equally_fast_the_simplest(rows, chosen):
    assert plan_vertical(profile(*rows), 2).setting == Setting(*chosen)


def test_within_the_tolerance_the_jobs_own_is_not_made_slower():
    """One thread less is not worth 2 % more time when the job has two."""
    rows = [((1, 16, False), 1.02, 1), ((2, 16, False), 1.0, 1)]
    assert plan_vertical(profile(*rows, current=(2, 16, False)), 2).threads == 2


def test_a_job_that_runs_layers_again_is_not_made_slower():
    rows = [((1, 16, True), 1.0, 1), ((1, 16, False), 1.9, 1)]
    own = profile(*rows, current=(1, 16, True))
    assert plan_vertical(own, 1).setting == own.current


def test_reasons_say_what_was_weighed():
    own = plan_vertical(profile(((1, 16, False), 1.0, 1)), 2)
    assert own.reason == "The job's own setting is within 3% of the fastest."
    rows = [((1, 4, False), 1.02, 1), ((2, 4, True), 1.0, 1)]
    near = plan_vertical(profile(*rows), 2)
    assert near.speedup is None
    assert "within 3% of the fastest that fits (2 threads, micro-batch 4, gradient" in (
        near.reason
    )
    assert "own (1 thread, micro-batch 16) does not fit" in near.reason


@pytest.mark.parametrize(
    ("rows", "cpus", "limit", "says"),
    [
        (
            [((1, 4, True), 1.0, 3), ((1, 4, False), 1.0, 5)],
            1,
            2 * GIB,
            r"into 2\.00 GiB: 1 thread, micro-batch 4, gradient checkpointing needs 3",
        ),
        ([((2, 4, False), 1.0, 1)], 1, None, "at least 2 threads; .* has 1 CPUs"),
        ([((2, 4, False), 1.0, 1)], 1, 9 * GIB, "at least 2 threads; .* has 1 CPUs"),
        ([((1, 4, False), 1.0, None)], 1, 9 * GIB, "is not known"),
        (
            [((1, 4, False), 1.0, 4), ((2, 4, False), 1.0, 3)],
            1,
            GIB,
            r"1 thread, micro-batch 4 needs 4\.00",
        ),
    ],
    ids=["memory", "cpus", "cpus-first", "unknown", "allowed-cpus-only"],
)
def test_nothing_fits(rows, cpus, limit, says):
    with pytest.raises(PlacementError, match=says) as caught:
        plan_vertical(profile(*rows), cpus, limit)
    assert caught.value.fix


def test_phases_share_one_setting():
    """30 steps at 1 s and 10 at 5 s are 2 s a step."""
    both, only = (1, 16, False), (1, 64, False)
    first = profile((both, 1.0, 2), (only, 1.0, 2))
    second = profile((both, 5.0, 3))
    merged = merge_phases([(30, first), (10, second)])
    assert merged == profile((both, 2.0, 3))
    unknown = merge_phases([(1, first), (1, profile((both, 5.0, None)))])
    assert unknown.at(Setting(*both)).peak_bytes is None
    with pytest.raises(InputError, match="No setting was measured"):
        merge_phases([(1, first), (1, profile(((2, 4, False), 1.0, 1)))])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Setting(0, 1),
        lambda: Setting(1, 0),
        lambda: Measurement(Setting(1, 1), 0.0),
        lambda: Measurement(Setting(1, 1), float("nan")),
        lambda: Measurement(Setting(1, 1), 1.0, -1),
        lambda: Profile((), Setting(1, 1)),
        lambda: profile(((1, 1, False), 1.0, 1), ((1, 1, False), 2.0, 1)),
        lambda: plan_vertical(profile(((1, 1, False), 1.0, 1)), 0),
    ],
)
def test_senseless_figures_are_refused(make):
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.fix


def test_it_is_pure():
    script = (
        "import sys, pft_ray.scaling.vertical; "
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""Snapshots for the tests of scaling: by hand, at random, and after a decision."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from pft_ray.scaling import (
    ClusterSnapshot,
    Grow,
    Limits,
    Node,
    NodeType,
    PhaseWork,
    Shrink,
    StepTime,
)

SCALES = StepTime(0.1, 4.0, 0.002)
HARDLY = StepTime(1.0, 0.1, 0.01)
REGIONS = ("", "eu-1", "eu-2", "us-1")


def nodes(*workers, slots=1, **more):
    """Nodes n0, n1, ... that hold the given numbers of workers."""
    return tuple(
        Node(f"n{index}", slots, count, **more) for index, count in enumerate(workers)
    )


def snapshot(held, *, work=None, paid=None, kinds=(), now=1000.0, **more):
    """A snapshot of ``held`` nodes; ``limits`` has its defaults, other fields too."""
    work = work or (PhaseWork(2000, SCALES),)
    limits = more.pop("limits", None) or limits_of()
    more.setdefault("num_workers", sum(node.num_workers for node in held))
    return ClusterSnapshot(
        now_s=now,
        work=work,
        num_paid_steps_left=sum(w.num_steps for w in work) if paid is None else paid,
        nodes=held,
        node_types=kinds,
        limits=limits,
        **more,
    )


def limits_of(least=1, most=8, **more):
    more.setdefault("num_shares", most)
    return Limits(least, most, **more)


def after(seen: ClusterSnapshot, decision, *, wait=600.0) -> ClusterSnapshot:
    """What the cluster looks like once a decision is done and nothing else changed.

    Nodes that were asked for are there and free; workers fill the nodes in the order
    of the snapshot, those that hold some first; nodes to be left hold none. The
    deadline stays as far away as it was.
    """
    if isinstance(decision, Grow) and decision.add:
        kinds = {kind.name: kind for kind in seen.node_types}
        new = tuple(
            Node(
                f"{name}-{len(seen.nodes)}-{index}",
                kinds[name].num_slots,
                region=kinds[name].region,
                price_per_hour=kinds[name].price_per_hour,
            )
            for name, count in decision.add
            for index in range(count)
        )
        taken = dict(decision.add)
        left = tuple(
            replace(kind, num_available=kind.num_available - taken.get(kind.name, 0))
            for kind in seen.node_types
        )
        return replace(seen, nodes=seen.nodes + new, node_types=left)
    if not isinstance(decision, Grow | Shrink):
        return seen
    return replace(
        seen,
        num_workers=decision.num_workers,
        nodes=_filled(seen, decision.num_workers, decision.leave),
        now_s=seen.now_s + wait,
        last_resize_s=seen.now_s,
        limits=replace(
            seen.limits,
            deadline_s=None
            if seen.limits.deadline_s is None
            else seen.limits.deadline_s + wait,
        ),
    )


def _filled(seen, num_workers, leave):
    limits = seen.limits
    usable = [
        node
        for node in seen.nodes
        if limits.allows(node.region)
        and node.node_id not in leave
        and (node.leaves_in_s is None or node.num_workers)
    ]
    usable.sort(key=lambda node: (not node.num_workers, _per_slot(node)))
    held = {}
    for node in usable:
        held[node.node_id] = min(node.num_slots, num_workers)
        num_workers -= held[node.node_id]
    assert num_workers == 0, "more workers than slots"
    return tuple(
        replace(node, num_workers=held.get(node.node_id, 0)) for node in seen.nodes
    )


def _per_slot(node):
    return (node.price_per_hour or 0.0) / max(1, node.num_slots), -node.num_slots


MONEY = st.integers(0, 500).map(lambda cents: cents / 100)


@st.composite
def step_times(draw):
    return StepTime(
        draw(st.floats(0.01, 2.0)), draw(st.floats(0.01, 20.0)), draw(st.floats(0, 0.1))
    )


@st.composite
def wild_limits(draw):
    least = draw(st.integers(1, 6))
    most = draw(st.integers(least, 24))
    return Limits(
        least,
        most,
        needed_workers=draw(st.integers(1, most)),
        num_shares=draw(st.integers(most, 32)),
        allowed_regions=draw(
            st.none() | st.frozensets(st.sampled_from(REGIONS[1:]), min_size=1)
        ),
        deadline_s=draw(st.none() | st.floats(0, 20_000)),
        max_price_per_hour=draw(st.none() | st.floats(0.5, 40)),
        **draw(tempers()),
    )


@st.composite
def tempers(draw):
    return {
        "max_slowdown": draw(st.floats(0, 0.5)),
        "resize_s": draw(st.floats(0, 60)),
        "min_interval_s": draw(st.floats(0, 120)),
        "min_saving": draw(st.floats(0.001, 0.3)),
    }


@st.composite
def wild_snapshots(draw):
    """Snapshots of all sorts, also those that break their own limits."""
    held = []
    for index in range(draw(st.integers(0, 8))):
        num_slots = draw(st.integers(0, 5))
        held.append(
            Node(
                f"n{index}",
                num_slots,
                draw(st.integers(0, num_slots)),
                region=draw(st.sampled_from(REGIONS)),
                price_per_hour=draw(st.none() | MONEY),
                leaves_in_s=draw(st.none() | st.floats(0, 3000)),
            )
        )
    kinds = tuple(
        NodeType(
            f"kind{index}",
            draw(st.integers(0, 5)),
            draw(st.integers(0, 6)),
            region=draw(st.sampled_from(REGIONS)),
            price_per_hour=draw(st.none() | MONEY),
            start_s=draw(st.floats(0, 200)),
        )
        for index in range(draw(st.integers(0, 3)))
    )
    now = draw(st.floats(0, 10_000))
    return ClusterSnapshot(
        now_s=now,
        num_workers=sum(node.num_workers for node in held),
        work=draw(st.lists(phase_work(0), max_size=3)),
        num_paid_steps_left=draw(st.integers(0, 6000)),
        nodes=held,
        node_types=kinds,
        limits=draw(wild_limits()),
        num_pending_slots=draw(st.sampled_from([0, 0, 0, 3])),
        last_resize_s=draw(st.none() | st.floats(0, now)),
    )


@st.composite
def phase_work(draw, least=1):
    return PhaseWork(draw(st.integers(least, 3000)), draw(step_times()))


@st.composite
def healthy_snapshots(draw, *, limited=True):
    """Snapshots of runs that are within their limits and may choose freely."""
    slots = draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    counts = [draw(st.integers(0, num_slots)) for num_slots in slots]
    counts[0] = max(1, counts[0])
    priced = draw(st.booleans())
    price = MONEY if priced else st.none()
    kinds = tuple(
        NodeType(
            f"kind{index}",
            draw(st.integers(1, 5)),
            draw(st.integers(1, 6)),
            price_per_hour=draw(price),
            start_s=draw(st.floats(0, 200)),
        )
        for index in range(draw(st.integers(0, 2)))
    )
    least = draw(st.integers(1, sum(counts)))
    most = draw(st.integers(sum(counts), 40))
    times = st.none() | st.floats(0, 60_000) if limited else st.none()
    caps = st.none() | st.floats(0.5, 40) if limited and priced else st.none()
    return ClusterSnapshot(
        now_s=0.0,
        num_workers=sum(counts),
        work=draw(st.lists(phase_work(), min_size=1, max_size=3)),
        num_paid_steps_left=draw(st.integers(1, 6000)),
        nodes=tuple(
            Node(f"n{index}", num_slots, count, price_per_hour=draw(price))
            for index, (num_slots, count) in enumerate(zip(slots, counts, strict=True))
        ),
        node_types=kinds,
        limits=Limits(
            least,
            most,
            num_shares=draw(st.integers(most, 50)),
            deadline_s=draw(times),
            max_price_per_hour=draw(caps),
            **draw(tempers()),
        ),
    )


def snapshots():
    """Both sorts."""
    return wild_snapshots() | healthy_snapshots()

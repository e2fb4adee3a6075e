"""When a run should grow, shrink or hold: pure functions of one snapshot."""

from pft_ray.scaling.decision import Decision, Grow, Hold, Shrink
from pft_ray.scaling.impact import Impact, assess
from pft_ray.scaling.policy import Policy, decide, guarded, load_policy
from pft_ray.scaling.prices import PriceTable, load_prices
from pft_ray.scaling.snapshot import (
    ClusterSnapshot,
    Limits,
    Node,
    NodeType,
    PhaseWork,
    StepTime,
)

__all__ = [
    "ClusterSnapshot",
    "Decision",
    "Grow",
    "Hold",
    "Impact",
    "Limits",
    "Node",
    "NodeType",
    "PhaseWork",
    "Policy",
    "PriceTable",
    "Shrink",
    "StepTime",
    "assess",
    "decide",
    "guarded",
    "load_policy",
    "load_prices",
]

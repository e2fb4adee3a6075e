"""Acts on a cluster from outside of a run, as a program.

python -m tests.elastic.levers ADDRESS drain NODE SECONDS
python -m tests.elastic.levers ADDRESS nodes
"""

from __future__ import annotations

import json
import os
import sys

from pft_ray.cluster.capacity import drain_node, live_nodes
from pft_ray.cluster.local import ray_cluster


def main(address: str, what: str, *rest: str) -> None:
    with ray_cluster(address, num_cpus=1):
        if what == "drain":
            node, seconds = rest
            answer = drain_node(node, "spot notice", float(seconds))
        else:
            answer = [node.node_id for node in live_nodes() if not node.is_head]
        print(json.dumps(answer), flush=True)  # noqa: T201
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A worker looks at its own node before it reads a record."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pft_ray.cluster import worker as module
from pft_ray.cluster.worker import Worker
from pft_ray.errors import PlacementError


def worker_on(monkeypatch, region, allowed):
    labels = {} if region is None else {module.REGION_LABEL: region}
    context = SimpleNamespace(get_node_labels=lambda: labels)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)
    worker = Worker.__new__(Worker)
    worker.rank = 1
    worker.job = SimpleNamespace(cluster=SimpleNamespace(regions=allowed))
    return worker


@pytest.mark.parametrize("region", ["eu-b", None, ""])
def test_a_shard_outside_of_the_regions_is_not_even_read(monkeypatch, region):
    worker = worker_on(monkeypatch, region, ("eu-a", "eu-c"))
    monkeypatch.setattr(module, "load_inputs", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(PlacementError, match="Rank 1 is on a node of region"):
        worker._set_up()


@pytest.mark.parametrize(("region", "allowed"), [("eu-a", ("eu-a",)), ("x", None)])
def test_an_allowed_region_is_fine(monkeypatch, region, allowed):
    worker_on(monkeypatch, region, allowed)._check_region()

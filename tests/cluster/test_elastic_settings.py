"""What a job says about its sizes, and what is refused before a run starts."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pft_ray.cluster import run_nodes
from pft_ray.cluster.elastic_settings import (
    ElasticSettings,
    NodeKind,
    elastic_settings,
    region_selector,
)
from pft_ray.config import build_job, load_job, read_job
from pft_ray.errors import ConfigError, InputError, ScalingError
from pft_ray.scaling import Limits
from tests.config.test_owner_jobs import OWNERS
from tests.tiny_job import job_dict

ROOT = Path(__file__).parents[2]
REGION, MARKET = "ray.io/availability-region", "ray.io/market-type"
PRICE = {"node_type": "small", "region": "eu-1", "price_per_hour": 0.5}
SECRET = "postgresql://user:secret-word@host/ledger"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """Paths that start from the shell's folder find nothing."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


def write_nodes(path: Path) -> Path:
    """A head in hq, small nodes in eu-1, big spot nodes in eu-2, and tiny ones."""

    def kind(cpus, most, **labels):
        return {"resources": {"CPU": cpus}, "max_workers": most, "labels": labels}

    types = {
        "head": kind(8, 0, **{REGION: "hq"}),
        "small": kind(1, 4, **{REGION: "eu-1"}),
        "big": kind(2.5, 2, **{REGION: "eu-2", MARKET: "spot"}),
        "tiny": kind(0.25, 9, **{REGION: "eu-3"}),
    }
    document = {
        "provider": {"type": "aws"},
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": types,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def write_prices(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(list(rows)))
    return path


def settings_of_job(folder, elastic=None, **changes) -> ElasticSettings:
    sizes = {"min_workers": 1, "max_workers": 3} | (elastic or {})
    job = read_job(job_dict(cluster__elastic=sizes, **changes))
    return elastic_settings(build_job(job, folder), "run-1")


def test_the_example_job_gives_these_settings():
    job = ROOT / "jobs/elastic.yaml"
    built = build_job(load_job(job), job.parent)
    assert elastic_settings(built, "run-7") == ElasticSettings(
        run_id="run-7",
        start_workers=1,
        cpus_per_worker=1.0,
        limits=Limits(
            min_workers=1,
            max_workers=2,
            needed_workers=1,
            num_shares=2,
            allowed_regions=frozenset({"local-a"}),
            deadline_s=None,
            max_price_per_hour=None,
            max_slowdown=0.1,
            resize_s=20.0,
            min_interval_s=15.0,
            min_saving=0.05,
        ),
        phase_steps=(60, 60),
        node_start_s=10.0,
        placement_timeout_s=60.0,
        kinds=(NodeKind("slot", 1, 3, "local-a", is_spot=True),),
        max_nodes=3,
        prices=None,
        policy=None,
    )


# -- nodes and regions ---------------------------------------------------------------


def test_kinds_are_counted_in_workers_and_neither_head_nor_too_small(tmp_path):
    write_nodes(tmp_path / "nodes.yaml")
    found = settings_of_job(tmp_path, cluster__file="nodes.yaml")
    assert found.kinds == (
        NodeKind("small", 2, 4, "eu-1", is_spot=False),
        NodeKind("big", 5, 2, "eu-2", is_spot=True),
    )
    assert found.max_nodes == 5


def test_without_a_cluster_file_nothing_can_be_added(tmp_path):
    found = settings_of_job(tmp_path)
    assert (found.kinds, found.max_nodes) == ((), None)


def test_a_region_that_no_node_has_is_named_with_those_that_are_there(tmp_path):
    write_nodes(tmp_path / "nodes.yaml")
    with pytest.raises(ConfigError) as caught:
        settings_of_job(
            tmp_path, cluster__file="nodes.yaml", cluster__regions=["eu-1", "eu-9"]
        )
    assert caught.value.message == (
        "cluster.regions names eu-9; nodes.yaml has eu-1, eu-2, eu-3."
    )


def test_the_heads_region_alone_holds_no_worker(tmp_path):
    write_nodes(tmp_path / "nodes.yaml")
    with pytest.raises(ConfigError, match="names hq"):
        settings_of_job(tmp_path, cluster__file="nodes.yaml", cluster__regions=["hq"])


def test_regions_become_a_limit_and_no_regions_allow_all(tmp_path):
    write_nodes(tmp_path / "nodes.yaml")
    within = settings_of_job(
        tmp_path, cluster__file="nodes.yaml", cluster__regions=["eu-2", "eu-1"]
    )
    assert within.limits.allowed_regions == {"eu-1", "eu-2"}
    anywhere = settings_of_job(tmp_path, cluster__file="nodes.yaml")
    assert anywhere.limits.allowed_regions is None


@pytest.mark.parametrize(
    ("regions", "selector"),
    [
        (None, None),
        ((), None),
        (("eu-1",), {REGION: "in(eu-1)"}),
        (("eu-1", "eu-2"), {REGION: "in(eu-1,eu-2)"}),
    ],
)
def test_regions_select_nodes_by_their_label(regions, selector):
    assert region_selector(regions) == selector


# -- paths ---------------------------------------------------------------------------


def test_relative_paths_start_from_the_jobs_folder(tmp_path):
    """The job is in a folder of its own, its files beside and above that."""
    write_nodes(tmp_path / "clusters/nodes.yaml")
    write_prices(tmp_path / "jobs/prices/eu.yaml", PRICE)
    found = settings_of_job(
        tmp_path / "jobs",
        {"prices": "prices/eu.yaml"},
        cluster__file="../clusters/nodes.yaml",
    )
    assert found.max_nodes == 5
    assert found.price("small", "eu-1", is_spot=False) == 0.5


def test_absolute_paths_are_taken_as_they_are(tmp_path):
    nodes = write_nodes(tmp_path / "far/nodes.yaml")
    prices = write_prices(tmp_path / "far/prices.yaml", PRICE)
    found = settings_of_job(
        tmp_path / "jobs", {"prices": str(prices)}, cluster__file=str(nodes)
    )
    assert (found.max_nodes, len(found.prices)) == (5, 1)


def test_files_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nodes\.yaml cannot be read"):
        settings_of_job(tmp_path, cluster__file="nodes.yaml")
    with pytest.raises(ScalingError, match=r"prices\.yaml cannot be read"):
        settings_of_job(tmp_path, {"prices": "prices.yaml"})


# -- prices, limits, policies --------------------------------------------------------


def test_prices_are_by_kind_region_and_market(tmp_path):
    rows = [PRICE, PRICE | {"spot": True, "price_per_hour": 0.125}]
    write_prices(tmp_path / "prices.yaml", *rows)
    found = settings_of_job(tmp_path, {"prices": "prices.yaml"})
    assert found.price("small", "eu-1", is_spot=True) == 0.125
    assert found.price("small", "eu-2", is_spot=False) is None
    without = settings_of_job(tmp_path)
    assert without.price("small", "eu-1", is_spot=False) is None


def test_a_hole_in_the_prices_is_named_by_its_row(tmp_path):
    hole = {"node_type": "big", "region": "eu-2", "price_per_hour": None}
    write_prices(tmp_path / "prices.yaml", PRICE, hole)
    with pytest.raises(ScalingError, match=r"Row 2 .* no price_per_hour"):
        settings_of_job(tmp_path, {"prices": "prices.yaml"})


def test_owners_need_a_worker_each(tmp_path):
    found = settings_of_job(
        tmp_path, {"min_workers": 3}, cluster__workers=3, **OWNERS
    ).limits
    assert (found.min_workers, found.needed_workers, found.num_shares) == (3, 2, 3)
    assert settings_of_job(tmp_path).limits.needed_workers == 1


def test_what_the_job_says_becomes_the_limits(tmp_path):
    said = {
        "deadline_hours": 1.5,
        "max_price_per_hour": 4.0,
        "max_slowdown": 0.2,
        "resize_s": 9.0,
        "min_interval_s": 8.0,
        "min_saving": 0.3,
        "node_start_s": 7.0,
    }
    found = settings_of_job(
        tmp_path, said, cluster__workers=2, cluster__placement_timeout_s=6.0
    )
    assert found.limits == Limits(
        *(1, 3, 1, 3, None),
        deadline_s=5400.0,
        max_price_per_hour=4.0,
        max_slowdown=0.2,
        resize_s=9.0,
        min_interval_s=8.0,
        min_saving=0.3,
    )
    assert (found.start_workers, found.cpus_per_worker) == (2, 0.5)
    assert (found.node_start_s, found.placement_timeout_s) == (7.0, 6.0)
    assert found.phase_steps == (8, 8)
    assert settings_of_job(tmp_path).limits.deadline_s is None


@pytest.mark.parametrize(
    "name",
    [
        "no_such_module:function",
        "tests.cluster.resizing:no_such_function",
        "tests.cluster.resizing:SCRIPT",
        "tests.cluster.resizing",
    ],
)
def test_a_misspelt_policy_is_refused_before_a_run_starts(tmp_path, name):
    with pytest.raises(ScalingError):
        settings_of_job(tmp_path, {"policy": name})


@pytest.mark.parametrize("address", [None, "host:6379"])
def test_no_node_starts_for_a_misspelt_policy(tmp_path, monkeypatch, address):
    local = ROOT / "clusters/autoscaling-local.yaml"
    sizes = {"max_workers": 3, "policy": "no_such_module:function"}
    job = read_job(job_dict(cluster__elastic=sizes, cluster__file=str(local)))
    started = []
    monkeypatch.setattr(run_nodes, "autoscaling_nodes", started.append)
    with (
        pytest.raises(ScalingError, match="no_such_module"),
        run_nodes.run_nodes(build_job(job, tmp_path), address),
    ):
        started.append("the run")
    assert started == []


def test_a_policy_is_kept_by_its_name(tmp_path):
    name = "tests.cluster.resizing:scripted"
    assert settings_of_job(tmp_path, {"policy": name}).policy == name


# -- what Ray stores -----------------------------------------------------------------


def test_settings_come_back_whole_from_a_pickle(tmp_path):
    write_nodes(tmp_path / "nodes.yaml")
    found = settings_of_job(
        tmp_path, cluster__file="nodes.yaml", cluster__regions=["eu-1"]
    )
    assert pickle.loads(pickle.dumps(found)) == found
    write_prices(tmp_path / "prices.yaml", PRICE)
    priced = settings_of_job(tmp_path, {"prices": "prices.yaml"})
    again = pickle.loads(pickle.dumps(priced))
    assert again.price("small", "eu-1", is_spot=False) == 0.5


def leaves(value):
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list | tuple | set | frozenset):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def test_settings_are_numbers_and_names_and_no_secret_of_the_job(tmp_path):
    write_nodes(tmp_path / "nodes.yaml")
    found = settings_of_job(
        tmp_path,
        cluster__file="nodes.yaml",
        ledger__url=SECRET,
        data__split__salt="salt-word",
    )
    plain = int | float | str | None
    assert all(isinstance(leaf, plain) for leaf in leaves(asdict(found)))
    stored = pickle.dumps(found)
    for secret in (b"secret-word", b"salt-word", b"data.csv", str(tmp_path).encode()):
        assert secret not in stored


@pytest.mark.parametrize(
    "wrong",
    [{"policy": "tests.no_such_module:decide"}, {"prices": "no-such-prices.yaml"}],
    ids=str,
)
def test_what_is_wrong_is_said_before_a_run_is_reserved(tmp_path, monkeypatch, wrong):
    """A dry run says it, too; nobody waits in the queue for a job that cannot run."""
    from pft_ray.cluster.registration import create_budget
    from pft_ray.cluster.trainer import PrivateTrainer
    from pft_ray.errors import PftError
    from pft_ray.ledger import Ledger
    from pft_ray.ledger.home import keys_dir, ledger_location
    from tests.tiny_job import write_job

    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    elastic = {"max_workers": 2} | wrong
    job = write_job(tmp_path / "job", cluster__elastic=elastic)
    create_budget(job, runs=1)
    for start in (lambda t: t.check(), lambda t: t.fit(wait=True)):
        with pytest.raises(PftError) as caught:
            start(PrivateTrainer(job))
        assert caught.value.exit_code == 2
    with Ledger.open(ledger_location(None), keys_dir=keys_dir()) as ledger:
        assert ledger.runs() == []

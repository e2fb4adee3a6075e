"""Cluster files: what they say, and what is refused before anything starts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from ray import _raylet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from pft_ray.cluster.cluster_file import (
    MARKET_LABEL,
    REGION_LABEL,
    load_cluster_file,
    load_local_nodes,
    node_types,
)
from pft_ray.cluster.local import RAY_ENVIRONMENT
from pft_ray.cluster.nodes import complete_document
from pft_ray.errors import ConfigError, InputError, PftError

_CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"
_LOCAL = _CLUSTERS / "autoscaling-local.yaml"
_FILES = sorted(_CLUSTERS.glob("*.yaml"))


def changed(tmp_path, change):
    """The autoscaling-local file with one thing changed in it."""
    document = yaml.safe_load(_LOCAL.read_text())
    change(document)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_labels_are_those_of_this_ray():
    assert REGION_LABEL == _raylet.RAY_NODE_REGION_KEY
    assert MARKET_LABEL == _raylet.RAY_NODE_MARKET_TYPE_KEY


def test_what_may_be_added_is_read_from_the_file():
    (slot,) = node_types(_LOCAL)
    assert (slot.name, slot.cpus, slot.min_nodes, slot.max_nodes) == ("slot", 1, 0, 3)
    assert (slot.region, slot.market, slot.is_head) == ("local-a", "spot", False)
    assert [slot.slots(cpus) for cpus in (0.1, 0.5, 1, 1.5)] == [10, 2, 1, 0]
    file = load_local_nodes(_LOCAL)
    assert (file.max_nodes, file.idle_timeout_s) == (3, pytest.approx(6))
    assert file.node_types[0].is_head
    assert file.node_types[0].slots(0.01) == 0


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_ray_takes_the_files(path):
    file = load_cluster_file(path)
    document = copy.deepcopy(file.document)
    if file.starts_here:
        document = complete_document(file, "127.0.0.1:6379")
    validate_config(prepare_config(copy.deepcopy(document)))
    config = AutoscalingConfig(document, skip_content_hash=True)
    assert config.get_max_num_worker_nodes() == file.max_nodes
    if file.provider == "local":
        return  # Ray makes up the node types of a fixed list of machines
    for kind in file.node_types:
        taken = config.get_node_type_configs()[kind.name]
        assert taken.labels == kind.labels
        assert taken.min_worker_nodes == kind.min_nodes
        assert taken.max_worker_nodes == kind.max_nodes + kind.is_head
        assert set(kind.labels) >= {REGION_LABEL, MARKET_LABEL}


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_the_files_hold_nothing_of_one_machine_or_account(path):
    text = path.read_text()
    for word in ("/home/", "/root", "/Users/", "arn:", "subnet-", "sg-", "ami-"):
        assert word not in text, word
    comments = sum(line.lstrip().startswith("#") for line in text.splitlines())
    assert comments >= 10


@pytest.mark.parametrize(
    "path",
    [path for path in _FILES if not load_cluster_file(path).starts_here],
    ids=lambda path: path.name,
)
def test_started_nodes_have_the_settings_of_a_private_run(path):
    document = load_cluster_file(path).document
    for which in ("head_start_ray_commands", "worker_start_ray_commands"):
        text = "\n".join(document[which])
        assert "ray start" in text
        for name, value in RAY_ENVIRONMENT.items():
            if not name.startswith(("RAY_TRAIN", "TOKENIZERS", "RAY_DEDUP")):
                assert f"{name}={value}" in text, (which, name)
        assert "RAY_AUTH_MODE=token" in text


@pytest.mark.parametrize(
    ("name", "text", "kind", "found"),
    [
        ("none.yaml", None, InputError, "cannot be read"),
        ("list.yaml", "- 1", ConfigError, "empty or a list"),
        ("void.yaml", "", ConfigError, "empty or a list"),
        ("bad.yaml", "a: [1,\nb: }", ConfigError, "not YAML (line"),
        ("bytes.yaml", b"\xff\xfe\x00", InputError, "not text"),
        ("bare.yaml", "max_workers: 3", ConfigError, "names no provider"),
        ("odd.yaml", "provider: {kind: aws}", ConfigError, "names no provider"),
    ],
)
def test_what_is_no_cluster_file_is_refused(tmp_path, name, text, kind, found):
    if text is not None:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind) as caught:
        load_local_nodes(tmp_path / name)
    assert found in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == 2


def slot(document):
    return document["available_node_types"]["slot"]


def drop_head(document):
    del document["available_node_types"]["ray.head.default"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda d: slot(d).update(min_workers=4), "min_workers 4 above max_workers 3"),
        (lambda d: d.update(max_workers=1) or slot(d).update(min_workers=2), "keep 2"),
        (lambda d: slot(d).update(max_workers=-1), "max_workers is -1"),
        (lambda d: slot(d).update(min_workers=True), "min_workers is True"),
        (lambda d: d.update(max_workers="three"), "max_workers is 'three'"),
        (lambda d: d.update(idle_timeout_minutes=-1), "idle_timeout_minutes is -1"),
        (lambda d: d.update(idle_timeout=1), "idle_timeout is not known"),
        (lambda d: slot(d).update(spot=True), "slot.spot is not known"),
        (lambda d: d["provider"].update(region="x"), "provider.region is not known"),
        (lambda d: slot(d).update(resources={"CPU": "one"}), "resources.CPU is 'one'"),
        (lambda d: slot(d).update(resources=[1]), "are mappings"),
        (lambda d: slot(d)["resources"].update(memory=1 << 31), "share one machine"),
        (lambda d: slot(d).update(labels=["spot"]), "are mappings"),
        (lambda d: d.update(available_node_types=[]), "not a mapping"),
        (lambda d: d["available_node_types"].update(slot=None), "not a mapping"),
        (drop_head, "head_node_type is 'ray.head.default', which is not among slot"),
        (lambda d: d.update(head_node_type="slot"), "is of type ray.head.default"),
    ],
)
def test_contradictions_and_unknown_keys_are_refused(tmp_path, change, found):
    with pytest.raises(ConfigError) as caught:
        load_local_nodes(changed(tmp_path, change))
    assert found in caught.value.message
    assert caught.value.fix


def test_files_of_other_providers_are_not_started_but_named(tmp_path):
    path = changed(tmp_path, lambda d: d.update(provider={"type": "aws"}))
    with pytest.raises(InputError) as caught:
        load_local_nodes(path)
    assert "provider aws" in caught.value.message
    assert "`ray up cluster.yaml`" in caught.value.fix
    assert "--address" in caught.value.fix
    assert load_cluster_file(path).provider == "aws"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: slot(d).pop("node_config"),
        lambda d: slot(d)["resources"].update(TPU="many"),
        lambda d: slot(d)["labels"].update(tier=3),
        lambda d: d.update(cluster_name=7),
    ],
)
def test_what_rays_schema_refuses_is_an_error_of_ours(tmp_path, change):
    file = load_local_nodes(changed(tmp_path, change))
    with pytest.raises(PftError, match="is not a cluster file that Ray takes"):
        complete_document(file, "127.0.0.1:6379")

"""cluster.yaml, checked by the code with which `ray up` reads it. No network, no account, no cluster."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()


@pytest.fixture
def cluster() -> dict[str, Any]:
    """What the file says, before Ray adds its defaults."""
    return yaml.safe_load(TEXT)


def validated(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    return {name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def ray_starts(cluster: dict[str, Any]) -> list[str]:
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    assert validated(cluster)["cluster_name"] == "raydenoise"


def test_ray_rejects_an_unknown_key(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout_minute"] = 10
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validated(cluster)


def test_ray_rejects_an_unknown_key_of_a_node_type(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["gpu"]["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validated(cluster)


def test_workers_start_from_none_on_spot(cluster: dict[str, Any]) -> None:
    for name, kind in workers(validated(cluster)).items():
        assert kind["min_workers"] == 0, name
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot", name


def test_the_gpu_workers_alone_may_grow(cluster: dict[str, Any]) -> None:
    prepared = validated(cluster)
    assert {name: kind["max_workers"] for name, kind in workers(prepared).items()} == {"gpu": 4, "cpu": 0}
    assert prepared["max_workers"] == 4


def test_the_head_schedules_nothing_and_is_on_demand(cluster: dict[str, Any]) -> None:
    prepared = validated(cluster)
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0}  # and no GPU
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert "InstanceMarketOptions" not in head["node_config"]


def test_every_ray_start_asks_for_the_token(cluster: dict[str, Any]) -> None:
    starts = ray_starts(cluster)
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_listens_on_the_head_alone(cluster: dict[str, Any]) -> None:
    assert not any("--dashboard-host" in command for command in ray_starts(cluster))


def test_the_metrics_port_is_the_documented_one(cluster: dict[str, Any]) -> None:
    assert all("--metrics-export-port=8080" in command for command in ray_starts(cluster))
    assert 'targets: ["HEAD:8080"]' in (ROOT / "docs" / "cluster.md").read_text()


def test_setup_installs_the_lock_with_its_hashes(cluster: dict[str, Any]) -> None:
    installs = [command for command in validated(cluster)["worker_setup_commands"] if "pip install" in command]
    assert any("--require-hashes -r ~/raydenoise/requirements.lock" in command for command in installs)
    assert any("raydenoise[gpu]" in command for command in installs)
    assert not any("index-url" in command or "://" in command for command in installs)


def test_setup_is_the_same_on_head_and_workers(cluster: dict[str, Any]) -> None:
    prepared = validated(cluster)
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == cluster["setup_commands"]


def test_mounts_are_small_parts_of_the_checkout_that_exist(cluster: dict[str, Any]) -> None:
    local = [Path(path) for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert all((ROOT / path).exists() for path in local)
    assert not {ROOT, ROOT / ".venv", ROOT / "runs"} & {(ROOT / path).resolve() for path in local}


def test_what_a_person_fills_in_is_marked_and_documented() -> None:
    marked = re.findall(r"\S*?(\w+-REPLACE_ME)", TEXT)
    assert marked == ["ami-REPLACE_ME", "fs-REPLACE_ME"]
    guide = (ROOT / "docs" / "cluster.md").read_text()
    assert all(name in guide for name in marked)
    assert not re.search(r"\b\d{12}\b|\b(ami|fs|subnet|sg|vpc)-[0-9a-f]{8,}\b", TEXT)  # no real account or its parts


def test_every_top_level_key_says_why() -> None:
    lines = TEXT.splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"\w+:", line)]
    assert len(keys) == len(yaml.safe_load(TEXT))
    assert [lines[number] for number in keys if not lines[number - 1].startswith("# ")] == []

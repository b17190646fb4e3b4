import json
from pathlib import Path

import pytest

from raydenoise.config import DenoiseConfig
from raydenoise.pipelines import session


def plan(
    monkeypatch: pytest.MonkeyPatch, *, now: dict, possible: dict, images: int = 1_000, node: int = 4, **options: object
) -> session.Plan:
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: now)
    monkeypatch.setattr(session, "possible_resources", lambda: possible)
    monkeypatch.setattr(session, "nodes_up", lambda: [session.NodeType({"CPU": node}, 1)] if now else [])
    monkeypatch.setattr(session, "node_types", lambda: [session.NodeType({"CPU": node}, 4)] if possible else [])
    return session.make_plan(DenoiseConfig(input="in", output="out", **options), images=images)


def test_a_cpu_machine_gets_an_actor_a_core_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(monkeypatch, now={"CPU": 5}, possible={"CPU": 5})
    assert (made.actors, made.initial, made.gpus, made.cpus, made.fused) == (4, 4, 0, 1, True)


def test_a_large_cpu_node_gets_eight_actors_with_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for cpus, threads in ((65, 8), (15, 2)):
        made = plan(monkeypatch, now={"CPU": cpus}, possible={}, node=cpus)
        assert made.cpus == threads
        assert made.actors == (cpus - 1) // threads <= 8


def test_actors_are_sized_by_the_nodes_that_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(monkeypatch, now={}, possible={"CPU": 64}, node=16, address="auto")
    assert (made.actors, made.initial, made.cpus) == (31, 1, 2)


def test_gpus_that_the_autoscaler_can_bring_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(monkeypatch, now={"CPU": 2}, possible={"CPU": 34, "GPU": 8}, address="auto")
    assert (made.actors, made.initial, made.gpus, made.fused) == (8, 1, 1, False)


def test_a_part_of_a_gpu_makes_more_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"CPU": 16, "GPU": 2}
    assert plan(monkeypatch, now=resources, possible=resources, gpus_per_actor=0.5).actors == 4


def test_a_gpu_cluster_may_be_used_without_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"CPU": 5, "GPU": 2}
    made = plan(monkeypatch, now=resources, possible=resources, gpus_per_actor=0)
    assert (made.actors, made.fused) == (4, True)


def test_there_are_never_more_actors_than_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(monkeypatch, now={"CPU": 65}, possible={"CPU": 65}, images=3)
    assert (made.actors, made.rows) == (3, 1)


@pytest.mark.parametrize(("images", "rows"), [(1, 1), (20, 2), (1_000, 8), (100_000, 25), (2_000_000, 64)])
def test_tasks_grow_with_the_job(monkeypatch: pytest.MonkeyPatch, images: int, rows: int) -> None:
    assert plan(monkeypatch, now={"CPU": 5}, possible={"CPU": 5}, images=images).rows == rows


def test_more_gpus_than_the_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="gpus_per_actor is 4; allowed: at most this machine's 2 GPUs"):
        plan(monkeypatch, now={"CPU": 4, "GPU": 2}, possible={}, gpus_per_actor=4)


def test_a_cluster_may_bring_what_it_does_not_have_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(monkeypatch, now={}, possible={}, gpus_per_actor=1, actors=3, address="auto")
    assert (made.actors, made.initial, made.gpus) == (3, 1, 1)


@pytest.mark.parametrize(
    ("found", "given", "declared"),
    [(0, None, [None, 0]), (0, 0.5, [None, 0]), (2, None, [None]), (0, 0.0, [0])],
    ids=["none", "asked", "all", "unused"],
)
def test_gpus_that_tensorflow_does_not_find_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: int,
    given: float | None,
    declared: list[int | None],
) -> None:
    begun: list[int | None] = []
    monkeypatch.setattr(session.ray, "init", lambda **options: begun.append(options["num_gpus"]))
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: {"GPU": 2.0})
    monkeypatch.setattr(session, "tensorflow_gpus", lambda: found)
    with session.session(None, cpus=2, gpus=given, verbose=False):
        assert begun == declared
    warned = "this machine has 2 GPUs, and TensorFlow finds none" in capsys.readouterr().err
    assert warned == (declared == [None, 0])


def test_tensorflow_is_asked_for_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert session.tensorflow_gpus() == 0


def test_the_launchers_file_tells_what_can_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(
        "max_workers: 8\n"
        "available_node_types:\n"
        "  head: {resources: {CPU: 0}, max_workers: 0}\n"
        "  gpu: {resources: {CPU: 16, GPU: 1}, max_workers: 6}\n"
        "  cpu: {resources: {CPU: 8}}\n"
    )
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: {"CPU": 1, "memory": 5})
    monkeypatch.setattr("ray._private.state.state.get_max_resources_from_cluster_config", lambda: None)
    assert session.possible_resources(path) == {"CPU": 160, "GPU": 6, "memory": 5}
    assert session.possible_resources(tmp_path / "none") == {"CPU": 1, "memory": 5}


def test_the_launchers_file_tells_what_a_node_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(
        "max_workers: 8\navailable_node_types:\n"
        "  head: {resources: {CPU: 0}, max_workers: 0}\n  cpu: {resources: {CPU: 8}}\n"
    )
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: None)
    assert session.node_types(path) == [session.NodeType({"CPU": 8}, 8)]
    assert session.node_types(tmp_path / "none") == []


def test_no_process_spans_two_nodes() -> None:
    node = session.NodeType({"CPU": 5.0, "GPU": 2.0}, 3)
    assert node.places(cpus=2, gpus=0) == 6
    assert node.places(cpus=6, gpus=0) == 0
    assert node.places(cpus=1, gpus=1) == 6
    assert node.places(cpus=1, gpus=0.5) == 12
    assert session.NodeType({"CPU": 0.3}, 1).places(cpus=0.1, gpus=0) == 3


@pytest.mark.parametrize(
    ("report", "by_hand"),
    [
        (None, False),
        ({"load_metrics_report": {}}, False),
        ({"autoscaler_report": {"active_nodes": {"node_0a": 1, "node_1b": 1}}}, True),
        ({"autoscaler_report": {"active_nodes": {"headgroup": 1}}}, False),
    ],
)
def test_a_cluster_without_autoscaler_names_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
    report: dict | None,
    by_hand: bool,
) -> None:
    monkeypatch.setattr(session, "_internal_kv_get", lambda _: report and json.dumps(report).encode())
    assert session.started_by_hand() is by_hand


def test_a_job_says_which_nodes_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": alive, "Resources": {"CPU": 4.0, "GPU": 1.0}} for alive in (True, True, False)]
    monkeypatch.setattr(session.ray, "nodes", lambda: nodes)
    begin = "waiting for nodes: a process asks for 1 CPUs and 1 GPUs; "
    assert session.waiting_for_nodes(cpus=1, gpus=1, processes=2) is None
    assert session.waiting_for_nodes(cpus=1.0, gpus=1, processes=3) == begin + "the nodes that are up hold 2 of 3"
    alone = "waiting for nodes: a process asks for 8 CPUs and 0 GPUs; no node that is up has them"
    assert session.waiting_for_nodes(cpus=8) == alone


def test_the_address_comes_from_the_flag_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert session.cluster_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert session.cluster_address(None) == "10.0.0.1:6379"
    assert session.cluster_address("auto") == "auto"

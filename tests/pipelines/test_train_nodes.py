"""Training over several nodes: real raylets on this machine, each with CPUs of its own declaration."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from raydenoise.config import TrainConfig
from raydenoise.model import bundle, precision
from raydenoise.pipelines import checks, train
from raydenoise.pipelines.session import started_by_hand
from tests.pipelines.test_train import TINY, assert_same_bits, write_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"),
]

NODE_CPUS = 3
ONE_A_NODE: dict[str, Any] = {"workers": 2, "cpus_per_worker": 2.0}  # two do not fit, and one is left for reading


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that takes no work, as in cluster.yaml, and three nodes."""
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
    for _ in range(3):
        started.add_node(num_cpus=NODE_CPUS, num_gpus=0)
    ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
    yield started
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    shards = write_shards(tmp_path_factory.mktemp("shards"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "session", lambda *_, **__: nullcontext())
        patch.setattr(train, "work", work_and_tell)
        yield lambda output, **options: train.run(
            TrainConfig(
                **{
                    "shards": str(shards),
                    "output": str(output),
                    "address": cluster.address,
                    **TINY,
                    **ONE_A_NODE,
                    **options,
                }
            )
        )


def work_and_tell(given: dict[str, Any]) -> None:
    """The worker's own function; each rank tells its node and the digest of what it holds at each checkpoint."""
    import os

    os.environ["KERAS_BACKEND"] = "tensorflow"
    from raydenoise.pipelines import worker

    checkpoint = worker._checkpoint

    def tell(engine: Any, facts: Any, **options: Any) -> None:
        variables = [*engine.averaged.weights, *engine.model.weights, *engine.optimizer.variables]
        digest = hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in variables)).hexdigest()
        node = ray.get_runtime_context().get_node_id()
        rank = ray.train.get_context().get_world_rank()
        path = Path(given["task"].run) / f"step-{facts.step}-rank-{rank}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"node": node, "digest": digest}))
        partial.replace(path)
        checkpoint(engine, facts, **options)

    worker._checkpoint = tell
    worker.work(given["task"], given["board"])


def told(folder: Path, step: int) -> list[dict[str, str]]:
    return [json.loads((folder / f"step-{step}-rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def undisturbed(run: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(folder)
    return folder


def test_two_nodes_train_one_network(undisturbed: Path) -> None:
    first, second = told(undisturbed, TINY["steps"])
    assert first["node"] != second["node"]
    assert first["digest"] == second["digest"]
    assert told(undisturbed, 10)[0]["digest"] != first["digest"]
    card = bundle.load(undisturbed / "bundle").card
    assert card.training["workers"] == 2
    assert card.scores["test"]["psnr_denoised_25"] > card.scores["test"]["psnr_noisy_25"]


def test_a_worker_larger_than_every_node_is_refused(run: Callable[..., None], tmp_path: Path) -> None:
    end = time.monotonic() + 30
    while not started_by_hand() and time.monotonic() < end:  # seconds after the head's start
        time.sleep(0.5)
    with pytest.raises(ValueError, match=r"hold 0 of them, .* allowed: at most 3 --cpus-per-worker, or larger nodes"):
        run(tmp_path / "run", workers=1, cpus_per_worker=4.0)
    assert not (tmp_path / "run").exists()


def test_the_workers_nodes_choose_the_precision(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checks.trained_in(precision.resolve("auto"))
    monkeypatch.setattr(precision, "resolve", lambda *_, **__: pytest.fail("the driver was asked"))
    run(tmp_path / "run", precision="auto", steps=2, checkpoint_every=2, validate_every=2)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["recipe"]["precision"] == expected


def remove_a_node(cluster: Cluster, folder: Path, *, step: int, done: threading.Event) -> None:
    """Take away the node of the last rank at the checkpoint of a step, with everything that runs there."""
    while not done.wait(0.05):
        if (folder / f"step-{step}-rank-1.json").exists():
            node = json.loads((folder / f"step-{step}-rank-1.json").read_text())["node"]
            (lost,) = (one for one in cluster.worker_nodes if one.node_id == node)
            cluster.remove_node(lost, allow_graceful=False)
            done.set()


def test_a_lost_node_costs_time_only(
    cluster: Cluster, run: Callable[..., None], undisturbed: Path, tmp_path: Path
) -> None:
    done = threading.Event()
    remover = threading.Thread(
        target=remove_a_node, args=(cluster, tmp_path / "run"), kwargs={"step": 20, "done": done}
    )
    remover.start()
    try:
        run(tmp_path / "run")
        assert done.is_set(), "no node was removed"
    finally:
        done.set()
        remover.join()
    end = told(tmp_path / "run", TINY["steps"])
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert len(alive) == 3  # of four, the head counted
    assert {one["node"] for one in end} <= alive
    assert end[0]["digest"] == end[1]["digest"]
    assert_same_bits(tmp_path / "run", undisturbed)
    rows = pq.read_table(tmp_path / "run" / "metrics").sort_by("step").to_pylist()
    assert [row["step"] for row in rows] == [10, 20, 30, 40]

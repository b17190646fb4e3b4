"""Local folders over several nodes: a real raylet that sees another folder under the same path.

It runs in a mount namespace of its own, with an empty disk over that folder: what a machine without the shared folder
sees. Skipped where the system lets nobody make one.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import ray
from ray._private import services
from ray.cluster_utils import Cluster

from raydenoise.config import DenoiseConfig, EvaluateConfig, PrepareConfig, TrainConfig
from raydenoise.pipelines import denoise, evaluate, prepare, train
from tests.conftest import noisy_pixels
from tests.pipelines.test_denoise_nodes import agent_ports, patience
from tests.pipelines.test_train import TINY, write_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"),
    # Ray leaves the sockets open with which it looked for a node's free ports.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ELSEWHERE = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c"]
HIDE = 'mount -t tmpfs none "$0" && exec "$@"'
ALLOWED = r"; allowed: a folder that all machines share, s3:// or gs://$"


def blind(start: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Ray's own way to start a process, but a raylet gets an empty disk over the folder."""

    def started(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        raylet = process_type == services.ray_constants.PROCESS_TYPE_RAYLET
        return start(
            [*ELSEWHERE, HIDE, str(folder), *command] if raylet else command, process_type, *arguments, **options
        )

    return started


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is another one on the second of two nodes; Ray is connected to them."""
    folder = tmp_path_factory.mktemp("unshared")
    tried = shutil.which("unshare") and subprocess.run([*ELSEWHERE, HIDE, folder, "true"], check=False).returncode == 0
    if not tried:
        pytest.skip("no mount namespaces here")
    with patience():
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **agent_ports()}
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(services, "start_ray_process", blind(services.start_ray_process, folder))
            cluster.add_node(num_cpus=1, **agent_ports())
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield folder
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the jobs take the Ray that is there."""
    for module in (denoise, evaluate, prepare, train):
        monkeypatch.setattr(module, "session", lambda *_, **__: nullcontext())


def jobs(read: Path, write: Path, shards: Path, model: Path) -> dict[str, Callable[[], Any]]:
    common: dict[str, Any] = {"address": "here", "quiet": True, "output": str(write / "out" / "sub")}
    return {
        "denoise": lambda: denoise.run(DenoiseConfig(input=str(read), model=str(model), **common)),
        "prepare": lambda: prepare.run(PrepareConfig(input=(str(read),), patch=32, **common)),
        "evaluate": lambda: evaluate.run(EvaluateConfig(input=str(read), models=("median",), **common)),
        "train": lambda: train.run(TrainConfig(**{"shards": str(shards), **TINY, **common})),
    }


@pytest.mark.parametrize("verb", ["denoise", "prepare", "evaluate", "train"])
def test_a_folder_that_a_node_does_not_see_is_refused_before_the_work(
    verb: str, unshared: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    pictures = {tmp_path / "shared" / verb, unshared / verb}
    for folder in pictures:
        folder.mkdir(parents=True)
        PIL.Image.fromarray(noisy_pixels(40, 57)).save(folder / "a.png")
    shards = write_shards(tmp_path / "shards") if verb == "train" else tmp_path
    run = jobs(tmp_path / "shared" / verb, unshared / verb, shards, tiny_bundle)[verb]
    with pytest.raises(ValueError, match=rf"^output '{unshared}/{verb}/out/sub' is another folder on \S+{ALLOWED}"):
        run()
    left = {path.name for path in (unshared / verb).rglob("*") if path.is_file()}
    assert left == {"a.png"} | ({"000001.json"} if verb == "denoise" else set()), "only the lease"

    if verb == "train":
        shutil.copytree(shards, unshared / "shards")
    run = jobs(unshared / verb, tmp_path, unshared / "shards", tiny_bundle)[verb]
    with pytest.raises(ValueError, match=rf"^{unshared}/\S+ is not on \S+{ALLOWED}"):
        run()
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {"000001.json"}


def test_a_folder_that_all_nodes_see_is_not_refused(unshared: Path, tmp_path: Path) -> None:
    assert unshared.is_dir()
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(noisy_pixels(40, 57)).save(tmp_path / "in" / "a.png")
    summary = jobs(tmp_path / "in", tmp_path, tmp_path, tmp_path)["prepare"]()
    assert (summary["used"], summary["failed"]) == (1, 0)

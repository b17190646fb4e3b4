"""The main job over several nodes: real raylets on this machine, each with CPUs of its own declaration."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle
from ray._private import services
from ray.cluster_utils import Cluster

from raydenoise.config import DenoiseConfig
from raydenoise.pipelines import denoise, stages
from tests.conftest import noisy_pixels
from tests.pipelines.test_gauges import OK, wait_for
from tests.test_jobs import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"),
    # Ray leaves the sockets open with which it looked for a node's free ports.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

START_SECONDS = 180.0  # of a node
PICTURES = 36
SECONDS = 0.5  # that an actor sleeps at each picture, so that a job lasts long enough to be disturbed
FATAL = "20.png"
LAST, LAST_SECONDS = "z-last.png", 20.0  # the last one, while the other actors have nothing to do


def telling(base: type[stages.DenoiseActor], folder: Path) -> type[stages.DenoiseActor]:
    """The job's own actor; it names its node in its rows and in a file, and takes its time."""

    class Telling(base):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            node = ray.get_runtime_context().get_node_id()
            self._worker = f"{self._worker}/{node}"
            (folder / f"{node}-{os.getpid()}").touch()

        def _denoise(self, work: stages.Work) -> None:
            time.sleep(LAST_SECONDS if work.source["key"] == LAST else SECONDS)
            super()._denoise(work)

    return Telling


@contextmanager
def patience() -> Iterator[None]:
    """Ray gives a node 30 s to register, too few on two busy cores: ask for longer before Ray gives it up."""
    ask = services.get_node

    def keep_asking(*arguments: Any) -> Any:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", keep_asking)
        yield


def agent_ports() -> dict[str, int]:
    """Ports for a node's agents: a raylet that has to hear of them from the agents gives up after 15 s."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    return dict(zip(names, free_ports(len(names)), strict=True))


@dataclass
class Nodes:
    """A head that takes no work, as in cluster.yaml, and nodes with room for one actor each."""

    cluster: Cluster
    images: int = 0  # rows of all jobs so far

    def add(self) -> None:
        # Handlers of signals, which end a node with this process, can be set in the main thread alone.
        self.cluster._shutdown_at_exit = threading.current_thread() is threading.main_thread()
        with patience():
            self.cluster.add_node(num_cpus=2, num_gpus=1, **agent_ports())  # no GPU is there: it is declared

    def remove(self, node: str, *, kill: bool) -> None:
        (lost,) = (one for one in self.cluster.worker_nodes if one.node_id == node)
        self.cluster.remove_node(lost, allow_graceful=not kill)

    def ids(self) -> set[str]:
        return {node.node_id for node in self.cluster.worker_nodes}

    def counted(self) -> dict[tuple, float]:
        (head,) = (node for node in ray.nodes() if node["NodeID"] == self.cluster.head_node.node_id)
        return wait_for(head, images=self.images)["ray_raydenoise_images_total"]


@dataclass
class Job:
    """A job on these nodes, which a test may disturb meanwhile."""

    nodes: Nodes
    pictures: Path
    model: Path
    root: Path

    def run(self, *, actor: Callable[..., type] = telling, **options: Any) -> None:
        (self.root / "seen").mkdir(parents=True)
        config = {"input": str(self.pictures), "output": str(self.root / "out"), "model": str(self.model)}
        options = {"actors": 3, "cpus_per_actor": 2, "gpus_per_actor": 0, "precision": "float32", **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(denoise, "session", lambda *_, **__: nullcontext())
            for name in ("FusedActor", "DenoiseActor"):
                patch.setattr(denoise, name, actor(getattr(stages, name), self.root / "seen"))
            denoise.run(DenoiseConfig(**config, address=self.nodes.cluster.address, quiet=True, **options))
        self.nodes.images += len(self.rows())

    def seen(self) -> list[tuple[str, int]]:
        """(node, process) of each actor that was ever made."""
        names = [path.name.rsplit("-", 1) for path in sorted((self.root / "seen").glob("*"))]
        return [(node, int(pid)) for node, pid in names]

    def done(self) -> int:
        return len(list((self.root / "out" / "images").rglob("*.png")))

    def rows(self) -> list[dict[str, Any]]:
        return pq.read_table(self.root / "out" / "metrics").sort_by("key").to_pylist()

    def worked(self) -> set[str]:
        """The nodes that the rows name."""
        return {row["worker"].rsplit("/", 1)[1] for row in self.rows()}

    def files(self) -> dict[str, bytes]:
        found = [path for path in (self.root / "out" / "images").rglob("*") if path.is_file()]
        return {path.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, **agent_ports()}
    with patience():
        started = Nodes(Cluster(initialize_head=True, head_node_args=head))
    for _ in range(3):
        started.add()
    ray.init(address=started.cluster.address, log_to_driver=False, logging_level="ERROR")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
    yield started
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()
    started.cluster.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small noisy PNG pictures; decoded, each has more than the 100 kB that Ray passes along past its object store."""
    folder = tmp_path_factory.mktemp("in")
    for index in range(PICTURES):
        PIL.Image.fromarray(noisy_pixels(160 + index, 240, seed=index)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, pictures: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(nodes, pictures, tiny_bundle, tmp_path_factory.mktemp("undisturbed") / "job")
    job.run()
    return job


@contextmanager
def meanwhile(step: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a step beside the job; what goes wrong in it fails the test."""
    over, errors = threading.Event(), []

    def guarded() -> None:
        try:
            step(over)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_work_spreads_over_the_nodes(nodes: Nodes, undisturbed: Job) -> None:
    assert len(undisturbed.worked()) >= 2
    assert undisturbed.worked() <= nodes.ids(), "and none of it is done on the head"
    assert len(undisturbed.files()) == len(undisturbed.rows()) == PICTURES


@pytest.mark.parametrize("gpus", [0, 1], ids=["one process", "three processes"])
def test_a_lost_node_costs_time_only(gpus: int, undisturbed: Job, tmp_path: Path) -> None:
    """A node with a working actor dies with all its processes, what its object store holds included."""
    nodes = undisturbed.nodes
    job = Job(nodes, undisturbed.pictures, undisturbed.model, tmp_path / "job")
    lost: list[str] = []

    def remove(over: threading.Event) -> None:
        while not over.wait(0.05) and not lost:
            if job.done() >= PICTURES // 4 and len(job.seen()) >= 2:
                lost.append(job.seen()[0][0])
                nodes.remove(lost[0], kill=True)

    with meanwhile(remove):
        job.run(gpus_per_actor=gpus)

    assert len(lost) == 1, "no node was removed"
    assert lost[0] not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert [row["key"] for row in job.rows()] == [row["key"] for row in undisturbed.rows()], "one row for each picture"
    assert {row["status"] for row in job.rows()} == {"ok"}
    assert job.files() == undisturbed.files(), "the same files with the same bytes, and none besides"
    assert nodes.counted() == {OK: nodes.images}, "a picture that was tried again counts once"
    nodes.add()


def fatal(base: type[stages.FusedActor], folder: Path) -> type[stages.FusedActor]:
    """The job's own actor, in whose hands one picture kills its process; at the second time the machine goes as well,
    half a second behind it, as on a machine that is shut down: so Ray takes it for there when the picture is tried
    again.
    """

    class Fatal(base):  # type: ignore[misc, valid-type]
        def _denoise(self, work: stages.Work) -> None:
            marks = [folder / name for name in ("first", "second") if not (folder / name).exists()]
            if work.source["key"] == FATAL and marks:
                marks[0].write_text(ray.get_runtime_context().get_node_id())
                if marks[0].name == "second":
                    raylet = os.getppid()
                    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {raylet}"], start_new_session=True)
                os.kill(os.getpid(), signal.SIGKILL)
            super()._denoise(work)

    return Fatal


def test_the_death_of_a_machine_does_not_count_though_ray_has_not_noticed_it(undisturbed: Job, tmp_path: Path) -> None:
    nodes = undisturbed.nodes
    job = Job(nodes, undisturbed.pictures, undisturbed.model, tmp_path / "job")
    job.run(attempts=2, actor=fatal, actors=2)  # with a node to spare, where a dead actor comes again at once
    assert {row["status"] for row in job.rows()} == {"ok"}, "one death of a process, one of a machine"
    assert job.files() == undisturbed.files()
    lost = (job.root / "seen" / "second").read_text()
    nodes.remove(lost, kill=True)
    nodes.add()


def test_the_pool_grows_with_the_cluster_and_shrinks_at_the_end(undisturbed: Job, tmp_path: Path) -> None:
    nodes, pictures, total = undisturbed.nodes, tmp_path / "in", 4 * PICTURES
    for copy in range(
        4
    ):  # a minute for one actor: Ray Data looks for new nodes every ten seconds, an actor takes as long
        shutil.copytree(undisturbed.pictures, pictures / str(copy))
    shutil.copy(pictures / "0" / "00.png", pictures / LAST)
    for node in sorted(nodes.ids())[1:]:
        nodes.remove(node, kill=False)
    job = Job(nodes, pictures, undisturbed.model, tmp_path / "job")
    looks: list[tuple[int, int, int]] = []  # pictures done, actors ever made, actors that live

    def grow(over: threading.Event) -> None:
        while not over.wait(0.2):
            made = job.seen()
            looks.append((job.done(), len(made), sum(alive(pid) for _, pid in made)))
            if job.done() >= total // 16 and len(nodes.ids()) == 1:
                nodes.add()
                nodes.add()

    with meanwhile(grow):
        job.run(actors=2)

    assert {made for done, made, _ in looks if 0 < done < total // 16} == {1}, "one node, one actor"
    assert max(live for _, _, live in looks) == 2, "it grows to --actors, though a third node is there"
    assert len(job.worked()) == 2, "and the new actor works"
    at_last = [live for done, _, live in looks if done == total]
    assert at_last[-1] == 1, "it shrinks while the last picture is being worked on"
    assert len(job.rows()) == total + 1

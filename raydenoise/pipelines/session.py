"""The Ray that a job runs on: a private local one, or a cluster; and what of it the job takes."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
import ray.data
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.utils import get_num_cpus
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LAUNCHER_CONFIG = Path.home() / "ray_bootstrap_config.yaml"  # where `ray up` puts it on the head node
RAY_NICENESS = 15  # of Ray's workers, by its own default: they leave the machine to everything else on it
SMALL_TASK = 8  # pictures per task of a small job: seconds of work, so that the progress display moves
LARGE_TASK = 64  # of a large one: two million pictures are 31,000 tasks


class Demand(Protocol):
    """What the configs of the verbs with denoising actors hold."""

    @property
    def address(self) -> str | None:
        """Of the cluster."""

    @property
    def actors(self) -> int | Literal["auto"]:
        """How many."""

    @property
    def gpus_per_actor(self) -> float | None:
        """GPUs of each."""

    @property
    def cpus_per_actor(self) -> int | None:
        """CPUs of each."""


@dataclass(frozen=True)
class Plan:
    """What a job takes of its Ray.

    Attributes:
        actors: denoising processes, at most.
        initial: how many of them the cluster has room for now.
        gpus: of each.
        cpus: of each; on a CPU also its threads.
        rows: pictures per task.
    """

    actors: int
    initial: int
    gpus: float
    cpus: int
    rows: int

    @property
    def fused(self) -> bool:
        """Decode, denoise and encode in one process: fastest on CPUs; a GPU wants other CPUs to feed it."""
        return self.gpus == 0


def cluster_address(given: str | None) -> str | None:
    """Where Ray is: --address, else RAY_ADDRESS (a submitted job has it), else None for a private local one."""
    return given or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def session(
    address: str | None,
    *,
    cpus: int,
    gpus: float | None,
    dashboard: bool = False,
    niceness: int = RAY_NICENESS,
    verbose: bool,
) -> Iterator[None]:
    """Connect to the cluster or start a private local Ray, quiet unless asked, and leave it at the end.

    Args:
        address: of the cluster; None for a private local Ray.
        cpus: that a private local Ray declares.
        gpus: of each process of the job; None where there are any. Where they take none, a private local Ray declares
            none, else those of the machine, if TensorFlow finds them.
        dashboard: start its dashboard too, which answers questions about actors; all its workers ask this one.
        niceness: of the workers of a private local Ray, unless the environment says another one.
        verbose: let Ray talk.

    Raises:
        ValueError: no Ray answers at the address.
    """
    level = logging.INFO if verbose else logging.ERROR
    common = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    if address is None:
        os.environ.setdefault("RAY_worker_niceness", str(niceness))  # the name of Ray's option
        asked = dashboard_options() if dashboard else {"include_dashboard": False}
        start = partial(ray.init, address="local", num_cpus=cpus, **asked, **common)
        start(num_gpus=0 if gpus == 0 else None)
        there = 0 if gpus == 0 else ray.cluster_resources().get("GPU", 0)
        if there and not tensorflow_gpus():
            told = "and TensorFlow finds none: CPUs compute. docs/denoise.md tells what it lacks"
            sys.stderr.write(f"warning: this machine has {there:g} GPUs, {told}\n")
            ray.shutdown()
            start(num_gpus=0)
    else:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"address is {address!r}, and no Ray answers there: {error}") from error
    try:
        logging.getLogger("ray.data").setLevel(level)
        yield
    finally:
        ray.shutdown()


def tensorflow_gpus() -> int:
    """Count the GPUs of this machine that TensorFlow finds: none without CUDA's libraries, which are an extra."""
    code = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return int(found.stdout) if found.stdout.strip().isdigit() else 0


def dashboard_options() -> dict[str, Any]:
    """Options of `ray.init` for a private local Ray with a dashboard that its own workers find.

    A worker that asks about an actor looks for the Rays of the machine, and gives up where there are two. Told the
    address it does not look; to tell it, the port must be known before the Ray starts.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        "runtime_env": {"env_vars": {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}},
    }


def configure_data(*, verbose: bool) -> None:
    """Set what Ray Data reads when a dataset is made; with `verbose` it talks."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Bytes: every parcel is a block of its own. Rows come as they are done, and where Ray does a task again it goes on
    # behind the blocks that it has, by their number, so that they must not depend on how many bytes a row has.
    context.target_max_block_size = 1
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose else logging.ERROR)


def cores() -> int:
    """Count the cores of this machine, or of the container on it."""
    return int(get_num_cpus())


def local_cpus(config: Demand) -> int:
    """Declare the machine's cores and one more: the driver's own small tasks cost little but need a slot."""
    asked = 0 if config.actors == "auto" else config.actors * (config.cpus_per_actor or 1)
    return max(cores(), asked, config.cpus_per_actor or 1) + 1


def make_plan(config: Demand, *, images: int) -> Plan:
    """Choose actors and their resources from what the cluster has or its autoscaler can bring.

    What a flag asks for and a cluster lacks is waited for, since its autoscaler may bring it without saying so
    beforehand (KubeRay's does not).

    Raises:
        ValueError: an actor asks for more GPUs or CPUs than the private local Ray has.
    """
    private = cluster_address(config.address) is None
    now = ray.cluster_resources()
    possible = now if private else possible_resources()
    gpus = config.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if possible.get("GPU", 0) >= 1 else 0.0
    if private and gpus > possible.get("GPU", 0):
        raise ValueError(f"gpus_per_actor is {gpus:g}; allowed: at most this machine's {possible.get('GPU', 0):g} GPUs")
    cpus = config.cpus_per_actor or (1 if gpus else _actor_cpus(private=private))

    def room(resources: dict[str, float]) -> int:
        # One CPU stays free: decoding and encoding beside a GPU, Ray's own tasks beside CPU actors.
        by_cpu = (resources.get("CPU", 0) - 1) // cpus
        return max(1, int(min(by_cpu, resources.get("GPU", 0) // gpus) if gpus else by_cpu))

    actors = room(possible) if config.actors == "auto" else config.actors
    actors = min(actors, images)
    return Plan(
        actors=actors,
        initial=min(actors, room(now)),
        gpus=gpus,
        cpus=cpus,
        rows=task_rows(images, workers=actors),
    )


def task_rows(images: int, *, workers: int) -> int:
    """Choose the pictures of a task: four tasks a worker at least, so that all end together."""
    small = min(SMALL_TASK, -(-images // (4 * workers)))
    return min(LARGE_TASK, max(small, images // 4_000))


def possible_resources(launcher_config: Path = LAUNCHER_CONFIG) -> dict[str, float]:
    """What the cluster has, or can scale to as far as that can be known.

    Known are what a cluster reports by `report_cluster_config` and, on the head node, the file that `ray up` put there:
    the node types with their resources and bounds. `ray job submit` runs its driver on the head node.
    """
    possible = dict(ray.cluster_resources())
    # Ray Train asks the same question the same way (worker_group.py); there is no public call for it.
    from ray._private import state

    reported = state.state.get_max_resources_from_cluster_config() or {}
    launched = _launcher_resources(launcher_config)
    for name in {*reported, *launched}:
        possible[name] = max(possible.get(name, 0), reported.get(name, 0), launched.get(name, 0))
    return possible


def _launcher_resources(path: Path) -> dict[str, float]:
    """The most that a launcher file allows, of each resource; nothing where there is none."""
    most: dict[str, float] = {}
    for node_type in _launcher_types(path):
        for name, amount in node_type.resources.items():
            most[name] = most.get(name, 0) + amount * node_type.count
    return most


def _launcher_types(path: Path) -> "list[NodeType]":
    if not path.is_file():
        return []
    config = yaml.safe_load(path.read_text())
    return [
        NodeType(node_type.get("resources", {}), node_type.get("max_workers", config.get("max_workers", 0)))
        for node_type in config.get("available_node_types", {}).values()
    ]


@dataclass(frozen=True)
class NodeType:
    """A kind of node: its resources, and how many there are or can be launched."""

    resources: Mapping[str, float]
    count: int

    def places(self, *, cpus: float, gpus: float) -> int:
        """How many processes with such resources they hold together; no process spans two nodes."""
        held = (self.resources.get("CPU", 0) + 1e-6) // cpus  # logical CPUs are counted to four digits
        if gpus:
            held = min(held, (self.resources.get("GPU", 0) + 1e-6) // gpus)
        return int(held) * self.count


def nodes_up() -> list[NodeType]:
    """The nodes that are up."""
    return [NodeType(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]


def node_types(launcher_config: Path = LAUNCHER_CONFIG) -> list[NodeType]:
    """What the cluster says that it can launch; see `possible_resources`."""
    from ray._private import state

    reported = state.state.get_cluster_config()
    groups = [] if reported is None else reported.node_group_configs
    types = [
        NodeType(dict(group.resources), sys.maxsize if group.max_count < 0 else group.max_count) for group in groups
    ]
    return [one for one in [*types, *_launcher_types(launcher_config)] if one.count]


def started_by_hand() -> bool:
    """Whether no other nodes will come by themselves, as far as that can be known: the cluster has no autoscaler.

    The head's monitor reports the types of the nodes; without an autoscaler each is one of its own, `node_` and its id
    (ray/autoscaler/_private/monitor.py). Not known is it in a head's first seconds, and with Ray's second autoscaler.
    """
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report")
    return report is not None and all(name.startswith("node_") for name in report["active_nodes"])


def _actor_cpus(*, private: bool) -> int:
    """An eighth of the smallest node with CPUs: one that is up, or that a cluster without workers yet can launch.

    At most 8 actors a node: each holds TensorFlow (about 0.7 GB), and a few threads each lose little.
    """
    nodes = nodes_up() if private else [*nodes_up(), *node_types()]
    cpus = [int(node.resources.get("CPU", 0)) for node in nodes]
    return max(1, -(-(min((count for count in cpus if count), default=1) - 1) // 8))


def waiting_for_nodes(*, cpus: float, gpus: float = 0, processes: int = 1) -> str | None:
    """Why nothing has come yet, where the reason is a node that is not there: what processes ask for is nowhere."""
    held = sum(node.places(cpus=cpus, gpus=gpus) for node in nodes_up())
    if held >= processes:
        return None
    asked = f"waiting for nodes: a process asks for {cpus:g} CPUs and {gpus:g} GPUs; "
    return asked + (f"the nodes that are up hold {held} of {processes}" if held else "no node that is up has them")


def here() -> NodeAffinitySchedulingStrategy:
    """Place an actor or a task on the driver's machine; else Ray would place it anywhere."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)

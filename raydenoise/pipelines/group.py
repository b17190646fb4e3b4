"""The worker group of a training: what it takes of its Ray, and what its workers do. Imports no TensorFlow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import ray

from raydenoise.data.lease import Claim
from raydenoise.data.place import Place
from raydenoise.data.shards import ShardSet
from raydenoise.pipelines.displays import LINE_SECONDS, say
from raydenoise.pipelines.process import ModelFiles, fast_precision_of_worker
from raydenoise.pipelines.samples import Source
from raydenoise.pipelines.session import (
    NodeType,
    cores,
    node_types,
    nodes_up,
    possible_resources,
    started_by_hand,
    waiting_for_nodes,
)
from raydenoise.training.recipe import Recipe

LEAST_READING = 0.1  # logical CPUs that the reading of a worker needs


@dataclass(frozen=True)
class Task:
    """What the workers of a run do; the same for all of them.

    Attributes:
        run: folder of the run, the same on every node.
        claim: on the lease of the run, or of the tuning that it is part of.
        files: a bundle with the network to begin with.
        frozen: train what follows the first up-sampling layer alone.
        recipe: of the training.
        shards: where the patches are.
        source: how the training patches are read.
        checkpoint_every: steps.
        validate_every: steps.
        threads: of the processor, per worker; None for TensorFlow's choice.
        read_cpus: logical CPUs that one worker's reading may take.
    """

    run: Place
    claim: Claim
    files: ModelFiles
    frozen: bool
    recipe: Recipe
    shards: ShardSet
    source: Source
    checkpoint_every: int
    validate_every: int
    threads: int | None
    read_cpus: float


class Request(Protocol):
    """What a command asks for its workers: the flags of the same names."""

    @property
    def workers(self) -> int:
        """How many."""

    @property
    def cpus_per_worker(self) -> float | None:
        """Logical CPUs of each; None for a share of what there is."""

    @property
    def gpus_per_worker(self) -> float | None:
        """GPUs of each; None for 1 where there are GPUs."""


@dataclass(frozen=True)
class Resources:
    """What each worker takes.

    Attributes:
        cpus: logical CPUs.
        gpus: 0 or 1.
        threads: on a CPU; None where TensorFlow chooses.
        read_cpus: logical CPUs for its reading.
    """

    cpus: float
    gpus: float
    threads: int | None
    read_cpus: float


def local_cpus(config: Request) -> int:
    """Logical CPUs of a private local Ray: the cores and one more for reading, or what the workers ask for."""
    asked = math.ceil(config.workers * (config.cpus_per_worker or 0))
    return max(cores(), asked, config.workers if config.cpus_per_worker is None else 0) + 1


def plan(config: Request, *, private: bool, reserved: float = 0.0) -> Resources:
    """Choose each worker's share of what the Ray has or its autoscaler can bring.

    Args:
        config: the workers.
        private: the Ray is this machine's alone.
        reserved: logical CPUs for others than workers and their reading.

    Raises:
        ValueError: there are not that many GPUs or CPUs, none would be left for reading, or the nodes would never hold
            the workers.
    """
    possible = ray.cluster_resources() if private else possible_resources()
    total, gpus = possible.get("CPU", 0.0) - reserved, config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if possible.get("GPU", 0) >= 1 else 0.0
    where = "this machine" if private else "the cluster with its autoscaler"
    if gpus * config.workers > possible.get("GPU", 0):
        there = f"{possible.get('GPU', 0):g} GPUs of {where}"
        raise ValueError(f"workers is {config.workers} with a GPU each; allowed: at most the {there}")
    most = math.floor(100 * (total / config.workers - LEAST_READING)) / 100
    cpus = config.cpus_per_worker or _placed(_share(total, config.workers, gpus), config.workers, gpus, private=private)
    if not 0 < cpus <= most:
        raise ValueError(
            f"cpus_per_worker is {cpus:g} for {config.workers} workers: that would leave none of the {total:g} CPUs of "
            f"{where} for reading; allowed: at most {most:g}"
        )
    if not private:
        _check_held(cpus, gpus, config.workers)
    read_cpus = math.floor(100 * (total / config.workers - cpus)) / 100
    share = cores() // config.workers if private else cpus
    return Resources(cpus, gpus, threads=None if gpus else max(1, int(min(cpus, share))), read_cpus=read_cpus)


def _share(total: float, workers: int, gpus: float) -> float:
    """Leave one CPU for reading; next to a GPU, one CPU is a worker's share and the others read."""
    free = (total - 1) / workers
    if free >= 1:
        return 1.0 if gpus else float(int(free))
    return math.floor(50 * total / workers) / 100  # half for reading on the smallest machines


def _placed(share: float, workers: int, gpus: float, *, private: bool) -> float:
    """Shrink a share until the nodes that are up hold all workers, in whole CPUs: no worker spans two nodes.

    Where they never do, those count as well that the cluster says it can launch; where none are known, the share stays.
    """
    up, yet_to_come = nodes_up(), [] if private else node_types()
    for nodes in (up, [*up, *yet_to_come]):
        for cpus in range(int(share), 0, -1):
            if _places(nodes, cpus, gpus) >= workers:
                return float(cpus)
    return share


def _places(nodes: Sequence[NodeType], cpus: float, gpus: float) -> int:
    return sum(node.places(cpus=cpus, gpus=gpus) for node in nodes)


def _check_held(cpus: float, gpus: float, workers: int) -> None:
    """Refuse what no nodes hold that are up or can come; what an autoscaler brings that tells nothing is waited for.

    Raises:
        ValueError: the workers would wait for ever.
    """
    types = node_types()
    nodes = [*nodes_up(), *types]
    held = _places(nodes, cpus, gpus)
    if held >= workers or not (types or started_by_hand()):
        return
    # A node's CPUs are shared best by a whole number of workers.
    shares = {node.resources.get("CPU", 0) / count for node in nodes for count in range(1, workers + 1)}
    most = max((share for share in shares if share and _places(nodes, share, gpus) >= workers), default=0)
    most = math.floor(100 * most) / 100
    allowed = f"at most {most:g} --cpus-per-worker" if most else "fewer --workers"
    with_gpu = " and a GPU" if gpus else ""
    raise ValueError(
        f"{workers} workers with {cpus:g} CPUs{with_gpu} each: the nodes that are up, and those that the cluster says "
        f"it can launch, hold {held} of them, and no worker spans two nodes; allowed: {allowed}, or larger nodes"
    )


def ask_precision(resources: Resources, *, quiet: bool) -> str:
    """What a worker computes fast: a process with its resources tells, once there is a node for it.

    Raises:
        RuntimeError: it died.
    """
    given = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    # One call a process: TensorFlow, and the memory of a GPU, go with it.
    asked = ray.remote(max_calls=1, **given)(fast_precision_of_worker).remote()
    said = None
    while not ray.wait([asked], timeout=LINE_SECONDS)[0]:
        reason = waiting_for_nodes(cpus=resources.cpus, gpus=resources.gpus)
        if reason is not None and reason != said:
            say(reason, quiet=quiet)
        said = reason
    try:
        return str(ray.get(asked))
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"no worker could tell what it computes fast: {error}; give --precision") from error

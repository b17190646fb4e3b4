"""Local folders of a job on a cluster: every machine must see the same ones."""

import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydenoise.data import storage
from raydenoise.data.place import Place, Remote

ALLOWED = "allowed: a folder that all machines share, s3:// or gs://"


def local_files(sources: pa.Table, *columns: str) -> list[str]:
    """The first file of each column that is on a disk and there: what `check_shared` is to look at."""
    found: list[str] = []
    for column in columns:
        uris = (cell.as_py() for cell in sources[column])
        found += islice((uri for uri in uris if uri and "://" not in uri and Path(uri).exists()), 1)
    return found


def check_shared(files: Sequence[str], *, output: Place) -> None:
    """Check that what a job reads and the folder it writes to are the same ones on every machine of the cluster.

    Args:
        files: local ones that it reads.
        output: need not be there yet, and is not there afterwards then. What is in a bucket needs no check.

    Raises:
        ValueError: a machine has them not, or others.
    """
    driver = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != driver]
    if not others:
        return
    with _probe(output) as probes:
        looked_for = [*files, *probes]
        said = [*files, *[f"output {str(output)!r}" for _ in probes]]
        wanted = _looked_at(looked_for)
        for node, found in _ask(others, looked_for):
            for name, mine, its in zip(said, wanted, found, strict=True):
                if its != mine:
                    kind = "another folder" if name not in files else "another file" if its else "not"
                    raise ValueError(f"{name} is {kind} on {node}; {ALLOWED}")


def _ask(nodes: Sequence[dict[str, str]], files: list[str]) -> "Iterator[tuple[str, list[tuple[int, int] | None]]]":
    """What each of some machines sees of files, with its address; all of them look at once."""
    look = ray.remote(_looked_at)
    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append((node, look.options(num_cpus=0, scheduling_strategy=there).remote(files)))
    for node, answer in asked:
        with suppress(ray.exceptions.RayError):  # it has gone meanwhile; every process that comes looks for itself
            yield node["NodeManagerAddress"], ray.get(answer)


@contextmanager
def _probe(output: Place) -> Iterator[list[str]]:
    """A fresh file in an output folder on a disk, for a while: no other folder can have it."""
    if isinstance(output, Remote):
        yield []
        return
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    probe = output / f".{uuid.uuid4().hex}.partial"  # as other unfinished files, which the next job removes
    storage.publish(probe, b"")
    try:
        yield [str(probe)]
    finally:
        probe.unlink(missing_ok=True)
        with suppress(OSError):  # somebody put something there meanwhile
            for folder in made:
                folder.rmdir()


def check_present(files: Sequence[str]) -> None:
    """Raise RuntimeError where this machine, which may have come late, does not see a local file of the job."""
    missing = [file for file, found in zip(files, _looked_at(files), strict=True) if found is None]
    if missing:
        raise RuntimeError(
            f"{socket.gethostname()} does not see {missing[0]}; allowed: folders that all machines share, s3://, gs://"
        )


def _looked_at(files: Sequence[str]) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for file in files:
        try:
            status = storage.patiently(partial(os.stat, file))
        except OSError:
            found.append(None)
        else:
            found.append((status.st_size, int(status.st_mtime)))
    return found

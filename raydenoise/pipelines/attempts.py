"""A picture that kills its process again and again, or never ends, becomes an error row.

Ray tries a block whose process died again, for ever. So every process says which picture it begins and ends to one
small actor, which outlives it. What a process had begun when it died is suspect: it is done alone next time, so that a
second death tells which picture it was; after `--attempts` deaths (4 in other verbs than `denoise`) it is given up. A
picture that takes longer than `--image-timeout` is given up at once, and its process ends itself: nothing else stops
native code.

In front of a GPU a picture has three stages in three processes. Ray does a stage again where its result went with a
machine, while a later stage may have the picture in hand: so a process is taken for dead by one of its own stage alone.

A machine that vanishes is not the picture's fault, and Ray may take a minute to notice one. So before a picture is
given up, the machines of its dead processes must prove that they outlived these: by doing a task.
"""

import faulthandler
import os
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydenoise.data import storage
from raydenoise.data.place import Place
from raydenoise.pipelines.session import here
from raydenoise.pipelines.sharing import check_present

Item = TypeVar("Item")
Done = TypeVar("Done")

LIMIT = 4  # deaths after which a picture is given up, unless told otherwise
LOOK_SECONDS = 0.5  # between two looks at how long pictures take
GRACE_SECONDS = 30.0  # a process that could not look for so long beyond the timeout is stuck as a whole
ANSWER_SECONDS = 120.0  # that a machine may take to prove that it is there; Ray gives a silent one up sooner


@dataclass(frozen=True)
class Verdicts:
    """What is known of the pictures of a block.

    Attributes:
        suspect: keys of those that were begun by a process that died.
        given_up: key -> the columns of its error row.
        unsure: dead process -> its node, where it decides about a picture whether that died too.
    """

    suspect: frozenset[str]
    given_up: dict[str, dict[str, str]]
    unsure: dict[str, str] = field(default_factory=dict)


class Attempts:
    """Who began what. Runs as an actor; see `start`.

    Its process may die too, and Ray starts it anew with these arguments. That it then forgets deaths costs a few
    attempts more; what the job agreed on must not change, and stands in files.

    Args:
        limit: deaths after which a picture is given up.
        agreed: a folder of this job's alone, for values that hold for all of it.
        known: such values from before.
    """

    def __init__(self, limit: int, agreed: Place, known: dict[str, str]) -> None:
        self._limit, self._folder = limit, agreed
        self._begun: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)  # key -> (process, stage) -> its node
        self._accused: dict[str, dict[str, str]] = defaultdict(dict)  # key -> process that died meanwhile -> its node
        self._outlived: dict[str, bool] = {}  # dead process -> whether its node outlived it, where that is known
        self._given_up: dict[str, dict[str, str]] = {}
        self._agreed = dict(known)

    def enter(self, process: str, keys: Sequence[str], stage: str) -> Verdicts:
        """Tell a process what is known of pictures of which it will do a stage."""
        suspect, unsure = set(), {}
        for key in keys:
            self._accuse(key, stage, besides=process)
            deaths = self._deaths(key)
            open_ones = {dead: node for dead, node in deaths.items() if dead not in self._outlived}
            if len(deaths) - len(open_ones) >= self._limit:
                message = (
                    f"its process died {len(deaths)} times while it was done: out of memory, or a crash in native code"
                )
                self._given_up[key] = {"error_type": "process_died", "error_message": message}
            elif len(deaths) >= self._limit:
                unsure.update(open_ones)
            if deaths and key not in self._given_up:
                suspect.add(key)
        given_up = {key: self._given_up[key] for key in keys if key in self._given_up}
        return Verdicts(frozenset(suspect), given_up, unsure)

    def _accuse(self, key: str, stage: str, *, besides: str) -> None:
        """Take for dead what had begun a stage of a picture, now that another process does it."""
        begun = self._begun.get(key, {})
        for other, its in [(process, its) for process, its in begun if process != besides and its == stage]:
            self._accused[key][other] = begun.pop((other, its))

    def _deaths(self, key: str) -> dict[str, str]:
        """The dead processes of a picture, but those that went with their machine as far as it is known by now."""
        accused = self._accused.get(key, {})
        lost = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} if accused else set()
        self._outlived |= {dead: False for dead, node in accused.items() if node in lost and dead not in self._outlived}
        return {dead: node for dead, node in accused.items() if self._outlived.get(dead, True)}

    def hear(self, outlived: dict[str, bool]) -> None:
        """Note of dead processes whether their nodes were there afterwards."""
        self._outlived |= outlived

    def begin(self, process: str, node: str, key: str, stage: str) -> None:
        """Note that a process begins a stage of a picture."""
        self._begun[key][process, stage] = node

    def end(self, process: str, key: str, stage: str) -> None:
        """Note that it ended; what is known of its deaths stays, since Ray may do its block again."""
        self._begun.get(key, {}).pop((process, stage), None)
        if not self._begun.get(key):
            self._begun.pop(key, None)

    def give_up(self, process: str, key: str, error: dict[str, str]) -> None:
        """Note that a picture takes too long."""
        self._given_up[key] = error
        for begun, stage in list(self._begun.get(key, {})):
            if begun == process:
                self.end(process, key, stage)

    def agree(self, name: str, value: str) -> str:
        """The first value that anyone proposed."""
        if name not in self._agreed:
            with suppress(FileExistsError):
                storage.create(self._folder / name, value.encode())
            self._agreed[name] = (self._folder / name).read_bytes().decode()
        return self._agreed[name]


def outlives(node: str) -> bool:
    """Whether a node is there: it proves it, or Ray gives it up, which takes a while."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(_nothing).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    end = time.monotonic() + ANSWER_SECONDS
    while _is_up(node) and time.monotonic() < end:
        try:
            ray.get(task.remote(), timeout=ANSWER_SECONDS)
            return True
        except ray.exceptions.RayError:  # it has just gone, or its memory is too short even for that
            time.sleep(LOOK_SECONDS)
    return _is_up(node)


def _is_up(node: str) -> bool:
    return any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())


def _nothing() -> None:
    pass


def start(limit: int, *, agreed: Place, known: dict[str, str]) -> "ray.actor.ActorHandle":
    """Start the actor on the driver's machine, which the job needs anyway; the arguments are those of `Attempts`."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here()}
    return ray.remote(Attempts).options(**options).remote(limit, agreed, known)


class Watch:
    """One process's side: it says what it begins and ends, and ends itself where a picture takes too long.

    Args:
        attempts: the actor.
        timeout: seconds that one stage may take for one picture; None for any time.
    """

    def __init__(self, attempts: "ray.actor.ActorHandle", *, timeout: float | None) -> None:
        self._attempts = attempts
        self._process = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"
        self._node = ray.get_runtime_context().get_node_id()
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process
        self._running: dict[tuple[str, str], float] = {}
        if timeout is not None:
            threading.Thread(target=self._look_on, args=(timeout,), daemon=True, name="watch").start()

    def enter(self, keys: Sequence[str], *, stage: str) -> Verdicts:
        """Ask what is known of the pictures of a block; that may take until a machine answers or is given up."""
        while True:
            found: Verdicts = ray.get(self._attempts.enter.remote(self._process, list(keys), stage))
            if not found.unsure:
                return found
            outlived = {node: outlives(node) for node in set(found.unsure.values())}
            ray.get(self._attempts.hear.remote({dead: outlived[node] for dead, node in found.unsure.items()}))

    def begin(self, key: str, *, stage: str) -> None:
        """Say that a stage of a picture begins; returns once that is noted."""
        ray.get(self._attempts.begin.remote(self._process, self._node, key, stage))

    def end(self, key: str, *, stage: str) -> None:
        """Say that it ended."""
        self._attempts.end.remote(self._process, key, stage)

    def agree(self, name: str, value: str) -> str:
        """Propose a value for the whole job; the first one holds."""
        return str(ray.get(self._attempts.agree.remote(name, value)))

    @contextmanager
    def stage(self, key: str, name: str) -> Iterator[None]:
        """Measure one stage of one picture against the timeout."""
        self._running[key, name] = time.monotonic()
        try:
            yield
        finally:
            del self._running[key, name]

    def _look_on(self, timeout: float) -> None:
        while True:
            # Where native code keeps the interpreter from running, this thread too, a timer of C ends the process.
            faulthandler.dump_traceback_later(timeout + GRACE_SECONDS, exit=True, file=self._nowhere)
            time.sleep(LOOK_SECONDS)
            late = [place for place, since in list(self._running.items()) if time.monotonic() - since > timeout]
            if late:
                for key, stage in late:
                    message = f"{stage} took longer than the {timeout:g} s of --image-timeout"
                    error = {"error_type": "timeout", "error_message": message}
                    ray.get(self._attempts.give_up.remote(self._process, key, error))
                os._exit(1)


_WATCHES: dict[str, Watch] = {}  # of this process, by job


def watching(attempts: "ray.actor.ActorHandle", *, present: Sequence[str] = (), timeout: float | None = None) -> Watch:
    """This process's watch over its pictures, one a job; the first call looks at the job's files `present` too.

    Raises:
        RuntimeError: this machine does not see them.
    """
    job = ray.get_runtime_context().get_job_id()
    if job not in _WATCHES:
        check_present(present)
        _WATCHES[job] = Watch(attempts, timeout=timeout)
    return _WATCHES[job]


def each(
    watch: Watch,
    items: Sequence[Item],
    step: Callable[[Item], Done],
    *,
    key: Callable[[Item], str],
    stage: str,
    given_up: Callable[[Item, dict[str, str]], Done],
    verdicts: Verdicts | None = None,
) -> Iterator[Done]:
    """Do a stage of a task's pictures, none beside another: a process that dies then tells which it was.

    Args:
        watch: of this process.
        items: the pictures.
        step: the stage.
        key: names a picture.
        stage: its name.
        given_up: what becomes of a picture whose process died too often, with the columns of its error row.
        verdicts: what is known of the pictures; asked for where it is None.
    """
    known = verdicts or watch.enter([key(item) for item in items], stage=stage)
    for item in items:
        name = key(item)
        if name in known.given_up:
            yield given_up(item, known.given_up[name])
            continue
        watch.begin(name, stage=stage)
        done = step(item)
        watch.end(name, stage=stage)  # not behind the yield: who takes it may be slow to ask for the next one
        yield done

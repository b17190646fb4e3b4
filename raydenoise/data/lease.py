"""One job at a time on a folder: a lease in it, renewed while the job lives.

A lease is a file OUT/lease/000001.json, and the one with the highest number counts. It is taken by creating the next
number, which of several that try only one can (a hard link or O_EXCL on a disk, If-None-Match on an object store), so
that no clock of any machine matters. A holder writes its own file anew every few seconds; one that stands still for
`LEASE_SECONDS` by the clock of who watches it is dead, and so at once is a process of this machine that is gone.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydenoise.data import storage
from raydenoise.data.place import Place, Remote

FOLDER = "lease"
LEASE_SECONDS = 30.0  # a lease that stood still so long is no one's
RENEWALS = 6  # in that time: five may fail
LOOKS = 20  # at a lease that changes under the eyes
WATCH_SECONDS = 0.5  # between two looks at another's lease
_TAKEN = "{} is another job's, which took over"


class LeaseLostError(RuntimeError):
    """Another job has the folder now."""


@dataclass(frozen=True)
class Claim:
    """What any process of a job can ask about the job's lease.

    Attributes:
        folder: of the leases.
        number: of the job's.
    """

    folder: Place
    number: int

    def check(self) -> None:
        """Raise LeaseLostError where another job took it; a machine that does not see the leases sees no other job."""
        if _highest(self.folder) > self.number:
            raise LeaseLostError(_TAKEN.format(self.folder))


class Lease:
    """A folder's lease, held. `held` makes and releases it.

    Attributes:
        number: of the lease; none before had it.
        claim: the same for other processes of the job.
        holder: a name of this holder alone.
        after_dead: the one before was never released: its holder may only be stopped, and go on.
    """

    def __init__(self, root: Place, number: int, *, seconds: float, after_dead: bool = False) -> None:
        self.number, self.after_dead, self.holder = number, after_dead, uuid.uuid4().hex
        self.claim, self._seconds = Claim(root / FOLDER, number), seconds
        self._content: dict[str, Any] = {"holder": self.holder, **_process(), "beat": 0, "held": True}
        storage.create(self._file, _encoded(self._content), whole=False)
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_on, daemon=True, name="lease")
        self._thread.start()
        for name in storage.names(self.claim.folder):
            if _number(name) < number:
                storage.remove(self.claim.folder / name)

    @property
    def _file(self) -> Place:
        return self.claim.folder / f"{self.number:06d}.json"

    def check(self) -> None:
        """Raise LeaseLostError where another job took it; asked before anything is committed.

        One that could not be renewed in time (storage hung, this process was stopped) and that nobody took is renewed
        and goes on. Its age tells nothing that its number does not: another job may take over right behind any look,
        and what is committed then is safe without a clock. A file of rows has a number that is created once, and who
        takes over from a lease that was not released creates the next one (`Commits.fence`) before it reads or removes
        a row. So a commit comes before that and counts, or is refused.
        """
        self._refuse_taken()
        if time.monotonic() - self._renewed > self._seconds:
            self._renew()
            self._refuse_taken()

    def _refuse_taken(self) -> None:
        if _highest(self.claim.folder) != self.number:
            raise LeaseLostError(_TAKEN.format(self.claim.folder))

    def release(self) -> None:
        """Let others take it. The file stays: its number must not come again."""
        self._stop.set()
        self._thread.join()
        self._content["held"] = False
        with suppress(OSError):  # storage in trouble: one that does not move is free soon, and what was done is done
            storage.publish(self._file, _encoded(self._content))

    def _renew_on(self) -> None:
        while not self._stop.wait(self._seconds / RENEWALS):
            with suppress(OSError):  # storage in trouble: the next one may succeed
                self._renew()

    def _renew(self) -> None:
        """Write the lease anew; a hung one of the thread may end beside one of `check`."""
        self._content["beat"] += 1
        began = time.monotonic()
        storage.publish(self._file, _encoded(self._content))
        self._renewed = max(self._renewed, began)


def check_free(root: Place, *, seconds: float = LEASE_SECONDS) -> int:
    """Check that no job writes a folder; returns the number of the newest lease, which nobody holds, or 0.

    Raises:
        ValueError: one does, or a bucket's credentials cannot take a lease.
    """
    if isinstance(root, Remote):
        try:
            root.check_create()
        except OSError as error:
            raise ValueError(f"output {str(root)!r} cannot be written to: {error}") from error
    number, content = newest(root)
    if content is not None and is_alive(root, number, content, seconds=seconds):
        raise ValueError(
            f"output {str(root)!r} is being written by process {content['pid']} on {content['host']}; allowed: one job "
            "at a time (how far one of raydenoise denoise is, raydenoise status tells)"
        )
    return number


@contextmanager
def held(
    root: Place, *, seconds: float = LEASE_SECONDS, free: int = 0, check: Callable[[], None] = lambda: None
) -> Iterator[Lease]:
    """Hold a folder's lease.

    Args:
        root: the folder.
        seconds: how long a lease may stand still.
        free: number of a lease that `check_free` found free.
        check: what was checked of the folder before, and is again: another job may have come and gone.

    Raises:
        ValueError: another job holds it, or it cannot be written.
        Exception: of `check`.
    """
    try:
        number, content = newest(root)
        if number != free:
            number = check_free(root, seconds=seconds)
            _, content = newest(root)
        lease = Lease(root, number + 1, seconds=seconds, after_dead=bool(content and content["held"]))
    except FileExistsError:
        raise ValueError(f"output {str(root)!r} was taken by another job just now; allowed: one at a time") from None
    except OSError as error:
        raise ValueError(f"output {str(root)!r} cannot be written to: {error}") from error
    with at_end(lease.release):
        check()
        yield lease


@contextmanager
def at_end(act: Callable[[], None]) -> Iterator[None]:
    """Do something however a block ends; an error of the block is never replaced by trouble with storage or the lease.

    Raises:
        LeaseLostError, OSError: of `act`, where the block raised nothing.
    """
    try:
        yield
    except BaseException:
        with suppress(LeaseLostError, OSError):
            act()
        raise
    act()


def newest(root: Place) -> tuple[int, dict[str, Any] | None]:
    """The lease that counts: its number and content; 0 and None where there is none."""
    for _ in range(LOOKS):
        names = storage.names(root / FOLDER)
        if not names:
            return 0, None
        try:
            return _number(names[-1]), json.loads((root / FOLDER / names[-1]).read_bytes())
        except (FileNotFoundError, ValueError):  # a newer one just came; or it was renewed between two of our requests
            time.sleep(WATCH_SECONDS / 10)
    raise ValueError(f"{root / FOLDER} holds no lease that can be read; remove it if no job writes this folder")


def is_alive(root: Place, number: int, content: dict[str, Any], *, seconds: float = LEASE_SECONDS) -> bool:
    """Whether a lease is held: at once for a process of this machine, else by watching it up to so many seconds."""
    if not content["held"]:
        return False
    is_here = content["machine"] is not None and content["machine"] == _machine()
    if is_here and not _is_hidden(content["pid"]):
        return bool(_began(content["pid"]) == content["began"])
    watched = 0.0
    while watched < seconds:
        before = time.monotonic()
        time.sleep(WATCH_SECONDS)
        found, now = newest(root)
        # Where storage hangs, it does so for the holder too.
        watched += min(time.monotonic() - before, 2 * WATCH_SECONDS)
        if now is None or not now["held"]:
            return False
        if (found, now["beat"]) != (number, content["beat"]):
            return True
    return False


def _process() -> dict[str, Any]:
    """Name this process so that another one of this machine can tell whether it lives."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid())}


def _machine() -> str | None:
    """This boot of this machine, and the container on it; None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None for one that is gone. Numbers of processes come again."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]


def _is_hidden(pid: int) -> bool:
    """Whether a process of another user lives here of which the system tells nothing more (hidepid of /proc)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not os.access(f"/proc/{pid}/stat", os.R_OK)
    except OSError:
        pass
    return False


def is_lease(key: str) -> bool:
    """Whether a file of a folder, by its path below it, is a lease, or part of one."""
    return re.fullmatch(rf"{FOLDER}/(\d+\.json|\.\w+\.partial)", key) is not None


def _highest(folder: Place) -> int:
    return max(map(_number, storage.names(folder)), default=0)


def _number(name: str) -> int:
    return int(name.removesuffix(".json"))


def _encoded(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()

"""What of a denoising job is done: the rows that are committed and whose picture, where it has one, is there."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydenoise.data import lease, storage
from raydenoise.data.inputs import UNNAMED
from raydenoise.data.manifest import DENOISING_KIND, Output, part_name
from raydenoise.data.place import Place, Remote
from raydenoise.data.schema import METRICS, SOURCES

DIGEST = "S16"  # 128 bits of a key: two million take 32 MB, and no two of them ever agree
NONE = np.empty(0, DIGEST)
MERGED = 1 << 16  # rows of this run in a set, before they join the array
PLACES = ("input", "list", "reference")  # of the deciding ones, those that are paths or addresses
# What decides a row. Others, such as --limit, --actors or --batch-tiles, may change when a job goes on.
DECIDING = (
    "input", "list", "column", "sigma", "strength", "tta", "reference", "format", "quality", "tile", "max_pixels",
)  # fmt: skip


@dataclass
class Ledger:
    """The inputs that are done.

    Attributes:
        done: digests of their keys, sorted.
        outputs: digests of the names of their pictures, sorted.
        precision: that their network computed in; None where no picture was denoised yet.
    """

    done: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, DIGEST))
    outputs: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, DIGEST))
    precision: str | None = None
    _recent: set[bytes] = field(default_factory=set)

    def pending(self, sources: pa.Table) -> pa.Table:
        """The rows of `SOURCES` that are not done, each with an output name that no finished picture has.

        A name may be taken where the inputs were others before: a.png came while a.bmp was there, written as a.png.
        """
        left = sources.filter(pa.array(~among(digests(sources["key"].to_pylist()), self.done)))
        wanted = left["output_key"].to_pylist()
        taken = among(digests(wanted), self.outputs)
        if not taken.any():
            return left
        names = set(wanted)
        for index in np.flatnonzero(taken).tolist():
            suffix = PurePosixPath(wanted[index]).suffix or UNNAMED
            name = left["key"][index].as_py() + suffix
            while name in names or among(digests([name]), self.outputs)[0]:
                name += suffix
            wanted[index] = name
            names.add(name)
        return left.set_column(left.column_names.index("output_key"), SOURCES.field("output_key"), pa.array(wanted))

    def fresh(self, rows: pa.Table) -> pa.Table:
        """Note rows as done; returns those that were not. Ray promises to bring none twice; here it is made sure."""
        found = digests(rows["key"].to_pylist())
        new = []
        for digest, known in zip(found.tolist(), among(found, self.done), strict=True):
            new.append(not known and digest not in self._recent)
            self._recent.add(digest)
        if len(self._recent) > MERGED:
            self.done = np.sort(np.concatenate([self.done, np.array(list(self._recent), DIGEST)]))
            self._recent.clear()
        return rows if all(new) else rows.filter(pa.array(new))


def digests(keys: Iterable[str]) -> NDArray[np.bytes_]:
    """128 bits of each key."""
    return np.array([hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys], DIGEST)


def check_ours(output: Output) -> dict[str, Any] | None:
    """Read the manifest of the run that OUT holds; None where it holds nothing.

    Raises:
        ValueError: it holds something else.
    """
    try:
        before = json.loads(output.manifest.read_bytes())
    except FileNotFoundError:
        rows = not all(_is_empty(output.metrics / name) for name in storage.names(output.metrics))
        held = ["metrics"] * rows + ["images"] * output.images.exists()
        if held:
            raise ValueError(
                f"output {str(output.root)!r} already holds something ({', '.join(held)}) and no manifest of a run; "
                "allowed: another folder"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{output.manifest} cannot be read: {error}; allowed: another folder") from error
    kind = before.get("kind") if isinstance(before, dict) else type(before).__name__
    if kind != DENOISING_KIND:
        raise ValueError(f"output {str(output.root)!r} holds a {kind!r}; allowed: another folder")
    if not all(isinstance(before.get(name), dict) for name in ("config", "model")):
        raise ValueError(f"{output.manifest} lacks config or model; allowed: another folder")
    return dict(before)


def check_same(output: Output, manifest: dict[str, Any]) -> None:
    """Check that a job may go on in OUT: it is new, or holds a run whose rows this one would make too.

    Raises:
        ValueError: it holds something else, or a run with other settings.
    """
    before = check_ours(output)
    if before is None:
        return
    pairs = {name: (before["config"].get(name), manifest["config"][name]) for name in DECIDING}
    pairs["model"] = (before["model"].get("sha256"), manifest["model"]["sha256"])
    computed, precision = computed_in(output), manifest["config"]["precision"]
    if computed and precision != "auto":
        pairs["precision"] = (computed, precision)
    old, new = pairs["max_pixels"]
    if manifest["config"].get("retry_failed") and isinstance(old, int) and old < new:
        del pairs["max_pixels"]  # what was too large failed and is tried again; no other row would be another one
    changed = [
        f"{name} was {old!r} and is {new!r}"
        for name, (old, new) in pairs.items()
        if old != new and not (name in PLACES and _one_place(old, new))
    ]
    if changed:
        raise ValueError(
            f"output {str(output.root)!r} holds a run with other settings: {'; '.join(changed)}; allowed: the same "
            "settings, another folder, or --overwrite, which removes that run"
        )


def _one_place(one: str | None, other: str | None) -> bool:
    """Whether two paths on a disk lead to one place, by `..` or by links."""
    if one is None or other is None or "://" in one + other:
        return False
    return os.path.realpath(one) == os.path.realpath(other)


def computed_in(output: Output) -> str | None:
    """The precision of the network that made the committed rows; None where none was denoised yet."""
    for name in storage.names(output.metrics):
        found = storage.open_parquet(output.metrics / name).read(["precision"])["precision"].drop_null()
        if len(found):
            return str(found[0])
    return None


@dataclass(frozen=True)
class Commits:
    """How rows are committed: in files with numbers of one row, each of which can be created once.

    So a job that lost its lease without noticing it commits nothing: where it was stopped, between its last look at the
    lease and the creation of a file, the number that it knows as the next one was taken by who came after it (`fence`).
    """

    output: Output
    lease: lease.Lease

    def check_disk(self) -> None:
        """Raise ValueError where a disk cannot create files whole and each once; a bucket that made the lease can."""
        if isinstance(self.output.root, Remote):
            return
        probe = self.output.root / f".{uuid.uuid4().hex}.partial"  # which the next job would remove
        try:
            storage.create(probe, b"")
        except OSError as error:
            why = "; allowed: a disk with hard links, or a bucket" if error.errno in storage.NO_LINKS else ""
            raise ValueError(f"rows cannot be committed in output {str(self.output.root)!r}: {error}{why}") from error
        probe.unlink()

    def next(self) -> int:
        """The number behind those of all files."""
        numbers = (int(name.removesuffix(".parquet").split("-")[1]) for name in storage.names(self.output.metrics))
        return 1 + max(numbers, default=0)

    def fence(self) -> None:
        """Take the next number for no rows, where the job before may go on: before its rows are read."""
        while self.lease.after_dead:
            with suppress(FileExistsError):  # it has just committed
                self._create(self.output.metrics / part_name(self.next()), METRICS.empty_table())
                return

    def create(self, path: Place, rows: pa.Table) -> None:
        """Commit rows.

        Raises:
            LeaseLostError: another job writes this folder.
        """
        try:
            self._create(path, rows)
        except FileExistsError:
            raise lease.LeaseLostError(f"{path} is another job's, which took over; nothing more was written") from None

    def _create(self, path: Place, rows: pa.Table) -> None:
        self.lease.check()
        told = rows.replace_schema_metadata({"lease": str(self.lease.number)})  # no two jobs' files are the same
        storage.create_table(path, told)


def clear(output: Output, *, allowed: Callable[[], None] = lambda: None) -> None:
    """Remove a run, its rows first: no reader sees a row without its picture. Its manifest goes last, so that a killed
    job leaves a run. Files without rows stay: `Commits.fence`.

    Args:
        output: of the run.
        allowed: called before anything is removed; raises where it must not be.
    """
    allowed()
    for name in storage.names(output.metrics):
        if not _is_empty(output.metrics / name):
            storage.remove(output.metrics / name)
    if not storage.names(output.metrics):
        storage.remove(output.metrics)
    for path in (output.images, output.scratch, output.manifest):
        allowed()
        storage.remove(path)


def _is_empty(path: Place) -> bool:
    try:
        return bool(storage.open_parquet(path).metadata.num_rows == 0)
    except (OSError, pa.ArrowException):  # it is damaged
        return False


def settle(
    output: Output,
    *,
    retry: NDArray[np.bytes_] = NONE,
    count: Callable[[pa.Table], None] = lambda _: None,
    allowed: Callable[[], None] = lambda: None,
) -> Ledger:
    """Read the committed rows and drop those that are not done: their picture is gone, or their failure is to be
    tried again. What a killed job left behind of unfinished files goes too.

    Args:
        output: of the run, which no other job writes.
        retry: digests of keys, sorted: drop their rows where they failed.
        count: gets the rows that stay, a table at a time.
        allowed: called before anything is removed and before rows are dropped; raises where they must not be.
    """
    allowed()
    storage.remove(output.scratch)
    for left in _partial(output):
        storage.remove(left)
    precision = computed_in(output)  # before rows go
    written = np.sort(digests(storage.walk(output.images)))
    seen: list[NDArray[np.bytes_]] = []
    named: list[NDArray[np.bytes_]] = []
    for name in storage.names(output.metrics):
        path = output.metrics / name
        rows = storage.open_parquet(path).read().cast(METRICS)
        keys, pictures = digests(rows["key"].to_pylist()), _pictures(rows)
        pictured = digests(pictures)
        ok = np.array([status == "ok" for status in rows["status"].to_pylist()], bool)
        stands = np.where(ok, _there(pictures, pictured, written, output.images), ~among(keys, retry))
        kept = rows.filter(pa.array(stands))
        if len(kept) < len(rows):
            allowed()
            storage.publish_table(path, kept)
        seen.append(keys[stands])
        named.append(pictured[stands & np.array([bool(picture) for picture in pictures], bool)])
        count(kept)
    done, outputs = (np.sort(np.concatenate([NONE, *found])) for found in (seen, named))
    return Ledger(done, outputs, precision)


def _partial(output: Output) -> Iterator[Path]:
    """What a killed process left on a disk of a file that it was writing beside its place."""
    for folder in (output.root, output.metrics, output.root / lease.FOLDER):
        if isinstance(folder, Path) and folder.is_dir():
            yield from folder.glob(".*.partial")


def _there(
    pictures: list[str], names: NDArray[np.bytes_], written: NDArray[np.bytes_], images: Place
) -> NDArray[np.bool_]:
    """Which pictures are there: those that were listed, and those behind links that `storage.walk` leaves out."""
    there = among(names, written)
    if isinstance(images, Path):
        real = Path(os.path.realpath(images))
        missing = {index: real / pictures[index] for index in np.flatnonzero(~there).tolist() if pictures[index]}
        folders = {path.parent for path in missing.values()}
        linked = {folder for folder in folders if os.path.realpath(folder) != str(folder)}
        for index, path in missing.items():
            there[index] = path.parent in linked and path.is_file()
    return there


def _pictures(rows: pa.Table) -> list[str]:
    """The names of rows' pictures below OUT/images, wherever OUT stood when their addresses were written: each lies in
    its key's folder. Empty where there is none.
    """
    keys, uris = rows["key"].to_pylist(), rows["output_uri"].to_pylist()
    return [
        "".join(key.rpartition("/")[:2]) + uri.rpartition("/")[2] if uri else ""
        for key, uri in zip(keys, uris, strict=True)
    ]


def among(wanted: NDArray[np.bytes_], known: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Which of some digests are among sorted ones."""
    if not len(known):
        return np.zeros(len(wanted), bool)
    return np.asarray(known[np.searchsorted(known, wanted).clip(max=len(known) - 1)] == wanted)

"""What of a denoising job is done: the rows that are committed and whose picture, where it has one, is there."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydenoise.data import storage
from raydenoise.data.manifest import DENOISING_KIND, Output
from raydenoise.data.place import Place
from raydenoise.data.schema import METRICS

DIGEST = "S16"  # 128 bits of a key: two million take 32 MB, and no two of them ever agree
MERGED = 1 << 16  # rows of this run in a set, before they join the array
# What decides a row. Others, such as --limit, --actors or --batch-tiles, may change when a job goes on.
DECIDING = (
    "input", "list", "column", "sigma", "strength", "tta", "reference", "format", "quality", "tile", "max_pixels",
)  # fmt: skip


@dataclass
class Ledger:
    """The inputs that are done.

    Attributes:
        done: digests of their keys, sorted.
        precision: that their network computed in; None where no picture was denoised yet.
    """

    done: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, DIGEST))
    precision: str | None = None
    _recent: set[bytes] = field(default_factory=set)

    def pending(self, sources: pa.Table) -> pa.Table:
        """The rows of a table with a column `key` that are not done."""
        return sources.filter(pa.array(~among(digests(sources["key"].to_pylist()), self.done)))

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


def check_same(output: Output, manifest: dict[str, Any]) -> None:
    """Check that a job may go on in OUT: it is new, or holds a run whose rows this one would make too.

    Raises:
        ValueError: it holds something else, or a run with other settings.
    """
    try:
        before = json.loads(output.manifest.read_bytes())
    except FileNotFoundError:
        held = [path.name for path in (output.metrics, output.images) if path.exists()]
        if held:
            raise ValueError(
                f"output {str(output.root)!r} already holds something ({', '.join(held)}) and no manifest of a run; "
                "allowed: another folder"
            ) from None
        return
    except (OSError, ValueError) as error:
        raise ValueError(f"{output.manifest} cannot be read: {error}; allowed: another folder") from error
    kind = before.get("kind") if isinstance(before, dict) else type(before).__name__
    if kind != DENOISING_KIND:
        raise ValueError(f"output {str(output.root)!r} holds a {kind!r}; allowed: another folder")
    pairs = {name: (before["config"].get(name), manifest["config"][name]) for name in DECIDING}
    pairs["model"] = (before["model"]["sha256"], manifest["model"]["sha256"])
    computed, precision = computed_in(output), manifest["config"]["precision"]
    if computed and precision != "auto":
        pairs["precision"] = (computed, precision)
    changed = [f"{name} was {old!r} and is {new!r}" for name, (old, new) in pairs.items() if old != new]
    if changed:
        raise ValueError(
            f"output {str(output.root)!r} holds a run with other settings: {'; '.join(changed)}; allowed: the same "
            "settings, another folder, or --overwrite, which removes that run"
        )


def computed_in(output: Output) -> str | None:
    """The precision of the network that made the committed rows; None where none was denoised yet."""
    for name in storage.names(output.metrics):
        found = storage.open_parquet(output.metrics / name).read(["precision"])["precision"].drop_null()
        if len(found):
            return str(found[0])
    return None


def clear(output: Output) -> None:
    """Remove a run, its rows first: no reader sees a row without its picture."""
    for path in (output.metrics, output.manifest, output.images, output.scratch):
        storage.remove(path)


def settle(output: Output, *, retry_failed: bool, count: Callable[[pa.Table], None] = lambda _: None) -> Ledger:
    """Read the committed rows and drop those that are not done: their picture is gone, or their failure is to be
    tried again. What a killed job left behind of unfinished files goes too.

    Args:
        output: of the run, which no other job writes.
        retry_failed: drop rows of failures.
        count: gets the rows that stay, a table at a time.
    """
    storage.remove(output.scratch)
    precision = computed_in(output)  # before rows go
    written = np.sort(digests(storage.walk(output.images)))
    seen: list[NDArray[np.bytes_]] = []
    for name in storage.names(output.metrics):
        path = output.metrics / name
        rows = storage.open_parquet(path).read().cast(METRICS)
        kept = rows.filter(pa.array(_stands(rows, written, images=output.images, retry_failed=retry_failed)))
        if len(kept) < len(rows):
            storage.publish_table(path, kept)
        seen.append(digests(kept["key"].to_pylist()))
        count(kept)
    done = np.sort(np.concatenate([np.empty(0, DIGEST), *seen]))
    return Ledger(done, precision)


def _stands(rows: pa.Table, written: NDArray[np.bytes_], *, images: Place, retry_failed: bool) -> NDArray[np.bool_]:
    """Which rows are done: pictures that are there, and failures unless they are tried again."""
    ok = np.array([status == "ok" for status in rows["status"].to_pylist()], bool)
    pictures = digests((uri or "").removeprefix(f"{images}/") for uri in rows["output_uri"].to_pylist())
    return np.where(ok, among(pictures, written), not retry_failed)


def among(wanted: NDArray[np.bytes_], known: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Which of some digests are among sorted ones."""
    if not len(known):
        return np.zeros(len(wanted), bool)
    return np.asarray(known[np.searchsorted(known, wanted).clip(max=len(known) - 1)] == wanted)

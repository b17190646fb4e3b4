"""What a denoising job reads: the files below INPUT, or the rows of a listing."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data.block import BlockMetadata

from raydenoise.config import DenoiseConfig
from raydenoise.data import inputs, listing
from raydenoise.data.lease import FOLDER
from raydenoise.data.ledger import Ledger, among, digests
from raydenoise.data.manifest import PAGE, PLOTS, Output
from raydenoise.data.place import Place, place
from raydenoise.data.schema import SOURCES
from raydenoise.pipelines.parcels import PARCEL, grouped, pack

PART = 1 << 16  # rows
_PAGE = f"/{PAGE}"


class Pictures(Protocol):
    """The pictures of a job."""

    def __len__(self) -> int: ...

    def first(self) -> str:
        """Path or address of one of them."""

    def keys(self) -> NDArray[np.bytes_]:
        """The digests of their keys, sorted."""

    def without(self, ledger: Ledger) -> "Pictures":
        """Those that are not done."""

    def dataset(self, *, rows: int) -> ray.data.Dataset:
        """Parcels of rows of `SOURCES`, about so many each."""


@dataclass(frozen=True)
class Found:
    """Files below a folder, or of a glob: `schema.SOURCES`."""

    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    def first(self) -> str:
        """Path or address of one of them."""
        return str(self.table["uri"][0].as_py())

    def keys(self) -> NDArray[np.bytes_]:
        """The digests of their keys, sorted."""
        return np.sort(digests(self.table["key"].to_pylist()))

    def without(self, ledger: Ledger) -> "Found":
        """Those that are not done."""
        return Found(ledger.pending(self.table))

    def dataset(self, *, rows: int) -> ray.data.Dataset:
        """Parcels of rows of `SOURCES`, so many each."""
        return _streamed(_slices, (self.table, rows))


@dataclass(frozen=True)
class Listed:
    """The rows of a listing, read by one task on the driver's machine as they are needed."""

    listing: listing.Listing
    ledger: Ledger = field(default_factory=Ledger)  # of rows to leave out

    def __len__(self) -> int:
        return int((~among(self.listing.keys, self.ledger.done)).sum())

    def first(self) -> str:
        """Path or address of one of them."""
        return str(next(self.listing.read())["uri"][0].as_py())

    def keys(self) -> NDArray[np.bytes_]:
        """The digests of their keys, sorted."""
        return np.sort(self.listing.keys)

    def without(self, ledger: Ledger) -> "Listed":
        """Those that are not done."""
        return Listed(self.listing, ledger)

    def dataset(self, *, rows: int) -> ray.data.Dataset:
        """Parcels of rows of `SOURCES`, about so many each."""
        return _streamed(_pending, (self.listing, self.ledger, rows))


def _streamed(read: Callable[..., Iterator[pa.Table]], arguments: tuple[Any, ...]) -> ray.data.Dataset:
    """Parcels that a task on the driver's machine makes as they are needed: millions never lie in the object store."""
    driver = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return ray.data.read_datasource(_Blocks(read, ray.put(arguments)), num_cpus=0, label_selector=driver)


class _Blocks(ray.data.Datasource):  # type: ignore[misc]  # Ray is not typed
    """One task, since a listing can only be read from its beginning."""

    def __init__(self, read: Callable[..., Iterator[pa.Table]], held: "ray.ObjectRef[Any]") -> None:
        super().__init__()
        self._read, self._held = read, held

    def estimate_inmemory_data_size(self) -> None:
        """Unknown."""

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
        """What Ray Data runs."""
        del parallelism
        read, held = self._read, self._held
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ray.data.ReadTask(lambda: read(*ray.get(held)), unknown, schema=PARCEL)]


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (pack(table.slice(first, rows).to_pylist()) for first in range(0, len(table), rows))


def _pending(found: listing.Listing, ledger: Ledger, rows: int) -> Iterator[pa.Table]:
    for table in found.read():
        yield from _slices(ledger.pending(table), rows)


def list_pictures(config: DenoiseConfig) -> Pictures:
    """List INPUT, name the outputs, pair the references; or look through a listing.

    Raises:
        ValueError: there is no input, or no reference fits.
    """
    if config.list is not None:
        format = config.written_format
        return Listed(listing.check(config.list, column=config.column, written_format=format, limit=config.limit))
    assert config.input is not None, "the config has one of the two"
    found = _outside(inputs.list_sources(config.input), config, Output(place(config.output)))
    if not found:
        raise ValueError(f"input {config.input!r} holds no files but those of the output; allowed: pictures")
    uris, keys = _column(source.uri for source in found), [source.key for source in found]
    del found  # of millions, before there is more of them
    names = inputs.output_keys(keys, config.written_format)  # of all, so that --limit changes no name
    none = pa.nulls(len(keys), pa.string())
    references = _column(inputs.pair_references(keys, config.reference)) if config.reference else none
    named = _column(keys)
    renamed = named if names is keys else _column(names)
    table = pa.table([uris, named, renamed, references], schema=SOURCES)
    return Found(table if config.limit is None else table.slice(0, config.limit))


def _column(values: Iterable[str | None]) -> pa.ChunkedArray:
    """A column of text, made a part at a time: one array of all would be made twice as large first."""
    left = iter(values)
    parts = grouped(left, size=PART)
    return pa.chunked_array([pa.array(part, pa.string()) for part in parts], pa.string())


def _outside(found: list[inputs.Source], config: DenoiseConfig, output: Output) -> list[inputs.Source]:
    """Leave out what a job wrote, where OUT is below INPUT or is INPUT: it is not what the job reads."""
    within = _below(str(place(config.input or "")), output.root)
    own = _written(output) if within else (output.root,)
    root = _real(str(output.root))
    if within and any(_real(source.uri.rpartition("/")[0]) == root for source in found if source.uri.endswith(_PAGE)):
        own = (*own, output.root / PLOTS)
    files = (output.manifest.name, PAGE) if within else ()
    below = tuple(f"{_real(str(path))}/" for path in own)
    folders: dict[str, tuple[bool, bool]] = {}  # each looked up once
    left = []
    for source in found:
        folder, _, name = source.uri.rpartition("/")
        if folder not in folders:
            real = _real(folder)
            folders[folder] = f"{real}/".startswith(below), real == root
        inside, is_root = folders[folder]
        if not inside and not (is_root and name in files):
            left.append(source)
    return left


def _written(output: Output) -> tuple[Place, ...]:
    return output.images, output.metrics, output.scratch, output.root / FOLDER


def _below(text: str, folder: Place) -> bool:
    """Whether a path or address is a folder's or lies below it; links count as what they lead to."""
    return f"{_real(text)}/".startswith(f"{_real(str(folder))}/")


def _real(text: str) -> str:
    """A path with its links followed, or an address of a bucket; without a slash at its end."""
    return (text if "://" in text else os.path.realpath(text or "/")).rstrip("/")


READ = ("input", "list", "reference", "model")  # options that name what a job reads


def check_apart(config: DenoiseConfig, output: Output) -> None:
    """Raise ValueError where what the job reads is what it writes, and --overwrite would remove it."""
    for name in READ:
        value = getattr(config, name)
        inside = value and [path.name for path in _written(output) if _below(str(place(value)), path)]
        if inside:
            raise ValueError(
                f"{name} {value!r} lies in {inside[0]} of the output {str(output.root)!r}; allowed: an output elsewhere"
            )


def resolved(config: DenoiseConfig) -> dict[str, str]:
    """Where the pictures are, whatever the working directory: what a job that goes on is compared by."""
    values = {name: getattr(config, name) for name in READ[:3]}
    return {name: str(place(value)) for name, value in values.items() if value is not None}

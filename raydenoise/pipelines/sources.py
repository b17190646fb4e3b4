"""What a denoising job reads: the files below INPUT, or the rows of a listing."""

from collections.abc import Callable, Iterator
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
from raydenoise.data.ledger import DIGEST, Ledger, among, digests
from raydenoise.data.schema import SOURCES


class Pictures(Protocol):
    """The pictures of a job."""

    def __len__(self) -> int: ...

    def first(self) -> str:
        """Path or address of one of them."""

    def without(self, ledger: Ledger) -> "Pictures":
        """Those that are not done."""

    def dataset(self, *, rows: int) -> ray.data.Dataset:
        """Rows of `SOURCES`, about so many a block."""


@dataclass(frozen=True)
class Found:
    """Files below a folder, or of a glob: `schema.SOURCES`."""

    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    def first(self) -> str:
        """Path or address of one of them."""
        return str(self.table["uri"][0].as_py())

    def without(self, ledger: Ledger) -> "Found":
        """Those that are not done."""
        return Found(ledger.pending(self.table))

    def dataset(self, *, rows: int) -> ray.data.Dataset:
        """Rows of `SOURCES`, so many a block."""
        return _streamed(_slices, (self.table, rows))


@dataclass(frozen=True)
class Listed:
    """The rows of a listing, read by one task on the driver's machine as they are needed."""

    listing: listing.Listing
    done: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, DIGEST))  # digests of keys to leave out

    def __len__(self) -> int:
        return int((~among(self.listing.keys, self.done)).sum())

    def first(self) -> str:
        """Path or address of one of them."""
        return str(next(self.listing.read())["uri"][0].as_py())

    def without(self, ledger: Ledger) -> "Listed":
        """Those that are not done."""
        return Listed(self.listing, ledger.done)

    def dataset(self, *, rows: int) -> ray.data.Dataset:
        """Rows of `SOURCES`, about so many a block."""
        return _streamed(_pending, (self.listing, self.done, rows))


def _streamed(read: Callable[..., Iterator[pa.Table]], arguments: tuple[Any, ...]) -> ray.data.Dataset:
    """Blocks that a task on the driver's machine makes as they are needed: millions never lie in the object store."""
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
        return [ray.data.ReadTask(lambda: read(*ray.get(held)), unknown, schema=SOURCES)]


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (table.slice(first, rows) for first in range(0, len(table), rows))


def _pending(found: listing.Listing, done: NDArray[np.bytes_], rows: int) -> Iterator[pa.Table]:
    for table in found.read():
        yield from _slices(table.filter(pa.array(~among(digests(table["key"].to_pylist()), done))), rows)


def list_pictures(config: DenoiseConfig) -> Pictures:
    """List INPUT, name the outputs, pair the references; or look through a listing.

    Raises:
        ValueError: there is no input, or no reference fits.
    """
    if config.list is not None:
        format = config.written_format
        return Listed(listing.check(config.list, column=config.column, written_format=format, limit=config.limit))
    assert config.input is not None, "the config has one of the two"
    found = inputs.list_sources(config.input)[: config.limit]
    keys = [source.key for source in found]
    references = inputs.pair_references(keys, config.reference) if config.reference else [None] * len(keys)
    names = inputs.output_keys(keys, config.written_format)
    return Found(pa.table([[source.uri for source in found], keys, names, references], schema=SOURCES))

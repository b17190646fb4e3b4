"""What the stages of a job hand to one another and to the driver: a block of one row, whatever it holds.

Ray Data cuts a task's output at a number of bytes, and keeps statistics of every block in the driver until the job
ends. A parcel is never cut, so that the job says how many pictures a block has: rows come early, and not as many blocks
as pictures.
"""

import pickle
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

Item = TypeVar("Item")

PARCEL = pa.schema([("parcel", pa.large_binary())])


def pack(item: Any) -> pa.Table:
    """Put something that pickles into a block: bytes, since Ray mixes up columns of unlike arrays."""
    return pa.Table.from_pylist([{"parcel": pickle.dumps(item, protocol=5)}], schema=PARCEL)


def unpack(batch: pa.Table) -> Iterator[Any]:
    """Take out what each row holds."""
    for cell in batch["parcel"]:
        yield pickle.loads(cell.as_buffer())


def grouped(items: Iterable[Item], *, size: int) -> Iterator[list[Item]]:
    """So many at a time, in order, as they come; the last group may be smaller."""
    left = iter(items)
    while group := list(islice(left, size)):
        yield group

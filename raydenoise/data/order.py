"""Which patch stands where: the order of the samples of an epoch, a function of (seed, epoch) and the batch size alone.

Shards are read a row group at a time, so that a free permutation of all patches would read each group for each of its
rows. Instead each of the `batch` slots of a global batch has a lane of its own: the row groups are permuted, the rows
inside each group too, and the long row of all patches is cut into as many lanes of equal length. Step t takes the t-th
patch of every lane. A batch so mixes patches from as many places as it has slots; a worker that owns some of the slots
reads little more than its share; and neither the number of workers nor where a run was resumed changes the order.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Read:
    """Rows of one row group and where they go.

    Attributes:
        group: number of the row group, over all files.
        rows: (N,) rows inside the group.
        places: (N, 2) the (step, slot) of each, the step counted over all epochs.
        epoch: of these samples.
    """

    group: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    epoch: int


@dataclass(frozen=True)
class Order:
    """The order of the samples of a run.

    Attributes:
        sizes: rows of each row group, over all files.
        batch: global batch size.
        seed: of the order.

    Raises:
        ValueError: there are fewer patches than the batch takes.
    """

    sizes: tuple[int, ...]
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"batch_size is {self.batch}; allowed: at most the {sum(self.sizes)} training patches")

    @property
    def steps(self) -> int:
        """Steps of an epoch; the patches that remain (fewer than a batch) take part in other epochs."""
        return sum(self.sizes) // self.batch

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Number of the first patch of each row group, over all files."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    def reads(self, *, first: int, last: int, slots: range) -> list[Read]:
        """Plan what to read for the steps from `first` up to `last`, not included, and some slots of their batches.

        Args:
            first: step, counted over all epochs.
            last: step after the last one.
            slots: of the global batch.
        """
        found: list[Read] = []
        for epoch in range(first // self.steps, (last - 1) // self.steps + 1):
            start = epoch * self.steps
            begin, end = max(first, start) - start, min(last, start + self.steps) - start
            found += self._epoch_reads(epoch, begin, end, slots)
        return found

    def _epoch_reads(self, epoch: int, begin: int, end: int, slots: range) -> list[Read]:
        groups, starts = _permuted(self.sizes, self.seed, epoch)
        reads: dict[int, tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]] = {}
        for slot in slots:
            position, stop = slot * self.steps + begin, slot * self.steps + end
            place = bisect_right(starts, position) - 1
            while position < stop:
                group, inside = int(groups[place]), position - starts[place]
                count = min(stop - position, self.sizes[group] - inside)
                order = np.random.default_rng([self.seed, epoch, group]).permutation(self.sizes[group])
                steps = epoch * self.steps + position - slot * self.steps + np.arange(count)
                rows, places = reads.setdefault(group, ([], []))
                rows.append(order[inside : inside + count])
                places.append(np.stack([steps, np.full(count, slot)], axis=1))
                position, place = position + count, place + 1
        return [
            Read(group, np.concatenate(rows), np.concatenate(places), epoch) for group, (rows, places) in reads.items()
        ]


@lru_cache(maxsize=4)
def _permuted(sizes: tuple[int, ...], seed: int, epoch: int) -> tuple[NDArray[np.int64], Sequence[int]]:
    """The row groups of an epoch in their order, and the position of the first patch of each."""
    groups = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    lengths = np.asarray(sizes)[groups]
    return groups, np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist()

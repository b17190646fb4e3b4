"""Shards -> the samples of one worker, in their order, by Ray Data."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import ExecutionResources

from raydenoise.core.noise import estimate_sigma
from raydenoise.core.patches import generator, random_crop
from raydenoise.data.order import Order, Read
from raydenoise.data.schema import Split
from raydenoise.data.shards import PIXELS, ShardFile, ShardSet, spread, to_arrays
from raydenoise.data.storage import open_parquet
from raydenoise.training.batches import Sample

# Of stored pixels, read by one task: some tenths of a second of work. A place of a batch reads on in its lane; a task
# that ends inside a row group leaves its rest to the next one, which reads the group again: short tasks read twice.
READ_BYTES = 128_000_000
KEPT_BYTES = 32_000_000  # of cropped pixels, which a task holds twice
CHUNK_STEPS = 256  # of a task, at most
PLANNED = 2_000  # tasks of one execution; another one follows
VALIDATION_PATCHES = 96  # at most, over all workers: some seconds on two cores for the default network
VALIDATION_PIXELS = VALIDATION_PATCHES * 256**2  # at most, so that larger patches take no more time and memory

Levels = tuple[float, float]  # 8-bit grey levels, the lower one first

SAMPLES = pa.schema(
    [
        ("epoch", pa.int64()),
        ("patch", pa.int64()),  # its number among all training patches
        ("channels", pa.int8()),
        ("dtype", pa.string()),
        ("clean", pa.binary()),  # cropped, C order
        ("noisy", pa.binary()),  # null without pairs
        ("sigma", pa.float32()),  # estimated on the whole noisy patch, 8-bit grey levels
    ]
)


@dataclass(frozen=True)
class Source:
    """What is read of the shards, and how.

    Attributes:
        files: of the training split.
        order: of the samples.
        patch: side of the crop, pixels.
        stored: side of the stored patches, pixels.
        pixel_bytes: of one pixel, at most.
        levels: what the network is told of noisy patches lies between these two; None where it is told nothing.
    """

    files: tuple[ShardFile, ...]
    order: Order
    patch: int
    stored: int
    pixel_bytes: int
    levels: Levels | None

    @classmethod
    def of(cls, shards: ShardSet, *, batch_size: int, patch: int, seed: int, levels: Levels | None) -> "Source":
        """Take the training split of some shards.

        Raises:
            ValueError: the batch is larger than the split.
        """
        files = shards.files["train"]
        sizes = tuple(rows for file in files for rows in file.groups)
        order = Order(sizes, batch=batch_size, seed=seed)
        return cls(files, order, patch, shards.patch, shards.pixel_bytes, levels)

    def chunk_steps(self, slots: int) -> int:
        """Choose the steps of which one task reads the samples of so many slots."""
        read, kept = (slots * side**2 * self.pixel_bytes for side in (self.stored, self.patch))
        return max(1, min(CHUNK_STEPS, READ_BYTES // read, KEPT_BYTES // kept))

    @cached_property
    def places(self) -> list[tuple[ShardFile, int]]:
        """File and row group of each of the order's groups."""
        return [(file, group) for file in self.files for group in range(len(file.groups))]


def samples(source: Source, *, slots: range, first: int, last: int, cpus: float) -> Iterator[list[Sample]]:
    """Stream one worker's part of the batches, from step `first` up to `last`, not included.

    Args:
        source: what to read.
        slots: the worker's part of each global batch.
        first: step, counted over all epochs.
        last: step after the last one.
        cpus: logical CPUs that reading may take.
    """
    steps = source.chunk_steps(len(slots))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cpus, gpu=0)
    for begin in range(first, last, steps * PLANNED):
        end = min(last, begin + steps * PLANNED)
        chunks = [pa.table({"first": [at], "last": [min(end, at + steps)]}) for at in range(begin, end, steps)]
        stream = ray.data.from_blocks(chunks).map_batches(
            read_chunk,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"source": source, "slots": slots},
            num_cpus=min(1.0, cpus),
        )
        for rows in stream.iter_batches(batch_size=len(slots), batch_format="pyarrow", prefetch_batches=2):
            yield to_samples(rows, side=source.patch)


def read_chunk(chunk: pa.Table, *, source: Source, slots: range) -> pa.Table:
    """Read the samples of some steps: rows of `SAMPLES`, ordered by step and slot."""
    (bounds,) = chunk.to_pylist()
    reads = source.order.reads(first=bounds["first"], last=bounds["last"], slots=slots)
    width = len(slots)
    rows: list[dict[str, object]] = [{}] * ((bounds["last"] - bounds["first"]) * width)
    for file, parts in groupby(
        sorted(reads, key=lambda read: read.group), key=lambda read: source.places[read.group][0]
    ):
        with open_parquet(file.path) as opened:
            for read in parts:
                # In this thread: others would only compete with the training for the cores.
                group = opened.read_row_group(source.places[read.group][1], columns=PIXELS, use_threads=False)
                for row, (step, slot) in zip(_cropped(group, read, source), read.places, strict=True):
                    rows[(step - bounds["first"]) * width + slots.index(slot)] = row
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def _cropped(group: pa.Table, read: Read, source: Source) -> Iterator[dict[str, object]]:
    numbers = (source.order.offsets[read.group] + read.rows).tolist()
    for (clean, noisy), number in zip(to_arrays(group, read.rows.tolist()), numbers, strict=True):
        rng = generator(source.order.seed, epoch=read.epoch, patch=number, purpose=0)
        both = clean if noisy is None else np.concatenate([clean, noisy], axis=-1)
        crop = random_crop([both], side=source.patch, rng=rng)
        channels = clean.shape[-1]
        yield {
            "epoch": read.epoch,
            "patch": number,
            "channels": channels,
            "dtype": clean.dtype.name,
            "clean": crop[..., :channels].tobytes(),
            "noisy": None if noisy is None else crop[..., channels:].tobytes(),
            "sigma": _told(noisy, source.levels),
        }


def _told(noisy: NDArray[Any] | None, levels: Levels | None) -> float:
    """The level that a network is told of a patch, as `Denoiser` tells it: estimated, limited to what it knows."""
    return 0.0 if noisy is None or levels is None else float(np.clip(estimate_sigma(noisy), *levels))


def to_samples(rows: pa.Table, *, side: int) -> list[Sample]:
    """Turn rows of `SAMPLES` into samples, without copying pixels."""
    facts = rows.drop_columns(["clean", "noisy"]).to_pylist()

    def array(cell: Any, fact: dict[str, Any]) -> Any:
        flat = np.frombuffer(cell.as_buffer(), fact["dtype"]) if cell.is_valid else None
        return None if flat is None else flat.reshape(side, side, fact["channels"])

    return [
        Sample(array(clean, fact), fact["epoch"], fact["patch"], array(noisy, fact), fact["sigma"])
        for fact, clean, noisy in zip(facts, rows["clean"], rows["noisy"], strict=True)
    ]


def held_out(
    shards: ShardSet, *, split: Split, part: slice, levels: Levels | None, limit: int = VALIDATION_PATCHES
) -> Iterator[Sample]:
    """Read patches of a split, evenly spread over it, as they are stored.

    Args:
        shards: where they are.
        split: `validation` or `test`.
        part: of the chosen ones: `slice(rank, None, workers)`.
        levels: see `Source`.
        limit: at most so many are chosen, and no more than have `VALIDATION_PIXELS`, but one.
    """
    limit = min(limit, max(1, VALIDATION_PIXELS // shards.patch**2))
    for number, patch in spread(shards.files[split], limit, part=part):
        yield Sample(patch.clean, 0, number, patch.noisy, _told(patch.noisy, levels))

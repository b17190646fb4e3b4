"""Shards: parquet files of training patches, and the manifest that lists them. See docs/training.md."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydenoise.data.place import Place, place
from raydenoise.data.schema import PATCHES, SPLITS, Split
from raydenoise.data.storage import open_parquet, publish, size

KIND, VERSION = "raydenoise shards", 1
HEAD = {"kind": KIND, "version": VERSION}  # of a manifest: tells it from others
MANIFEST = "manifest.json"
GROUP_BYTES = 1_000_000  # pixels of a row group, what a reader of random groups takes at a time: 20 of 128x128x3
DTYPES = ("uint8", "uint16")
PIXELS = ["height", "width", "channels", "dtype", "pixels", "noisy"]  # columns that arrays are made of
# Random row groups of 128x128x3 photograph patches, in MB of pixels a second on one Zen 5 core, and the size: none
# 5600, 1.00; lz4 2450, 0.89; snappy 2120, 0.92; zstd level 1 710, 0.84. Drawings and 16 bits gain more.
COMPRESSION = "lz4"
AGAIN = "run raydenoise prepare again into another folder, or bring the file back"


@dataclass(frozen=True, eq=False)
class Patch:
    """A window of a picture.

    Attributes:
        uri: where the clean picture was.
        key: its path below INPUT.
        y: top row.
        x: left column.
        clean: (H, W, C) uint8 or uint16, C = 1 or 3.
        noisy: of the same shape and type; None where noise is added in training.

    Raises:
        ValueError: the arrays are of other shapes or types.
    """

    uri: str
    key: str
    y: int
    x: int
    clean: NDArray[Any]
    noisy: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.clean.shape, str(self.clean.dtype)
        if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape or dtype not in DTYPES:
            raise ValueError(f"clean is {dtype} {shape}; allowed: uint8 or uint16 of shape (H, W, 1 or 3)")
        if self.noisy is not None and (self.noisy.shape, self.noisy.dtype) != (shape, self.clean.dtype):
            raise ValueError(f"noisy is {self.noisy.dtype} {self.noisy.shape}; allowed: {dtype} {shape}, as clean is")

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels, clean and noisy."""
        return self.clean.nbytes * (1 if self.noisy is None else 2)


@dataclass(frozen=True)
class ShardFile:
    """One parquet file.

    Attributes:
        path: where it is.
        rows: patches in it.
        bytes: of the file.
        groups: rows of each row group.
    """

    path: Place
    rows: int
    bytes: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class ShardSet:
    """What a finished `raydenoise prepare` left.

    Attributes:
        root: the folder.
        patch: side of the patches, pixels.
        paired: every patch has its noisy one.
        dtypes: of the pixels that occur, of "uint8" and "uint16".
        channels: numbers of channels that occur, of 1 and 3.
        seed: that it was made with.
        files: of each split, in order; a split may be empty.
    """

    root: Place
    patch: int
    paired: bool
    dtypes: tuple[str, ...]
    channels: tuple[int, ...]
    seed: int
    files: Mapping[Split, tuple[ShardFile, ...]]

    def rows(self, split: Split) -> int:
        """Count the patches of a split."""
        return sum(file.rows for file in self.files[split])

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel, all channels, noisy one included: at most."""
        return max(self.channels) * (1 + self.paired) * (2 if "uint16" in self.dtypes else 1)


def write_shard(path: Place, patches: Iterable[Patch], *, split: Split) -> ShardFile:
    """Publish a shard, whole or not at all. The same patches in the same order make the same bytes.

    A row group takes patches up to `GROUP_BYTES`, at least one.
    """
    sink = pa.BufferOutputStream()
    groups = []
    names = ["uri", "key", "dtype", "split"]  # few values each; pixels in a dictionary would double the work
    options = {"compression": COMPRESSION, "use_dictionary": names, "write_statistics": False}
    with pq.ParquetWriter(sink, PATCHES, **options) as writer:
        for group in _groups(patches):
            writer.write_table(_table(group, split), row_group_size=len(group))
            groups.append(len(group))
    data = memoryview(sink.getvalue())
    publish(path, data)
    return ShardFile(path, sum(groups), len(data), tuple(groups))


def _groups(patches: Iterable[Patch]) -> Iterator[list[Patch]]:
    group: list[Patch] = []
    size = 0
    for patch in patches:
        if group and size + patch.nbytes > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(patch)
        size += patch.nbytes
    if group:
        yield group


def _table(patches: list[Patch], split: Split) -> pa.Table:
    rows = [
        {
            "uri": patch.uri,
            "key": patch.key,
            "y": patch.y,
            "x": patch.x,
            "height": patch.clean.shape[0],
            "width": patch.clean.shape[1],
            "channels": patch.clean.shape[2],
            "dtype": str(patch.clean.dtype),
            "split": split,
            "pixels": _little_endian(patch.clean),
            "noisy": None if patch.noisy is None else _little_endian(patch.noisy),
        }
        for patch in patches
    ]
    return pa.Table.from_pylist(rows, schema=PATCHES)


def _little_endian(pixels: NDArray[Any]) -> bytes:
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


def read_group(file: ShardFile, group: int) -> list[Patch]:
    """Read one row group; its arrays are read-only views of one buffer."""
    return to_patches(open_parquet(file.path).read_row_group(group))


def spread(files: Sequence[ShardFile], count: int, *, part: slice = slice(None)) -> Iterator[tuple[int, Patch]]:
    """Read patches at even distances over all files, each with its number; only row groups that hold one are read.

    Args:
        files: of a split.
        count: at most so many are chosen.
        part: of the chosen ones: `slice(rank, None, workers)` for one of several readers.
    """
    groups = [(file, index) for file in files for index in range(len(file.groups))]
    ends = np.cumsum([file.groups[index] for file, index in groups], dtype=int)
    total = int(ends[-1]) if groups else 0
    wanted = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))[part]
    owners = np.searchsorted(ends, wanted, side="right")
    for owner in np.unique(owners):
        file, index = groups[owner]
        first, held = ends[owner] - file.groups[index], read_group(file, index)
        yield from ((int(number), held[number - first]) for number in wanted[owners == owner])


def to_patches(rows: pa.Table) -> list[Patch]:
    """Turn rows of `PATCHES` into patches, without copying pixels."""
    columns = (rows[name].to_pylist() for name in ("uri", "key", "y", "x"))
    places = zip(*columns, to_arrays(rows, range(len(rows))), strict=True)
    return [Patch(uri, key, y, x, clean, noisy) for uri, key, y, x, (clean, noisy) in places]


def to_arrays(rows: pa.Table, chosen: Iterable[int]) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    """Clean and noisy pixels of some rows, by their `PIXELS` alone, without copying: (height, width, channels) each."""
    facts = list(zip(*(rows[name].to_pylist() for name in ("height", "width", "channels", "dtype")), strict=True))
    clean, noisy = rows["pixels"], rows["noisy"]
    for row in chosen:
        yield _array(clean[row], *facts[row]), _array(noisy[row], *facts[row]) if noisy[row].is_valid else None


def _array(cell: pa.BinaryScalar, height: int, width: int, channels: int, dtype: str) -> NDArray[Any]:
    return np.frombuffer(cell.as_buffer(), np.dtype(dtype).newbyteorder("<")).reshape(height, width, channels)


def read_patch(path: str | Path, *, group: int, row: int) -> Patch:
    """Read one patch; its arrays are read-only.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read.
    """
    return to_patches(open_parquet(place(path)).read_row_group(group).slice(row, 1))[0]


def read_places(file: ShardFile) -> Iterator[tuple[str, str, int, int]]:
    """Tell uri, key, y and x of each patch of a file, in order; no pixels are read."""
    columns = open_parquet(file.path).read(columns=["uri", "key", "y", "x"]).to_pydict()
    return zip(*columns.values(), strict=True)


def is_shards(folder: str | Path) -> bool:
    """Whether a folder is one that `raydenoise prepare` made, whole or not."""
    try:
        content = json.loads((place(folder) / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def read_manifest(folder: str | Path) -> ShardSet:
    """Look at what `raydenoise prepare` left: the manifest, and the footer of every file that it lists.

    Raises:
        ValueError: there is no such folder or no manifest, it is not one of shards or of an unfinished run, or a file
            is not there or not the one that was written.
    """
    root = place(folder, argument="shards")
    content = _read_json(root)
    if content.get("status") != "finished":
        raise ValueError(
            f"shards {str(root)!r} are of a run that is {content.get('status')!r}; allowed: a finished one; "
            "run raydenoise prepare again into another folder"
        )
    try:
        listed = {split: content["splits"][split]["files"] for split in SPLITS}
        files = {split: tuple(_listed(root, entry) for entry in entries) for split, entries in listed.items()}
        dtypes, channels = tuple(content["dtypes"]), tuple(content["channels"])
        return ShardSet(root, content["patch"], content["paired"], dtypes, channels, content["seed"], files)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{root / MANIFEST} lacks or garbles {error}; run raydenoise prepare again") from error


def _read_json(root: Place) -> dict[str, Any]:
    if not root.is_dir():
        raise ValueError(f"shards {str(root)!r} is no folder; allowed: the output folder of raydenoise prepare")
    path = root / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"shards {str(root)!r} holds no {MANIFEST}; allowed: the output folder of raydenoise prepare"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    found = (content.get("kind"), content.get("version")) if isinstance(content, dict) else (type(content).__name__,)
    if found != (KIND, VERSION):
        raise ValueError(f"{path} is of {found}; allowed: {(KIND, VERSION)}, as raydenoise prepare writes it")
    return dict(content)


def read_shard(path: Place) -> ShardFile:
    """Look at the footer of a shard.

    Raises:
        ValueError: the file is missing, cannot be read, or is no shard.
    """
    try:
        with open_parquet(path) as file:
            footer, schema = file.metadata, file.schema_arrow
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing; {AGAIN}") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"shard {path} cannot be read: {error}; {AGAIN}") from error
    if not schema.equals(PATCHES):
        raise ValueError(f"shard {path} has the columns {schema.names}; allowed: {PATCHES.names}, as prepare writes")
    groups = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    return ShardFile(path, footer.num_rows, size(path), groups)


def _listed(root: Place, entry: Mapping[str, Any]) -> ShardFile:
    file = read_shard(root / entry["name"])
    if (file.rows, file.bytes) != (entry["rows"], entry["bytes"]):
        raise ValueError(
            f"shard {file.path} has {file.rows} rows in {file.bytes} bytes; the manifest says {entry['rows']} in "
            f"{entry['bytes']}; {AGAIN}"
        )
    return file

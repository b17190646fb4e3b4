"""What an HDF5 file holds, told by a process that may die of it.

    python -P -m raydenoise.model.weights FILE.keras|FILE.h5 BYTES

HDF5 is native code, and some damaged files end the process that reads them. So the whole file is read here once before
any other process opens it. It prints one line of JSON: {"refused": "why"}, or {"config", "numbers", "extents"}.
"""

import io
import json
import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py

from raydenoise.model.vetting import Contents, check_expansion

_FILTERS = {1, 2, 3, 32000}  # of HDF5: deflate, shuffle, checksum, LZF; the others may be plug-ins
_MOST_OBJECTS = 100_000  # groups and datasets; a shipped one has 150


def main(path: Path, memory: int) -> None:
    """Examine a file within so many bytes of memory and print what was found."""
    _limit(memory)
    found: dict[str, Any]
    try:
        found = vars(examine(path))
    except Exception as error:  # over a damaged file h5py raises anything
        found = {"refused": str(error).strip() or type(error).__name__}
    print(json.dumps(found))


def examine(path: Path) -> Contents:
    """Read a `.keras` or `.h5` file's weights, all of them, and a `.h5` file's description.

    Raises:
        ValueError: it holds links to other files, other things than numbers, or unpacks to far more than it is.
        OSError, zipfile.BadZipFile: it is no such file.
    """
    size = path.stat().st_size
    with ExitStack() as stack:
        source: Path | io.BytesIO = path
        if path.suffix == ".keras":
            archive = stack.enter_context(zipfile.ZipFile(path))
            source = io.BytesIO(archive.read("model.weights.h5"))
        file = stack.enter_context(h5py.File(source, "r"))
        numbers = unpacked = 0
        extents: set[int] = set()
        for name, dataset in _datasets(file):
            _check(name, dataset)
            unpacked += dataset.nbytes if dataset.size else 0
            check_expansion(unpacked, size)
            numbers += int(dataset.size or 0)
            extents.update(map(int, dataset.shape or ()))
        for _, dataset in _datasets(file):  # now that it is known what that costs
            dataset[()]
        config = file.attrs.get("model_config") if path.suffix != ".keras" else None
    if isinstance(config, bytes):
        config = config.decode()
    if not isinstance(config, str | None):
        raise ValueError(f"its network's description is a {type(config).__name__}; allowed: text")
    return Contents(config=config, numbers=numbers, extents=sorted(extents))


def _check(name: str, dataset: h5py.Dataset) -> None:
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"dataset {name!r} lies in another file; allowed: weights inside this one")
    if dataset.dtype.kind not in "biufV" or dataset.dtype.hasobject or dataset.dtype.names:  # V: bfloat16
        raise ValueError(f"dataset {name!r} holds {dataset.dtype}; allowed: numbers")
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if filters - _FILTERS:
        raise ValueError(f"dataset {name!r} is packed by HDF5 filter {min(filters - _FILTERS)}; allowed: deflate, LZF")


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Follow the hard links only, each object once, and read every attribute on the way."""
    seen = set()
    dict(file.attrs)
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        above, group = waiting.pop()
        for key in group:
            name = f"{above}/{key}"[-200:]
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{name!r} is a link to another place; allowed: weights inside this file")
            entry = group[key]
            place = h5py.h5o.get_info(entry.id).addr
            if place in seen:  # a second name, or a circle
                continue
            seen.add(place)
            if len(seen) > _MOST_OBJECTS:
                raise ValueError(f"it holds more than {_MOST_OBJECTS:,} groups and datasets; allowed: so many")
            dict(entry.attrs)
            if isinstance(entry, h5py.Group):
                waiting.append((name, entry))
            elif isinstance(entry, h5py.Dataset):
                yield name, entry
            else:
                raise ValueError(f"{name!r} is a {type(entry).__name__}; allowed: groups and datasets")


def _limit(memory: int) -> None:
    """Limit the memory from here on, where the system tells what is in use already; leave no core file behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = Path("/proc/self/statm")
    if used.exists():
        most = int(used.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

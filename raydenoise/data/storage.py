"""Listing, reading and atomic writing on a local or shared disk; input path -> output key."""

import glob
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from raydenoise.core.image import DEFAULT_EXTENSION, EXTENSIONS, Format


@dataclass(frozen=True)
class Source:
    """One input picture.

    Attributes:
        uri: absolute path.
        key: POSIX path below INPUT, unique.
    """

    uri: str
    key: str


def list_sources(pattern: str) -> list[Source]:
    """List the files of INPUT: a folder with all below it, a glob (`**` spans folders) or one file, sorted by key.

    Every file counts, whatever its name, so that none is left out in silence; hidden ones (a leading dot) do not.

    Raises:
        ValueError: nothing is there.
    """
    path = Path(pattern)
    if path.is_dir():
        sources = [Source(str(file), _key(file, path.absolute())) for file in _walk(path.absolute())]
    elif path.is_file():
        sources = [Source(str(path.absolute()), path.name)]
    else:
        root = _glob_root(pattern)
        found = (Path(name).absolute() for name in glob.glob(pattern, recursive=True))  # noqa: PTH207  # sees absolute patterns
        sources = [Source(str(file), _key(file, root)) for file in found if file.is_file()]
    if not sources:
        raise ValueError(f"input {pattern!r} holds no files; allowed: a folder, a glob or a file")
    return sorted(sources, key=lambda source: source.key)


def _walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Walk a folder; linked folders too, but none inside itself."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), above | {real})
        else:
            yield Path(entry.path)


def _glob_root(pattern: str) -> Path:
    parts = Path(pattern).absolute().parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def _key(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def output_keys(keys: list[str], written_format: Format | None) -> list[str]:
    """Name the outputs: the input's own key, or with the written format's extension.

    Where two inputs of a folder would get one name (a.jpg and a.bmp written as a.png), those that had another name
    keep it whole: a.jpg.png, a.bmp.png.

    Args:
        keys: sorted and unique.
        written_format: None keeps names and formats.
    """
    if written_format is None:
        return keys
    names: dict[str, str] = {}
    for _, group in groupby(keys, key=lambda key: str(PurePosixPath(key).parent)):
        names.update(_folder_names(list(group), written_format))
    return [names[key] for key in keys]


def _folder_names(keys: list[str], written_format: Format) -> dict[str, str]:
    extension = DEFAULT_EXTENSION[written_format]
    wanted = {
        key: key if _format(key) == written_format else str(PurePosixPath(key).with_suffix(extension)) for key in keys
    }
    claims = Counter(wanted.values())
    names = {key: name for key, name in wanted.items() if claims[name] == 1 or name == key}
    taken = set(names.values())
    for key in keys:
        if key not in names:
            name = key + extension
            while name in taken:
                name += extension
            names[key] = name
            taken.add(name)
    return names


def _format(key: str) -> Format | None:
    return EXTENSIONS.get(PurePosixPath(key).suffix.lower())


def pair_references(keys: list[str], folder: str) -> list[str | None]:
    """Find each key's clean picture: the same path below `folder`, else the same with any supported extension.

    Raises:
        ValueError: the folder does not exist, or it holds none of them.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"reference {folder!r} is not a folder; allowed: a folder of clean pictures")
    by_stem: dict[str, str] = {}
    exact: dict[str, str] = {}
    for source in list_sources(folder):
        exact[source.key] = source.uri
        if _format(source.key) is not None:
            by_stem.setdefault(_stem(source.key), source.uri)
    pairs = [exact.get(key) or by_stem.get(_stem(key)) for key in keys]
    if not any(pairs):
        raise ValueError(f"reference {folder!r} holds no picture with the path of an input, such as {keys[0]!r}")
    return pairs


def _stem(key: str) -> str:
    return str(PurePosixPath(key).with_suffix(""))


def read(uri: str) -> bytes:
    """Read a file whole."""
    return Path(uri).read_bytes()


def publish(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing: a temporary name beside it, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{uuid.uuid4().hex}.partial"
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

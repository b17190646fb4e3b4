"""What a job reads: files below a folder, of a glob, or one; and the names of their outputs."""

import fnmatch
import glob
import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath

from raydenoise.core.image import (
    DEFAULT_EXTENSION,
    EXTENSIONS,
    Format,
)
from raydenoise.data.place import Place, Remote, place

UNNAMED = ".picture"  # extension of an output whose input has none, where it needs one
_Identity = tuple[int, int]  # of a folder: its device and number there


@dataclass(frozen=True, slots=True)  # there may be millions
class Source:
    """One input picture.

    Attributes:
        uri: absolute path, or address in a bucket.
        key: POSIX path below INPUT, unique.
    """

    uri: str
    key: str


def list_sources(pattern: str, *, argument: str = "input") -> list[Source]:
    """List the files of INPUT: a folder with all below it, a glob (`**` spans folders) or one file, sorted by key.

    Every file counts, whatever its name, so that none is left out in silence; hidden ones (a leading dot) do not.
    Linked folders are followed below a folder, not by `**`. A name that is not UTF-8 is listed with escapes, and a
    number where that is another file's name: no table could hold it, so its row will say that there is no such file.

    Raises:
        ValueError: nothing is there, or it is closed to this user.
    """
    path = place(pattern, argument=argument)
    with _readable(pattern, argument=argument):
        sources = list(_remote_sources(path) if isinstance(path, Remote) else _local_sources(path))
    if not sources:
        raise ValueError(f"{argument} {pattern!r} holds no files; allowed: a folder, a glob or a file")
    return sorted(sources, key=lambda source: source.key)


@contextmanager
def _readable(given: str, *, argument: str) -> Iterator[None]:
    """Say what cannot be looked at, such as what lies below a folder that is closed to this user."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{argument} {given!r} cannot be read: {error.strerror or error}") from error


def _local_sources(path: Path) -> Iterator[Source]:
    if path.is_dir():
        root, files = path, _walk(path)
    elif path.is_file():
        root, files = path.parent, iter([path])
    else:
        root, files = _glob(path)
    odd = []
    for file in files:
        uri = str(file)
        if _utf8(uri) == uri:
            yield Source(uri, file.relative_to(root).as_posix())
        else:
            odd.append(file)
    yield from _escaped(sorted(odd), root)


def local_file(pattern: str | None) -> str | None:
    """A file of INPUT that is there to be read; None where INPUT is in a bucket, is not given, or has none."""
    path = None if pattern is None else place(pattern)
    files = _local_sources(path) if isinstance(path, Path) else ()
    return next((source.uri for source in files if Path(source.uri).exists()), None)


def _escaped(files: Sequence[Path], root: Path) -> Iterator[Source]:
    """Name files whose names are not UTF-8 as no file is named: else a row could be that of another picture."""
    taken: set[str] = set()
    for file in files:
        uri = _utf8(str(file))
        endings = chain([""], (f"-{number}" for number in count(2)))
        ending = next(end for end in endings if uri + end not in taken and not os.path.lexists(uri + end))
        taken.add(uri + ending)
        yield Source(uri + ending, _utf8(file.relative_to(root).as_posix()) + ending)


def _remote_sources(path: Remote) -> Iterator[Source]:
    """The objects below a folder, of a glob, or one; an empty object that stands for a folder is none.

    `.` and `..` hide nothing: whoever wrote such a key meant a path, and its row will say that it is none.

    Raises:
        ValueError: the bucket cannot be listed.
    """
    try:
        if path.is_file():
            yield Source(str(path), path.name)
            return
        parts = path.path.split("/")
        fixed = len(parts)
        if glob.has_magic(path.path) and not path.is_dir():
            fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        root = Remote(path.scheme, "/".join(parts[: max(fixed, 1)]))
        wild = parts[fixed:] or ["**"]
        for file in root.files():
            key = file.path.removeprefix(root.path + "/")
            found = key.split("/")
            if _fits(found, wild) and not any(part.startswith(".") and part not in (".", "..") for part in found):
                yield Source(str(file), key)
    except OSError as error:
        raise ValueError(f"{path} cannot be listed: {error}") from error


def _fits(parts: Sequence[str], wild: Sequence[str]) -> bool:
    """Whether the parts of a key match those of a glob; `**` stands for any number of them."""
    if not wild:
        return not parts
    if wild[0] == "**":
        return any(_fits(parts[first:], wild[1:] or ["*"]) for first in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wild[0]) and _fits(parts[1:], wild[1:])


def list_all(patterns: Sequence[str], *, argument: str = "input") -> list[Source]:
    """List the files of several INPUTs, sorted by key.

    With more than one, a key begins with the name of the folder that its input is, or lies in; a second folder of that
    name is `name-2`. A file that two inputs hold counts once, so that it cannot fall into two splits.

    Raises:
        ValueError: nothing is there.
    """
    listed = [list_sources(pattern, argument=argument) for pattern in patterns]
    if len(listed) == 1:
        return listed[0]
    names: dict[str, str] = {}
    found: dict[str, Source] = {}
    for source in chain.from_iterable(listed):
        folder = source.uri.removesuffix(source.key).rstrip("/")
        if folder not in names:
            names[folder] = _free_name(Path(folder).name or "root", set(names.values()))
        found.setdefault(_real(source.uri), Source(source.uri, f"{names[folder]}/{source.key}"))
    return sorted(found.values(), key=lambda source: source.key)


def _real(uri: str) -> str:
    return uri if "://" in uri else os.path.realpath(uri)


def _free_name(name: str, taken: set[str]) -> str:
    numbered = (f"{name}-{number}" for number in count(2))
    return next(candidate for candidate in chain([name], numbered) if candidate not in taken)


def _walk(folder: Path) -> Iterator[Path]:
    """Walk a folder, upper folders first; linked ones too, but none inside itself, and each of them once.

    Once, since folders that link one another have more paths than any disk has files. Folders are told apart by device
    and number, and looked at in order, so that a second walk finds the same files under the same paths.

    What cannot be looked into (a broken link, a folder without permission) counts as a file, so that its row says why;
    a pipe or a device does not.
    """
    top = _identity(folder)
    linked = {top}
    waiting = deque([(folder, top, frozenset[_Identity]())])
    while waiting:
        path, own, above = waiting.popleft()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            yield path
            continue
        above |= {own}
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                real = _identity(entry) if entry.is_dir() else None
                is_file = entry.is_file() or entry.is_symlink()
            except OSError:  # a link to itself, or what has gone meanwhile
                real, is_file = None, True
            if real is None:
                if is_file:
                    yield Path(entry.path)
            elif not entry.is_symlink():
                waiting.append((Path(entry.path), real, above))
            elif real not in linked and real not in above:
                linked.add(real)
                waiting.append((Path(entry.path), real, above))


def _identity(path: "Path | os.DirEntry[str]") -> _Identity:
    found = path.stat()
    return found.st_dev, found.st_ino


def _glob(pattern: Path) -> tuple[Path, Iterator[Path]]:
    """Split a pattern into the folder above its first wildcard and the files that match, each once.

    Raises:
        ValueError: folders are nested deeper than pathlib can follow `**`.
    """
    parts = pattern.parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    root, wild = Path(*parts[:fixed]), parts[fixed:]
    if wild[-1] == "**":  # for pathlib that is folders only
        wild = (*wild, "*")
    try:
        found = sorted({file for file in root.glob(str(Path(*wild))) if file.is_file()})
    except RecursionError:
        raise ValueError(f"{str(pattern)!r} meets hundreds of nested folders; allowed: a folder, without **") from None
    return root, (file for file in found if not any(p.startswith(".") for p in file.relative_to(root).parts))


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def output_keys(keys: list[str], written_format: Format | None) -> list[str]:
    """Name the outputs: the input's own key, or with the written format's extension.

    Where two inputs of a folder would get one name (a.jpg and a.bmp written as a.png), those that had another name
    keep it whole: a.jpg.png, a.bmp.png. So does one whose name is that of a folder, as an object's own may be; it gets
    its own extension once more where formats are kept (a.jpg.jpg), or `UNNAMED`. Names that differ in case or in their
    Unicode form are two names, as they are on Linux.

    Args:
        keys: sorted and unique.
        written_format: None keeps names and formats.
    """
    if written_format is None and _above({key.rpartition("/")[0] for key in keys}).isdisjoint(keys):
        return keys
    folders: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        folders[str(PurePosixPath(key).parent)].append(key)
    above = _above(folders)
    names: dict[str, str] = {}
    for group in folders.values():
        names.update(_folder_names(group, written_format, above))
    return [names[key] for key in keys]


def _above(folders: Iterable[str]) -> set[str]:
    """Folders, and those above them."""
    return {str(parent) for folder in folders for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)}


def _folder_names(keys: list[str], written_format: Format | None, folders: set[str]) -> dict[str, str]:
    wanted = {key: renamed(key, written_format) for key in keys}
    claims = Counter(wanted.values())
    names = {key: name for key, name in wanted.items() if name not in folders and (name == key or claims[name] == 1)}
    taken = folders.union(names.values())
    for key in keys:
        if key not in names:
            extension = added(key, written_format)
            name = key + extension
            while name in taken:
                name += extension
            names[key] = name
            taken.add(name)
    return names


def added(key: str, written_format: Format | None) -> str:
    """The extension that a key gets behind its own where its name is taken."""
    return DEFAULT_EXTENSION[written_format] if written_format else PurePosixPath(key).suffix or UNNAMED


def renamed(key: str, written_format: Format | None) -> str:
    """Give a key the extension of the written format, unless it has one of its extensions or formats are kept."""
    if written_format is None or _format(key) == written_format:
        return key
    return str(PurePosixPath(key).with_suffix(DEFAULT_EXTENSION[written_format]))


def _format(key: str) -> Format | None:
    return EXTENSIONS.get(PurePosixPath(key).suffix.lower())


def check_key(key: str) -> None:
    """Refuse a key that could leave the folder it is put below, here or on a disk of Windows.

    Keys of a listing on disk never could; one that comes from a table may be anything.

    Raises:
        ValueError: it is empty, absolute, has a part that is empty, `.` or `..`, a drive letter, or a NUL.
    """
    parts = re.split(r"[/\\]", key)
    if not {"", ".", ".."}.isdisjoint(key.split("/")) or ".." in parts or key.startswith("\\\\"):
        problem = "is empty, absolute, or has an empty part, . or .."
    elif re.match(r"[A-Za-z]:[\\/]", key):
        problem = "begins with a drive"
    elif "\0" in key:
        problem = "holds a NUL"
    else:
        return
    raise ValueError(f"the key {key[:100]!r} {problem}; allowed: a path below the folder, such as 'a/b.png'")


def below(folder: Place, key: str) -> Place:
    """Say where the file of a key lies: never outside the folder.

    Raises:
        ValueError: as of `check_key`.
    """
    check_key(key)
    return folder / key


def check_folder(folder: str, *, argument: str) -> None:
    """Raise ValueError where there is no such folder, or none that can be read."""
    with _readable(folder, argument=argument):
        there = place(folder, argument=argument).is_dir()
    if not there:
        raise ValueError(f"{argument} {folder!r} is not a folder; allowed: a folder of pictures")


def pair_references(keys: list[str], folder: str, *, argument: str = "reference") -> list[str | None]:
    """Find each key's partner: the same path below `folder`, else the same with any supported extension.

    Raises:
        ValueError: the folder does not exist, cannot be read, or holds none of them.
    """
    check_folder(folder, argument=argument)
    by_stem: dict[str, str] = {}
    exact: dict[str, str] = {}
    for source in list_sources(folder, argument=argument):
        exact[source.key] = source.uri
        if _format(source.key) is not None:
            by_stem.setdefault(_stem(source.key), source.uri)
    pairs = [exact.get(key) or by_stem.get(_stem(key)) for key in keys]
    if not any(pairs):
        raise ValueError(f"{argument} {folder!r} holds no picture with the path of an input, such as {keys[0]!r}")
    return pairs


def _stem(key: str) -> str:
    return str(PurePosixPath(key).with_suffix(""))

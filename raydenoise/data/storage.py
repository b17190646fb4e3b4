"""Reading and atomic writing on disks and in buckets."""

import errno
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raydenoise.core.image import (
    DEFAULT_MAX_PIXELS,
    HEAD_BYTES,
    ImageError,
    admit,
)
from raydenoise.data.place import Place, Remote, place

Done = TypeVar("Done")

# Of NFS: a server that starts anew, a file that another machine replaced, a soft mount whose server is silent.
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
# What a hard link meets on a disk that has none: exFAT, some of SMB and FUSE.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
PAUSES = (0.5, 2.0)  # seconds; a disk that is broken costs no more of them a picture
# What removing a folder meets where others write or remove in it: workers outlive a driver by seconds.
RACES = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
TRIES = 8  # with pauses of 10 ms that double: 1.3 s in all
PAUSE_SECONDS = 0.01


def read(uri: str) -> bytes:
    """Read a file whole."""
    return place(uri).read_bytes()


def read_picture(uri: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """Read a picture's file whole, once its beginning and size tell that it can be one.

    Raises:
        ImageError: they do not, or it is a pipe or a device, which might never end.
        OSError: it cannot be read.
    """
    source = place(uri)
    if isinstance(source, Remote):
        return source.read_admitted(partial(admit, max_pixels=max_pixels))
    return patiently(partial(_read_local_picture, uri, max_pixels=max_pixels))


def _read_local_picture(uri: str, *, max_pixels: int) -> bytes:
    with open(uri, "rb", opener=_open_now) as file:  # pathlib takes no opener
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("not_an_image", "it is a pipe, a socket or a device; allowed: files")
        head = file.read(HEAD_BYTES)
        admit(head, found.st_size, max_pixels=max_pixels)
        return head + file.read()


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def patiently(step: Callable[[], Done]) -> Done:
    """Do something on a disk, up to three times where it fails as network disks do for a moment.

    Buckets' clients do so on their own: `clients`.
    """
    for pause in PAUSES:
        try:
            return step()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(pause)
    return step()


def publish(path: Place, data: bytes | memoryview, *, scratch: Place | None = None) -> None:
    """Write a file so that a reader sees all of it or nothing.

    In a bucket that is one write; on a disk a temporary name, then a rename.

    Args:
        path: of the file; folders above it are made.
        data: its content.
        scratch: folder for the temporary name; by default, and where a link leads to another disk, the file's own.
    """
    if isinstance(path, Remote):
        path.write_bytes(data)
        return
    aside = scratch if isinstance(scratch, Path) else path.parent
    try:
        patiently(partial(_publish_local, path, data, aside=aside))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        patiently(partial(_publish_local, path, data, aside=path.parent))


def _publish_local(path: Path, data: bytes | memoryview, *, aside: Path) -> None:
    unfinished = aside / f".{uuid.uuid4().hex}.partial"
    for folder in {path.parent, aside}:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):  # the same may be wrong again
            unfinished.unlink(missing_ok=True)
        raise


def create(path: Place, data: bytes, *, whole: bool = True) -> None:
    """Write a file that is not there yet: of several that try, one succeeds, and nobody sees a part of it.

    Args:
        path: of the file.
        data: its content.
        whole: fail on a disk without hard links, where others might see a part of it.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    if isinstance(path, Remote):
        path.create(data)
        return
    partial = path.parent / f".{uuid.uuid4().hex}.partial"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_bytes(data)
        try:
            path.hardlink_to(partial)  # unlike a rename, it fails where the name is taken
        except OSError as error:
            with suppress(OSError):
                if path.samefile(partial):
                    return  # the answer to a link that succeeded was lost, and the disk was asked again
            if whole or error.errno not in NO_LINKS:
                raise
            _create_open(path, data)
    finally:
        partial.unlink(missing_ok=True)


def _create_open(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError:
            path.unlink()
            raise


def names(folder: Place) -> list[str]:
    """The names of the files in a folder, hidden ones not, in order; none where there is no folder."""
    if isinstance(folder, Remote):
        found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
        listed = [info.base_name for info in found if info.type == fs.FileType.File]
    else:
        listed = patiently(partial(_local_names, folder))
    return sorted(name for name in listed if not name.startswith("."))


def _local_names(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_file()] if folder.is_dir() else []


def walk(folder: Place) -> Iterator[str]:
    """The keys of all files below a folder, in no order; none where there is no folder.

    Raises:
        OSError: a folder cannot be read: what is in it must not count as gone.
    """
    if isinstance(folder, Remote):
        yield from (file.path.removeprefix(folder.path + "/") for file in folder.files())
        return
    waiting = [(folder, "")]
    while waiting:
        path, above = waiting.pop()
        try:
            entries = patiently(partial(_entries, path))
        except (FileNotFoundError, NotADirectoryError):  # not there, or gone meanwhile
            continue
        for name, is_folder in entries:
            if is_folder:
                waiting.append((path / name, f"{above}{name}/"))
            else:
                yield above + name


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder; links to folders are left out."""
    with os.scandir(folder) as found:
        return [
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in found
            if not (entry.is_symlink() and os.path.isdir(entry.path))  # noqa: PTH112  # Path.is_dir raises on loops
        ]


def remove(path: Place) -> None:
    """Remove a file or a folder with all in it; one that is not there is removed already.

    A folder goes though others still write in it; what they write later stays.
    """
    if isinstance(path, Remote):
        if path.is_dir():
            with suppress(FileNotFoundError):  # Google: all below is gone, and no object stands for the folder itself
                path.filesystem.delete_dir(path.path)
        path.unlink(missing_ok=True)
    elif path.is_dir() and not path.is_symlink():
        _remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def _remove_folder(path: Path) -> None:
    """Move it aside first: who knows it by its name then writes nothing more into it."""
    aside = path.parent / f".{uuid.uuid4().hex}.partial"
    with suppress(FileNotFoundError):  # another one removes it too
        path.rename(aside)
        for tried in range(1, TRIES + 1):
            try:
                shutil.rmtree(aside)
            except OSError as error:
                if error.errno not in RACES or tried == TRIES:
                    raise
                time.sleep(PAUSE_SECONDS * 2 ** (tried - 1))
            else:
                return


def open_parquet(path: Place) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        FileNotFoundError: there is none.
        OSError, pyarrow.ArrowException: it cannot be read.
    """
    return pq.ParquetFile(path.open() if isinstance(path, Remote) else path)


def read_parquet(folder: Place) -> pa.Table:
    """Read all parquet files of a folder, for tables that fit in memory."""
    files = [open_parquet(folder / name) for name in names(folder) if name.endswith(".parquet")]
    return pa.concat_tables([file.read() for file in files])


def size(path: Place) -> int:
    """Bytes of a file."""
    if isinstance(path, Remote):
        return int(path.filesystem.get_file_info(path.path).size)
    return path.stat().st_size


def publish_table(path: Place, table: pa.Table) -> None:
    """Publish a parquet file."""
    publish(path, _parquet(table))


def create_table(path: Place, table: pa.Table) -> None:
    """Create a parquet file as `create` does.

    Raises:
        FileExistsError: it is there.
    """
    create(path, _parquet(table))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def publish_folder(folder: Path, target: Place) -> None:
    """Publish every file of a local folder under the same name."""
    for name in sorted(walk(folder)):
        publish(target / name, (folder / name).read_bytes())


def publish_json(path: Place, content: dict[str, Any]) -> None:
    """Publish a JSON file for people and programs: indented, UTF-8."""
    publish(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

"""Where a file or folder is: on a disk, or in a bucket. A `Remote` has the names of `pathlib.Path` that we use."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError
from pyarrow import fs

from raydenoise.data import clients
from raydenoise.data.secrets import redacted

SCHEMES = ("s3", "gs")
FIRST = 1 << 20  # bytes of a picture in the first request: most pictures whole, and little of what is none


@dataclass(frozen=True)
class Remote:
    """A file or folder in a bucket.

    Endpoint, region and credentials come from the environment of the process that asks (docs/storage.md); nothing of
    them is kept here, so that a Remote can be pickled, printed and stored.

    Attributes:
        scheme: s3 or gs.
        path: bucket/key, neither escaped nor with a slash at its end.
    """

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.scheme, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def filesystem(self) -> fs.FileSystem:
        """The client, one a process and bucket."""
        return clients.filesystem(self.scheme, self.path.split("/", 1)[0])

    def _type(self) -> fs.FileType:
        return self.filesystem.get_file_info(self.path).type

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return bool(self._type() != fs.FileType.NotFound)

    def is_dir(self) -> bool:
        """Whether anything lies below it."""
        return bool(self._type() == fs.FileType.Directory)

    def is_file(self) -> bool:
        """Whether it is an object."""
        return bool(self._type() == fs.FileType.File)

    def files(self) -> Iterator["Remote"]:
        """All objects below it."""
        for info in self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True, allow_not_found=True)):
            if info.type == fs.FileType.File:
                yield Remote(self.scheme, info.path)

    def open(self) -> pa.NativeFile:
        """Open it for reading here and there.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        """Read it whole.

        Raises:
            FileNotFoundError: there is none.
        """
        got = self._get()
        if got is not None:
            with _as_oserror(self):
                return bytes(got.bytes())
        with self.open() as stream:
            return bytes(stream.read())

    def read_admitted(self, admit: Callable[[bytes, int], None]) -> bytes:
        """Read it whole, unless `admit` raises about its first bytes and its size: one request, two beyond `FIRST`.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read, or was replaced meanwhile.
        """
        got = self._get({"range": (0, FIRST)})
        if got is None:
            with self.open() as stream:
                size, head = stream.size(), stream.read(FIRST)
                admit(head, size)
                return bytes(head + stream.read())
        with _as_oserror(self):
            head, size = bytes(got.bytes()), got.meta["size"]
        admit(head, size)
        if size <= len(head):
            return head
        with _as_oserror(self):
            rest = obstore.get(*self._named, options={"range": (len(head), size), "if_match": got.meta["e_tag"]})
            return b"".join((head, rest.bytes()))

    def _get(self, options: Any = None) -> Any:
        """Ask obstore for it.

        Returns:
            The answer; None where pyarrow is to be asked: for credentials or a key (one with control characters) that
            obstore does not know, and an empty object, which has no range.
        """
        if self.scheme == "s3" and clients.has_profile():
            return None
        try:
            store, key = self._named
            with _as_oserror(self):
                return obstore.get(store, key, options=options)
        except (BaseError, ValueError):
            return None
        except OSError as error:
            if " status code: 416 " in str(error):
                return None
            raise

    @property
    def _named(self) -> tuple[Any, str]:
        """Its bucket's client and its key, for obstore."""
        bucket, key = self.path.split("/", 1)
        return clients.store(self.scheme, bucket), key

    def write_bytes(self, data: Any) -> None:
        """Write it: readers see the old object or the whole new one."""
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(data)

    def create(self, data: bytes) -> None:
        """Write it, unless it is there: of several that try with different data, one succeeds.

        The answer to one that succeeded may be lost, and the client's next attempt then meets its own object: what is
        there is read, and ours where it holds our data.

        Raises:
            FileExistsError: it is there.
            OSError: it cannot be written, or only a profile in a file has Amazon's credentials.
        """
        self.check_create()
        try:
            with _as_oserror(self):
                obstore.put(*self._named, data, mode="create")
        except FileExistsError:
            if self.read_bytes() != data:
                raise

    def check_create(self) -> None:
        """Raise OSError where nothing can be created, since obstore does not know this kind of credentials."""
        if self.scheme == "s3":
            clients.check_keys()
        with _as_oserror(self):
            clients.store(self.scheme, self.path.split("/", 1)[0])

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


Place = Path | Remote


def place(text: str | Path, *, argument: str = "path") -> Place:
    """Understand a path or an address of a bucket; a local path becomes absolute.

    Raises:
        ValueError: the scheme is unknown, or the address names no bucket, or more than that. No message repeats what
            may be a secret: pyarrow would take a key and its secret before the bucket.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text).absolute()
    scheme, path = text.split("://", 1)
    if scheme == "file":
        return Path(path).absolute()
    if scheme not in SCHEMES:
        came = f"{scheme}://..."
        raise ValueError(f"{argument} is {came!r}; allowed: a local path, {', '.join(f'{s}://' for s in SCHEMES)}")
    path = path.strip("/")
    if not {"@", ":", "?"}.isdisjoint(path.split("/", 1)[0]):
        raise ValueError(
            f"{argument} has @, : or ? between {scheme}:// and its first slash; allowed: {scheme}://BUCKET/KEY, with "
            "credentials and an endpoint from the environment (docs/storage.md)"
        )
    if not path or "//" in path:
        raise ValueError(f"{argument} is {text!r}; allowed: {scheme}://BUCKET/KEY without empty parts")
    return Remote(scheme, path)


@contextmanager
def _as_oserror(remote: Remote) -> Iterator[None]:
    """Raise what obstore says about an object as an OSError, without the debugging text below its first line."""
    try:
        yield
    except AlreadyExistsError as error:
        raise FileExistsError(str(remote)) from error
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(remote)) from None
    except BaseError as error:
        first = str(error).partition("\n")[0].strip()
        raise OSError(redacted(f"{remote}: {first}")) from error

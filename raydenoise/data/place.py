"""Where a file or folder is: on a disk, or in a bucket. A `Remote` has the names of `pathlib.Path` that we use."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import obstore
import obstore.store
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError
from pyarrow import fs

SCHEMES = ("s3", "gs")
ATTEMPTS = 10  # of a request to an object store, with growing pauses: minutes of trouble cost time only
PATIENCE = timedelta(minutes=3)  # the same for Google's client, which counts time


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
        return _filesystem(self.scheme, self.path.split("/", 1)[0])

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
        """Open it for reading.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        """Read it whole."""
        with self.open() as stream:
            return bytes(stream.read())

    def write_bytes(self, data: Any) -> None:
        """Write it: readers see the old object or the whole new one."""
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(data)

    def create(self, data: bytes) -> None:
        """Write it, unless it is there: of several that try, one succeeds.

        Raises:
            FileExistsError: it is there.
        """
        bucket, key = self.path.split("/", 1)
        try:
            obstore.put(_store(self.scheme, bucket), key, data, mode="create")
        except AlreadyExistsError as error:
            raise FileExistsError(str(self)) from error

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
        ValueError: the scheme is unknown, or the address names no bucket.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text).absolute()
    scheme, path = text.split("://", 1)
    if scheme == "file":
        return Path(path).absolute()
    if scheme not in SCHEMES:
        raise ValueError(f"{argument} is {text!r}; allowed: a local path, {', '.join(f'{s}://' for s in SCHEMES)}")
    path = path.strip("/")
    if not path or "//" in path:
        raise ValueError(f"{argument} is {text!r}; allowed: {scheme}://BUCKET/KEY without empty parts")
    return Remote(scheme, path)


def endpoint() -> str | None:
    """The S3 endpoint that the environment names, as AWS' own tools read it; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@cache
def _filesystem(scheme: str, bucket: str) -> fs.FileSystem:
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=PATIENCE)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    url = endpoint()
    if region is None and url is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=url,
        region=region,
        allow_delayed_open=True,  # a small object is one request, not three
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


@cache
def _store(scheme: str, bucket: str) -> Any:
    """The client for what pyarrow lacks: a conditional write."""
    if scheme == "gs":
        return obstore.store.GCSStore(bucket)
    url = endpoint()
    if url is None:
        return obstore.store.S3Store(bucket)
    return obstore.store.S3Store(bucket, endpoint=url, client_options={"allow_http": url.startswith("http://")})

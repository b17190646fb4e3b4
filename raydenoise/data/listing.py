"""A listing of pictures in a parquet or CSV file: read in a stream, so that millions of rows cost no memory."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydenoise.core.image import Format
from raydenoise.data.inputs import added, renamed
from raydenoise.data.ledger import DIGEST, among, digests
from raydenoise.data.place import Place, Remote, place
from raydenoise.data.schema import SOURCES

ROWS = 8192  # read at a time
SUFFIXES = (".parquet", ".csv")
LISTED = re.compile(r"/|(s3|gs)://[^/@:?]+/+[^/]")  # an absolute path, or an object in a bucket


@dataclass(frozen=True)
class Listing:
    """A checked listing; `check` makes it.

    Attributes:
        uri: of the file.
        column: with the pictures' paths or addresses.
        written_format: None keeps names and formats.
        keys: digests of the keys, in the file's order, up to `--limit`.
        shared: digests of output names that two pictures would have, sorted.
        folders: digests of output names that are those of folders too, sorted.
    """

    uri: str
    column: str
    written_format: Format | None
    keys: NDArray[np.bytes_]
    shared: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, DIGEST))
    folders: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, DIGEST))

    def __len__(self) -> int:
        return len(self.keys)

    def read(self) -> Iterator[pa.Table]:
        """The rows of `SOURCES`, a table at a time."""
        first = 0
        for uris in _uris(place(self.uri), self.column):
            uris = uris[: len(self.keys) - first]
            first += len(uris)
            keys = [key_of(uri) for uri in uris]
            yield pa.table([uris, keys, self._names(keys), [None] * len(keys)], schema=SOURCES)
            if first >= len(self.keys):
                return

    def _names(self, keys: list[str]) -> list[str]:
        """Name the outputs as `inputs.output_keys` does, without a look at the neighbours.

        `shared` and `folders` tell of them.
        """
        if self.written_format is None and not len(self.folders):
            return keys
        wanted = [renamed(key, self.written_format) for key in keys]
        clash, is_folder = (among(digests(wanted), known) for known in (self.shared, self.folders))
        return [
            key + added(key, self.written_format) if taken or (clashes and name != key) else name
            for key, name, clashes, taken in zip(keys, wanted, clash, is_folder, strict=True)
        ]


def check(uri: str, *, column: str, written_format: Format | None = None, limit: int | None = None) -> Listing:
    """Look through a listing, once.

    Args:
        uri: of a .parquet or .csv file (the latter with a header line).
        column: of absolute paths, s3:// or gs:// addresses.
        written_format: None keeps names and formats.
        limit: take so many rows only.

    Raises:
        ValueError: it cannot be read, has no such column, no row, a row that is neither an absolute path nor an address
            in a bucket, or a picture twice. No message repeats what may be a secret.
    """
    file = place(uri, argument="list")
    uri = str(file)  # absolute: a worker of a Ray that runs already stands in another folder
    found: list[NDArray[np.bytes_]] = []
    folders: list[NDArray[np.bytes_]] = []
    count = 0
    for uris in _uris(file, column):
        uris = uris[: limit - count] if limit is not None else uris
        for number, value in enumerate(uris, start=count + 1):
            if not value or not LISTED.match(value):
                _refuse_row(value or "", f"list {uri}, row {number}")
        keys = [key_of(value) for value in uris]
        found.append(digests(keys))
        folders.append(digests(_folders(keys)))
        count += len(uris)
        if limit is not None and count >= limit:
            break
    if not count:
        raise ValueError(f"list {uri!r} has no row; allowed: one a picture")
    listing = Listing(uri, column, written_format, np.concatenate(found))
    _refuse_twice(listing, listing.keys, name="key")
    wanted = listing.keys
    if written_format is not None:
        parts = (digests(renamed(key, written_format) for key in rows["key"].to_pylist()) for rows in listing.read())
        wanted = np.concatenate(list(parts))
    both = np.intersect1d(np.concatenate(folders), wanted)
    if written_format is None and not len(both):
        return listing
    listing = Listing(uri, column, written_format, listing.keys, _twice(wanted), both)
    named = np.concatenate([digests(rows["output_key"].to_pylist()) for rows in listing.read()])
    _refuse_twice(listing, named, name="output_key")
    return listing


def _folders(keys: list[str]) -> set[str]:
    """All folders above some keys."""
    found: set[str] = set()
    for key in keys:
        folder = key.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _refuse_row(value: str, said: str) -> None:
    place(value, argument=said)  # says more about an address, without its secrets
    raise ValueError(f"{said} is {value!r}; allowed: absolute paths, s3:// and gs://")


def key_of(uri: str) -> str:
    """The key of a listed picture: its path with the bucket, so that OUT mirrors where pictures came from.

    A part that is `..` gets lines around it: an output must not leave OUT.
    """
    path = uri.split("://", 1)[-1]
    parts = [f"_{part}_" if part == ".." else part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts)


def _twice(found: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    ordered = np.sort(found)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _refuse_twice(listing: Listing, found: NDArray[np.bytes_], *, name: str) -> None:
    double = _twice(found)
    if not len(double):
        return
    for rows in listing.read():
        for row, clashes in zip(rows.to_pylist(), among(digests(rows[name].to_pylist()), double), strict=True):
            if clashes:
                raise ValueError(
                    f"list {listing.uri} holds {row['uri']} more than once, or another picture with its output name "
                    f"{row['output_key']!r}; allowed: every picture once ({len(double)} are not)"
                )


def _uris(file: Place, column: str) -> Iterator[list[Any]]:
    """The values of the column, some thousands at a time.

    Raises:
        ValueError: the file cannot be read, or has no such column of text.
    """
    suffix = PurePosixPath(file.name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"list is {str(file)!r}; allowed: a file ending in {' or '.join(SUFFIXES)}")
    try:
        source = file.open() if isinstance(file, Remote) else io.BufferedReader(io.FileIO(file))
        with source as stream:
            yield from (_parquet if suffix == ".parquet" else _csv)(stream, column)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"list {str(file)!r} cannot be read: {error}") from error


def _parquet(stream: Any, column: str) -> Iterator[list[Any]]:
    file = pq.ParquetFile(stream)
    _check_column(column, file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
        yield batch.column(0).cast(pa.string()).to_pylist()


def _csv(stream: Any, column: str) -> Iterator[list[Any]]:
    """The column alone, as text: types that are guessed from the first rows break at a later `n/a`."""
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    convert = pyarrow.csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()})
    try:
        batches = pyarrow.csv.open_csv(stream, parse_options=parse, convert_options=convert)
    except KeyError:  # there is no such column
        stream.seek(0)
        _check_column(column, pyarrow.csv.open_csv(stream, parse_options=parse).schema.names)
        raise
    for batch in batches:
        yield batch.column(0).to_pylist()


def _check_column(column: str, names: list[str]) -> None:
    if column not in names:
        raise ValueError(f"column is {column!r}; allowed in this listing: {', '.join(names)}")

"""OUT: where a run keeps its pictures, metrics and manifest."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import pyarrow as pa

from raydenoise import __version__
from raydenoise.data import storage
from raydenoise.data.lease import FOLDER, at_end, is_lease
from raydenoise.data.place import Place, Remote
from raydenoise.data.storage import publish_json, publish_table

# Of the manifests; shards have theirs beside what reads them.
DENOISING_KIND, TRAINING_KIND = "raydenoise denoising", "raydenoise training"
EVALUATION_KIND = "raydenoise evaluation"
MANIFEST = "manifest.json"
_UNPACKED = ("runtime_resources", "working_dir_files")  # where Ray unpacks what a job brought along, and removes it
PAGE, PLOTS = "report.html", "report"  # of `raydenoise report`
PART_ROWS = 10_000  # rows of a metrics file: about 1 MB
COMBINED = 64  # tables of a row or some, each of which takes kilobytes beside its row
PART_SECONDS = 30.0  # a killed driver loses at most this much of the metrics


@dataclass(frozen=True)
class Output:
    """The folder of one run."""

    root: Place

    @property
    def images(self) -> Place:
        """The denoised pictures, by output key."""
        return self.root / "images"

    @property
    def metrics(self) -> Place:
        """Parquet files of metrics rows."""
        return self.root / "metrics"

    @property
    def manifest(self) -> Place:
        """What ran and how it ended."""
        return self.root / MANIFEST

    @property
    def scratch(self) -> Place:
        """Pictures that are being written on a disk, before they get their names; gone when no job runs."""
        return self.root / ".partial"


@contextmanager
def recorded(root: Place, manifest: dict[str, Any], *, allowed: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep a run's manifest: that it runs, then how it ended, and when; what the run adds to it meanwhile as well.

    Its status is `running`, `finished`, `interrupted` (Ctrl-C, `ray job stop`) or `broken`.

    Args:
        root: the folder.
        manifest: of the run.
        allowed: called before it is written; raises where it must not be, since it is another job's by now.
    """

    def write() -> None:
        allowed()
        publish_json(root / MANIFEST, manifest)

    manifest["status"] = "running"
    manifest.setdefault("started_at", utc_now().isoformat())
    write()
    manifest["status"] = "broken"  # unless it ends otherwise
    with at_end(write):
        try:
            yield
            manifest["status"] = "finished"
        except (KeyboardInterrupt, SystemExit):
            manifest["status"] = "interrupted"
            raise
        finally:
            manifest["finished_at"] = utc_now().isoformat()


def read_manifest(root: Place, *, allowed: str) -> tuple[str, dict[str, Any]]:
    """Read what a folder says it is: its kind, and the manifest; that of something else than a mapping is its type.

    Args:
        root: the folder.
        allowed: which folders are, for the message.

    Raises:
        ValueError: it holds no manifest, or one that cannot be read.
    """
    path = root / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{str(root)!r} holds no {MANIFEST}; allowed: {allowed}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; allowed: {allowed}") from error
    if not isinstance(content, dict):
        return type(content).__name__, {}
    return str(content.get("kind")), content


def check_writable(root: Place) -> None:
    """Raise ValueError where an output folder cannot be made or written to, or will not stay.

    Of a bucket, where it does not answer.
    """
    if isinstance(root, Remote):
        try:
            root.exists()
        except OSError as error:
            raise ValueError(f"output {str(root)!r} cannot be reached: {error}") from error
        return
    if _UNPACKED in pairwise(root.parts):
        raise ValueError(
            f"output {str(root)!r} is in the copy of --working-dir that Ray unpacked for this job, and goes with it; "
            "allowed: the whole path of a folder, s3:// or gs://"
        )
    # Path.exists raises below a folder that is closed to this user.
    nearest = next(path for path in (root, *root.parents) if os.path.exists(path))  # noqa: PTH110
    if not nearest.is_dir():
        raise ValueError(f"output {str(nearest)!r} is a file; allowed: a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"output {str(nearest)!r} cannot be written to; allowed: a folder that you may write to")


def check_empty(root: Place) -> None:
    """Raise ValueError where an output folder holds anything but leases, or cannot be one."""
    check_writable(root)
    if isinstance(root, Remote):
        keys = set(storage.walk(root))
    else:
        keys = {path.name for path in root.iterdir()} if root.exists() else set()
        if (root / FOLDER).is_dir():
            keys = (keys - {FOLDER}) | {f"{FOLDER}/{path.name}" for path in (root / FOLDER).iterdir()}
    held = sorted({key.split("/")[0] for key in keys if not is_lease(key)})
    if held:
        some = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
        raise ValueError(f"output {str(root)!r} already holds something ({some}); allowed: a new or an empty folder")


class RowWriter:
    """Collects rows and publishes them as parquet files, each whole or not there.

    A file is due after `PART_ROWS` rows or `PART_SECONDS` seconds.

    Args:
        folder: of the files.
        schema: of the rows.
        now: the time.
        first: number of the first file.
        publish: writes a file.
    """

    def __init__(
        self,
        folder: Place,
        *,
        schema: pa.Schema,
        now: float,
        first: int = 0,
        publish: Callable[[Place, pa.Table], None] = publish_table,
    ) -> None:
        self._folder, self._schema, self._since, self._parts = folder, schema, now, 0
        self._first, self._publish = first, publish
        self._pending: list[pa.Table] = []
        self._waiting = 0  # rows of these

    def add(self, rows: pa.Table, *, now: float) -> None:
        """Take rows; publish what is due."""
        self._pending.append(rows)
        self._waiting += len(rows)
        if len(self._pending) >= COMBINED:
            self._pending = [pa.concat_tables(self._pending).combine_chunks()]
        if self._waiting >= PART_ROWS or now - self._since >= PART_SECONDS:
            self.flush(now=now)

    def flush(self, *, now: float) -> None:
        """Publish the rows that wait."""
        self._since = now
        if not self._pending and self._parts:
            return
        table = pa.concat_tables(self._pending) if self._pending else self._schema.empty_table()
        self._publish(self._folder / part_name(self._first + self._parts), table.cast(self._schema))
        self._pending, self._waiting, self._parts = [], 0, self._parts + 1


def part_name(number: int) -> str:
    """The name of a file of rows."""
    return f"part-{number:05d}.parquet"


def versions() -> dict[str, str]:
    """Versions of what decides the pixels."""
    packages = ("ray", "tensorflow", "keras", "numpy", "pillow", "imagecodecs", "scikit-image", "pyarrow")
    return {
        "raydenoise": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)

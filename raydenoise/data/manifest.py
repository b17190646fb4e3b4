"""OUT: where a run keeps its pictures, metrics and manifest."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydenoise import __version__
from raydenoise.data.storage import publish, publish_json

# Of the manifests; shards have theirs beside what reads them.
DENOISING_KIND, TRAINING_KIND = "raydenoise denoising", "raydenoise training"
EVALUATION_KIND = "raydenoise evaluation"
MANIFEST = "manifest.json"
PART_ROWS = 10_000  # rows of a metrics file: about 1 MB
PART_SECONDS = 30.0  # a killed driver loses at most this much of the metrics


@dataclass(frozen=True)
class Output:
    """The folder of one run."""

    root: Path

    @property
    def images(self) -> Path:
        """The denoised pictures, by output key."""
        return self.root / "images"

    @property
    def metrics(self) -> Path:
        """Parquet files of metrics rows."""
        return self.root / "metrics"

    @property
    def manifest(self) -> Path:
        """What ran and how it ended."""
        return self.root / MANIFEST

    def check_free(self) -> None:
        """Raise ValueError where the folder already holds a run or cannot be one."""
        check_writable(self.root)
        held = [path.name for path in (self.manifest, self.metrics, self.images) if path.exists()]
        if held:
            raise ValueError(
                f"output {str(self.root)!r} already holds a run ({', '.join(held)}); allowed: another folder"
            )


@contextmanager
def recorded(root: Path, manifest: dict[str, Any]) -> Iterator[None]:
    """Keep a run's manifest: that it runs, then how it ended, and when; what the run adds to it meanwhile as well.

    Its status is `running`, `finished`, `interrupted` (Ctrl-C, `ray job stop`) or `broken`.
    """
    manifest |= {"status": "running", "started_at": utc_now().isoformat()}
    publish_json(root / MANIFEST, manifest)
    manifest["status"] = "broken"  # unless it ends otherwise
    try:
        yield
        manifest["status"] = "finished"
    except (KeyboardInterrupt, SystemExit):
        manifest["status"] = "interrupted"
        raise
    finally:
        manifest["finished_at"] = utc_now().isoformat()
        publish_json(root / MANIFEST, manifest)


def check_writable(root: Path) -> None:
    """Raise ValueError where an output folder cannot be made or written to."""
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"output {str(nearest)!r} is a file; allowed: a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"output {str(nearest)!r} cannot be written to; allowed: a folder that you may write to")


def check_empty(root: Path) -> None:
    """Raise ValueError where an output folder holds anything, or cannot be one."""
    check_writable(root)
    held = sorted(path.name for path in root.iterdir()) if root.exists() else []
    if held:
        some = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
        raise ValueError(f"output {str(root)!r} already holds something ({some}); allowed: a new or an empty folder")


class RowWriter:
    """Collects rows and publishes them as parquet files, each whole or not there.

    A file is due after `PART_ROWS` rows or `PART_SECONDS` seconds.
    """

    def __init__(self, folder: Path, *, schema: pa.Schema, now: float) -> None:
        self._folder, self._schema, self._since, self._parts = folder, schema, now, 0
        self._pending: list[pa.Table] = []

    def add(self, rows: pa.Table, *, now: float) -> None:
        """Take rows; publish what is due."""
        self._pending.append(rows)
        if sum(len(table) for table in self._pending) >= PART_ROWS or now - self._since >= PART_SECONDS:
            self.flush(now=now)

    def flush(self, *, now: float) -> None:
        """Publish the rows that wait."""
        self._since = now
        if not self._pending and self._parts:
            return
        table = pa.concat_tables(self._pending) if self._pending else self._schema.empty_table()
        sink = pa.BufferOutputStream()
        pq.write_table(table.cast(self._schema), sink, compression="zstd")
        publish(self._folder / f"part-{self._parts:05d}.parquet", sink.getvalue().to_pybytes())
        self._pending, self._parts = [], self._parts + 1


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

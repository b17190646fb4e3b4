"""SQL over parquet files: they are scanned in a stream, and only what a query groups or picks is held."""

import glob
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset

from raydenoise.data import storage
from raydenoise.data.place import Place, Remote

READERS = 16  # files of a bucket at once


class Rows:
    """Parquet files of one schema, as the table `rows`.

    One thread: sums of floats then come out the same on every machine and every time.
    """

    def __init__(self, folder: Place, schema: pa.Schema, *, fetch: bool = True) -> None:
        """Look at the files; a folder without any, or no folder, is a table without rows.

        Args:
            folder: of the files.
            schema: of the rows.
            fetch: for many queries: those of a bucket go to a temporary folder, which goes with this. Else each query
                reads there what it needs.

        Raises:
            ValueError: a file cannot be read, or lacks a column.
        """
        self._folder = folder
        self._connection = duckdb.connect(":memory:", config={"threads": 1, "autoinstall_known_extensions": False})
        try:
            names = [name for name in storage.names(folder) if name.endswith(".parquet")]
            if not names:
                self._connection.register("rows", schema.empty_table())
            elif isinstance(folder, Remote) and not fetch:
                paths = [f"{folder.path}/{name}" for name in names]
                there = pyarrow.dataset.dataset(paths, filesystem=folder.filesystem, format="parquet")
                self._connection.register("rows", there)
            else:
                files = self._fetch(names) if isinstance(folder, Remote) else [folder / name for name in names]
                self._connection.read_parquet([glob.escape(str(file)) for file in files]).create_view("rows")
            held = {str(entry[0]) for entry in self._connection.execute("DESCRIBE rows").fetchall()}
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error
        lacking = [name for name in schema.names if name not in held]
        if lacking:
            raise ValueError(f"{folder} lacks the columns {', '.join(lacking)}; allowed: files that raydenoise wrote")

    def _fetch(self, names: Sequence[str]) -> list[Path]:
        folder = Path(tempfile.mkdtemp(prefix="raydenoise-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

        def fetch(name: str) -> Path:
            (folder / name).write_bytes((self._folder / name).read_bytes())
            return folder / name

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(fetch, names))

    def all(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Run a query; a dict per row.

        Raises:
            ValueError: a file cannot be read.
        """
        try:
            cursor = self._connection.execute(query, values)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise self._unreadable(error) from error

    def one(self, query: str, *values: Any) -> dict[str, Any]:
        """Run a query of one row."""
        (row,) = self.all(query, *values)
        return row

    def _unreadable(self, error: Exception) -> ValueError:
        first = str(error).strip().split("\n")[0]
        return ValueError(f"{self._folder} cannot be read: {first}; allowed: whole files, as raydenoise wrote them")

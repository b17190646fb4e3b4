"""Laws of an output folder: one run each, every row once, a manifest that is always whole."""

import json
from contextlib import ExitStack, nullcontext
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydenoise.data import storage
from raydenoise.data.lease import LeaseLostError, held
from raydenoise.data.manifest import (
    PART_ROWS,
    PART_SECONDS,
    Output,
    RowWriter,
    check_empty,
    check_writable,
    recorded,
    utc_now,
    versions,
)
from raydenoise.data.place import place
from raydenoise.data.schema import METRICS, metrics_table
from raydenoise.data.storage import publish_json


def rows(first: int, count: int) -> pa.Table:
    """Rows with the keys `first`, `first` + 1, ..."""
    return metrics_table([{"key": f"{number:06d}", "status": "ok"} for number in range(first, first + count)])


def parts(output: Output) -> list[str]:
    return sorted(path.name for path in output.metrics.iterdir()) if output.metrics.exists() else []


def keys(output: Output) -> list[str]:
    """What a reader of metrics/ sees."""
    table = pq.read_table(output.metrics)
    assert table.schema.equals(METRICS)
    return sorted(table["key"].to_pylist())


def test_a_new_or_foreign_folder_can_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "out")
    (tmp_path / "notes.txt").write_text("mine")
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match=r"^output '.*out' is a file; allowed: a folder$"):
        check_writable(tmp_path / "out")


def test_a_folder_below_a_closed_one_is_refused(closed: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^output '.*' cannot be written to; allowed: a folder that you may write to$"
    ):
        check_writable(closed / "out")


def test_the_copy_of_a_jobs_checkout_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^output '.*/clean' is in the copy of --working-dir that Ray unpacked for "):
        check_writable(tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef" / "clean")
    check_writable(tmp_path / "working_dir_files" / "clean")


def test_an_empty_folder_is_empty(tmp_path: Path) -> None:
    check_empty(tmp_path)
    check_empty(tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


def test_leases_leave_a_folder_empty(tmp_path: Path, bucket: str) -> None:
    for root in (place(tmp_path / "out"), place(f"{bucket}/out")):
        with held(root, check=partial(check_empty, root)):
            check_empty(root)
        check_empty(root)
        (root / "file").write_bytes(b"")
        with pytest.raises(ValueError, match=r"already holds something \(file\)"):
            check_empty(root)


@pytest.mark.parametrize("key", ["lease", "lease/contract.pdf", "lease/000001.json.bak", "lease/a/000001.json"])
def test_what_is_no_lease_is_not_taken_for_one(tmp_path: Path, bucket: str, key: str) -> None:
    for root in (place(tmp_path / "out"), place(f"{bucket}/out")):
        storage.publish(root / key, b"")
        with pytest.raises(ValueError, match=r"already holds something \(lease\)"):
            check_empty(root)


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    for name, shown in (("b", "b"), ("a", "a, b"), (".c", ".c, a, b"), ("d", ".c, a, b, ...")):
        (tmp_path / name).mkdir()
        message = rf"^output '.*' already holds something \({shown}\); allowed: a new or an empty folder$"
        with pytest.raises(ValueError, match=message):
            check_empty(tmp_path)


def test_a_file_is_no_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match=r"^output '.*out' is a file; allowed: a folder$"):
        check_empty(tmp_path / "out")


def test_a_manifest_tells_how_a_run_ended(tmp_path: Path) -> None:
    output = Output(tmp_path / "new")
    ends: list[tuple[str, type[BaseException] | None]] = [
        ("finished", None),
        ("broken", OSError),
        ("interrupted", KeyboardInterrupt),
        ("interrupted", SystemExit),
    ]
    for status, raised in ends:
        manifest: dict[str, Any] = {"input": "grüße/日本 \n\"'\\"}
        with pytest.raises(raised) if raised else nullcontext(), recorded(output.root, manifest):
            begun = json.loads(output.manifest.read_text(encoding="utf-8"))
            manifest["more"] = {"tile": None}
            if raised:
                raise raised
        ended = json.loads(output.manifest.read_text(encoding="utf-8"))
        assert (begun["status"], ended["status"]) == ("running", status)
        assert begun["started_at"] == ended["started_at"] <= ended["finished_at"]
        assert ended["input"] == manifest["input"]
        assert ended["more"] == {"tile": None}
    assert [path.name for path in output.root.iterdir()] == ["manifest.json"]
    assert "grüße" in output.manifest.read_text(encoding="utf-8")


@pytest.mark.parametrize("raised", [None, KeyboardInterrupt])
def test_a_manifest_is_another_jobs_once_the_lease_is_lost(tmp_path: Path, raised: type[BaseException] | None) -> None:
    taken = False

    def allowed() -> None:
        if taken:
            raise LeaseLostError("another job took over")

    def end() -> None:
        if raised:
            raise raised

    run = ExitStack()
    run.enter_context(recorded(tmp_path, {"sigma": 25}, allowed=allowed))
    taken = True
    publish_json(tmp_path / "manifest.json", {"sigma": 50})
    with pytest.raises(raised or LeaseLostError), run:
        end()
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"sigma": 50}
    with pytest.raises(LeaseLostError), recorded(tmp_path, {"sigma": 25}, allowed=allowed):
        pytest.fail("it began")
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"sigma": 50}


def test_rows_wait_until_they_are_many(tmp_path: Path) -> None:
    output = Output(tmp_path)
    writer = RowWriter(output.metrics, schema=METRICS, now=0)
    writer.add(rows(0, PART_ROWS - 1), now=1)
    assert parts(output) == []
    writer.add(rows(PART_ROWS - 1, 1), now=2)
    assert parts(output) == ["part-00000.parquet"]
    assert len(keys(output)) == PART_ROWS


def test_rows_wait_until_they_are_old(tmp_path: Path) -> None:
    output = Output(tmp_path)
    writer = RowWriter(output.metrics, schema=METRICS, now=100)
    writer.add(rows(0, 1), now=100 + PART_SECONDS - 0.1)
    assert parts(output) == []
    writer.add(rows(1, 1), now=100 + PART_SECONDS)
    assert parts(output) == ["part-00000.parquet"]
    writer.add(rows(2, 1), now=100 + 2 * PART_SECONDS - 0.1)  # the clock began anew
    assert parts(output) == ["part-00000.parquet"]
    writer.add(rows(3, 1), now=100 + 2 * PART_SECONDS)
    assert parts(output) == ["part-00000.parquet", "part-00001.parquet"]
    assert keys(output) == ["000000", "000001", "000002", "000003"]


def test_a_reader_sees_every_row_once(tmp_path: Path) -> None:
    output = Output(tmp_path)
    writer = RowWriter(output.metrics, schema=METRICS, now=0)
    for step in range(20):
        writer.add(rows(step * 7, 7), now=step * 11.0)
    writer.flush(now=1000)
    writer.flush(now=1001)  # nothing is left
    assert keys(output) == [f"{number:06d}" for number in range(140)]
    assert parts(output) == [f"part-{number:05d}.parquet" for number in range(len(parts(output)))]
    assert all(len(pq.read_table(output.metrics / name)) for name in parts(output))


def test_an_empty_run_leaves_an_empty_table(tmp_path: Path) -> None:
    output = Output(tmp_path)
    writer = RowWriter(output.metrics, schema=METRICS, now=0)
    writer.flush(now=1)
    writer.flush(now=2)
    assert parts(output) == ["part-00000.parquet"]
    assert keys(output) == []


def test_rows_outlive_a_failed_write(tmp_path: Path) -> None:
    output = Output(tmp_path)
    writer = RowWriter(output.metrics, schema=METRICS, now=0)
    output.metrics.write_text("in the way")
    writer.add(rows(0, 3), now=1)
    with pytest.raises(OSError, match="metrics"):
        writer.flush(now=2)
    output.metrics.unlink()
    writer.flush(now=3)
    assert keys(output) == ["000000", "000001", "000002"]


def test_versions_name_what_decides_the_pixels() -> None:
    found = versions()
    assert {"python", "raydenoise", "ray", "tensorflow", "keras", "numpy"} <= set(found)
    assert all(value[0].isdigit() for value in found.values())


def test_time_is_utc() -> None:
    assert utc_now().tzinfo is UTC

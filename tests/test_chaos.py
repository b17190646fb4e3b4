"""The chaos benchmark counts what is wrong, in a run as in the calm one that it is held against."""

from pathlib import Path

import pyarrow as pa
import pytest

from raydenoise.data import storage
from tests.benchmarks.chaos import compare

WANTED = {"0/a.png": "ok", "1/b.png": "ok", "1/broken.png": "error"}
NOTHING = dict.fromkeys(("duplicates", "missing", "foreign", "differing", "left_over"), 0)


def written(root: Path, rows: dict[str, str], data: bytes = b"picture") -> Path:
    """A run with these rows, and with a picture for each that is ok."""
    table = pa.table({"key": list(rows), "status": list(rows.values())})
    storage.publish_table(root / "metrics" / "part-00001.parquet", table)
    for key, status in rows.items():
        if status == "ok":
            storage.publish(root / "images" / key, data)
    return root


def without(*keys: str) -> dict[str, str]:
    return {key: status for key, status in WANTED.items() if key not in keys}


def test_nothing_is_wrong_with_two_whole_runs(tmp_path: Path) -> None:
    found = compare(written(tmp_path / "calm", WANTED), written(tmp_path / "out", WANTED), wanted=WANTED)
    assert found == {"rows": 3, **NOTHING}


@pytest.mark.parametrize(("key", "missing"), [("1/b.png", 4), ("1/broken.png", 2)])
def test_what_both_runs_lost_is_missing(key: str, missing: int, tmp_path: Path) -> None:
    runs = [written(tmp_path / name, without(key)) for name in ("calm", "out")]
    assert compare(*runs, wanted=WANTED) == {"rows": 2, **NOTHING, "missing": missing}


def test_a_row_that_both_runs_have_wrong_differs(tmp_path: Path) -> None:
    wrong = {**WANTED, "1/b.png": "error"}
    runs = [written(tmp_path / name, wrong) for name in ("calm", "out")]
    assert compare(*runs, wanted=WANTED) == {"rows": 3, **NOTHING, "missing": 2, "differing": 2}


def test_what_is_too_much_other_or_left_over_is_counted(tmp_path: Path) -> None:
    calm = written(tmp_path / "calm", WANTED)
    out = written(tmp_path / "out", {**WANTED, "c.png": "ok"}, data=b"other")
    storage.publish_table(out / "metrics" / "part-00002.parquet", pa.table({"key": ["c.png"], "status": ["ok"]}))
    storage.publish(out / ".partial" / "x", b"")
    counts = {"duplicates": 1, "missing": 0, "foreign": 2, "differing": 2, "left_over": 1}
    assert compare(calm, out, wanted=WANTED) == {"rows": 5, **counts}

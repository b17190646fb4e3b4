"""Laws of shards: what is written is read, the same patches make the same bytes, and every doubt has its message."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydenoise.data.schema import PATCHES, SPLITS
from raydenoise.data.shards import (
    GROUP_BYTES,
    HEAD,
    KIND,
    MANIFEST,
    VERSION,
    Patch,
    ShardFile,
    ShardSet,
    read_group,
    read_manifest,
    write_shard,
)
from raydenoise.data.storage import publish_json


def patch(number: int, *, side: int = 8, channels: int = 3, dtype: str = "uint8", paired: bool = False) -> Patch:
    rng = np.random.default_rng(number)
    clean, noisy = rng.integers(0, np.iinfo(dtype).max, (2, side, side, channels), dtype, endpoint=True)
    return Patch(f"/in/{number}.png", f"ü{number}.png", number, 2 * number, clean, noisy if paired else None)


def write_set(root: Path, *, rows: int = 3, **more: Any) -> dict[str, Any]:
    """Make a folder as `raydenoise prepare` does; the test split is empty. Returns the manifest."""
    splits: dict[str, Any] = {split: {"images": 0, "patches": 0, "files": []} for split in SPLITS}
    for split in SPLITS[:2]:
        name = f"{split}/part-00000.parquet"
        file = write_shard(root / name, map(patch, range(rows)), split=split)
        splits[split]["files"].append({"name": name, "rows": file.rows, "bytes": file.bytes})
    facts = {"patch": 8, "paired": False, "seed": 5, "dtypes": ["uint8"], "channels": [3]}
    content = {**HEAD, "status": "finished", **facts, "splits": splits, **more}
    publish_json(root / MANIFEST, content)
    return content


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, paired: bool) -> None:
    written = [patch(number, channels=1 + 2 * (number % 2), dtype=dtype, paired=paired) for number in range(5)]
    file = write_shard(tmp_path / "a.parquet", written, split="train")
    assert file == ShardFile(tmp_path / "a.parquet", 5, (tmp_path / "a.parquet").stat().st_size, (5,))
    for before, after in zip(written, read_group(file, 0), strict=True):
        assert (before.uri, before.key, before.y, before.x) == (after.uri, after.key, after.y, after.x)
        np.testing.assert_array_equal(before.clean, after.clean, strict=True)
        if paired:
            np.testing.assert_array_equal(before.noisy, after.noisy, strict=True)
        else:
            assert after.noisy is None


def test_the_rows_are_those_of_the_schema(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [replace(patch(7, dtype="uint16"), x=3)], split="validation")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.equals(PATCHES)
    pixels = patch(7, dtype="uint16").clean.astype("<u2").tobytes()
    place = {"uri": "/in/7.png", "key": "ü7.png", "y": 7, "x": 3, "height": 8, "width": 8, "channels": 3}
    kind = {"dtype": "uint16", "split": "validation"}
    assert table.to_pylist() == [{**place, **kind, "pixels": pixels, "noisy": None}]


@pytest.mark.parametrize(("side", "channels", "rows"), [(128, 3, 20), (128, 1, 61), (256, 3, 5), (600, 3, 1)])
def test_a_row_group_is_at_most_a_megabyte_or_one_row(tmp_path: Path, side: int, channels: int, rows: int) -> None:
    one = patch(0, side=side, channels=channels)
    assert rows == max(1, GROUP_BYTES // one.nbytes)
    file = write_shard(tmp_path / "a.parquet", [one] * (rows * 2 + 1), split="train")
    assert file.groups == (rows, rows, 1)
    assert len(read_group(file, 2)) == 1


def test_noisy_pixels_count_in_a_row_group(tmp_path: Path) -> None:
    one = patch(0, side=128, paired=True)
    assert write_shard(tmp_path / "a.parquet", [one] * 11, split="train").groups == (10, 1)


def test_the_same_patches_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, (patch(number) for number in range(9)), split="train")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_shard(tmp_path / "c", (patch(8 - number) for number in range(9)), split="train")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Any:
        yield patch(0)
        raise OSError("the picture vanished")

    with pytest.raises(OSError, match="vanished"):
        write_shard(tmp_path / "train" / "a.parquet", broken(), split="train")
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("clean", "noisy", "message"),
    [
        (np.zeros((4, 5), np.uint8), None, r"clean is uint8 \(4, 5\); allowed: uint8 or uint16 of shape"),
        (np.zeros((4, 5, 2), np.uint8), None, r"clean is uint8 \(4, 5, 2\); allowed"),
        (np.zeros((4, 5, 3), np.float32), None, r"clean is float32 \(4, 5, 3\); allowed"),
        (np.zeros((0, 5, 3), np.uint8), None, r"clean is uint8 \(0, 5, 3\); allowed"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 1), np.uint8), r"noisy is uint8 \(4, 5, 1\); allowed: uint8"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.uint16), r"noisy is uint16 \(4, 5, 3\); allowed: uint8"),
    ],
)
def test_other_arrays_are_refused(clean: Any, noisy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patch("uri", "key", 0, 0, clean, noisy)


def test_a_set_is_read(tmp_path: Path) -> None:
    write_set(tmp_path)
    found = read_manifest(str(tmp_path))
    assert found == ShardSet(tmp_path, 8, False, ("uint8",), (3,), 5, found.files)
    assert [found.rows(split) for split in SPLITS] == [3, 3, 0]
    assert found.files["train"] == (
        ShardFile(tmp_path / "train" / "part-00000.parquet", 3, found.files["train"][0].bytes, (3,)),
    )
    assert found.files["test"] == ()
    assert json.loads((tmp_path / "manifest.json").read_text())["kind"] == KIND


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        read_manifest(folder)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("gone", "file"):
        refused(
            tmp_path / name,
            f"shards '{tmp_path}/{name}' is no folder; allowed: the output folder of raydenoise prepare",
        )


def test_no_manifest_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, f"shards '{tmp_path}' holds no manifest.json; allowed: the output folder of raydenoise prepare")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", "(None, None)"),
        ("[]", "('list',)"),
        ('{"kind": "raydenoise shards", "version": 2}', f"('{KIND}', 2)"),
        ('{"status": "finished", "model": {}}', "(None, None)"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    refused(tmp_path, f"{tmp_path}/manifest.json is of {found}; allowed: ('{KIND}', {VERSION})")


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe"])
def test_a_broken_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    refused(tmp_path, f"{tmp_path}/manifest.json cannot be read: ")


@pytest.mark.parametrize("status", ["running", "broken", "interrupted", None])
def test_an_unfinished_run_is_refused(tmp_path: Path, status: str | None) -> None:
    write_set(tmp_path, status=status)
    refused(tmp_path, f"shards '{tmp_path}' are of a run that is {status!r}; allowed: a finished one")


@pytest.mark.parametrize("lost", ["patch", "splits", "dtypes"])
def test_a_garbled_manifest_is_refused(tmp_path: Path, lost: str) -> None:
    content = write_set(tmp_path)
    publish_json(tmp_path / MANIFEST, {name: value for name, value in content.items() if name != lost})
    refused(tmp_path, f"{tmp_path}/manifest.json lacks or garbles '{lost}'; run raydenoise prepare again")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "validation" / "part-00000.parquet"
    path.unlink()
    refused(tmp_path, f"shard {path} is missing; run raydenoise prepare again")


@pytest.mark.parametrize("data", [b"", b"no parquet at all", None])
def test_an_unreadable_file_is_refused(tmp_path: Path, data: bytes | None) -> None:
    write_set(tmp_path)
    path = tmp_path / "train" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-50] if data is None else data)
    refused(tmp_path, f"shard {path} cannot be read: ")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "train" / "part-00000.parquet"
    pq.write_table(pa.table({"pixels": [b""]}), path)
    refused(tmp_path, f"shard {path} has the columns ['pixels']; allowed: ['uri', 'key', 'y'")


def test_another_file_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "train" / "part-00000.parquet"
    write_shard(path, [patch(0)], split="train")
    refused(tmp_path, f"shard {path} has 1 rows in {path.stat().st_size} bytes; the manifest says 3 in ")

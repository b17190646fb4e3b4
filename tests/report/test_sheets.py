"""Laws of the sheets: patches from all over the shards, in their own colours, pairs side by side."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from raydenoise.data.shards import Patch, ShardFile, write_shard
from raydenoise.report.sheets import PATCH_CELL, PATCH_GAP, PATCHES_SHOWN, patch_sheet


def patch(level: int, *, side: int = 20, channels: int = 3, dtype: str = "uint8", paired: bool = False) -> Patch:
    """All of one level; its noisy one of the next."""
    clean = np.full((side, side, channels), level, dtype)
    return Patch("uri", f"{level}.png", 0, 0, clean, clean + np.array(1, dtype) if paired else None)


def sheet(folder: Path, files: list[ShardFile]) -> np.ndarray:
    patch_sheet(files, path=folder / "sheet.png")
    with PIL.Image.open(folder / "sheet.png") as picture:
        return np.asarray(picture)


def levels(drawn: np.ndarray, *, side: int = 20) -> list[int]:
    """The level at the middle of each cell, row by row; paper is white."""
    middles = drawn[PATCH_GAP + side // 2 :: side + PATCH_GAP, PATCH_GAP + side // 2 :: side + PATCH_GAP, 0]
    return [int(level) for level in middles.ravel() if level != 255]


def test_a_few_patches_are_all_drawn(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a", [patch(level) for level in (10, 20, 30)], split="train")
    drawn = sheet(tmp_path, [file])
    assert drawn.shape == (2 * PATCH_GAP + 20, 4 * PATCH_GAP + 60, 3)
    assert levels(drawn) == [10, 20, 30]


def test_many_are_drawn_from_all_over_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydenoise.data.shards.GROUP_BYTES", 9_000)
    first = write_shard(tmp_path / "a", [patch(level) for level in range(150)], split="train")
    second = write_shard(tmp_path / "b", [patch(level) for level in range(150, 200)], split="train")
    assert len(first.groups) > 10
    found = levels(sheet(tmp_path, [first, second]))
    assert len(found) == PATCHES_SHOWN
    assert (found[0], found[-1]) == (0, 199)
    assert set(np.diff(found)) == {4, 5}


def test_a_pair_stands_side_by_side(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a", [patch(100, paired=True)], split="test")
    drawn = sheet(tmp_path, [file])
    cell = drawn[PATCH_GAP:-PATCH_GAP, PATCH_GAP:-PATCH_GAP]
    assert cell.shape == (20, 40, 3)
    assert (cell[:, :20] == 101).all()
    assert (cell[:, 20:] == 100).all()


def test_grey_and_16_bits_are_drawn(tmp_path: Path) -> None:
    patches = [patch(50, channels=1), patch(60 * 256, dtype="uint16"), patch(70 * 256, channels=1, dtype="uint16")]
    assert levels(sheet(tmp_path, [write_shard(tmp_path / "a", patches, split="train")])) == [50, 60, 70]


def test_large_patches_are_shrunk(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a", [patch(9, side=2 * PATCH_CELL)], split="train")
    assert sheet(tmp_path, [file]).shape == (PATCH_CELL + 2 * PATCH_GAP, PATCH_CELL + 2 * PATCH_GAP, 3)


def test_no_patch_is_no_sheet(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a", [], split="train")
    with pytest.raises(ValueError, match=r"^the shards \['.*a'\] hold no patch to show$"):
        patch_sheet([file], path=tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()

"""Laws of cutting: both passes choose the same patches, by seed and key alone."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile

from raydenoise.config import PrepareConfig
from raydenoise.core.image import decode
from raydenoise.data.layout import Piece, Shard
from raydenoise.data.shards import Patch, read_group, read_shard
from raydenoise.pipelines.cutter import Cutter, UnusableError


@pytest.fixture
def picture(tmp_path: Path) -> dict[str, Any]:
    """A row of `schema.PICTURES`."""
    pixels = np.random.default_rng(0).integers(0, 65536, (90, 120, 3), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    return {"uri": str(tmp_path / "a.tif"), "key": "a.tif", "noisy_uri": None}


def cutter(**options: Any) -> Cutter:
    return Cutter(PrepareConfig(input=("in",), output="out", **{"patch": 16, **options}))


def all_of(made: Cutter, picture: dict[str, Any], *, key: str = "a.tif") -> list[Patch]:
    row = made.survey({**picture, "key": key})
    assert row["status"] == "ok", row
    return made.cut(Piece(picture["uri"], key, picture["noisy_uri"], row["digest"], 0, row["patches"]))


def places(found: list[Patch]) -> list[tuple[int, int]]:
    return [(patch.y, patch.x) for patch in found]


@pytest.mark.parametrize("options", [{}, {"stride": 7}, {"count": 12}, {"count": 12, "scale": (0.4, 0.9)}])
def test_the_second_pass_cuts_what_the_first_counted(picture: dict[str, Any], options: dict[str, Any]) -> None:
    made = cutter(**options)
    row = made.survey(picture)
    assert (row["channels"], row["dtype"], row["patch_bytes"]) == (3, "uint16", 16 * 16 * 3 * 2)
    whole = all_of(made, picture)
    assert len(whole) == row["patches"] > 5
    parts = [
        made.cut(Piece(picture["uri"], "a.tif", None, row["digest"], *ends)) for ends in ((0, 5), (5, row["patches"]))
    ]
    assert places(parts[0] + parts[1]) == places(whole)
    assert all(patch.clean.base is None for patch in whole), "no view that keeps the picture in memory"


def test_choices_are_functions_of_seed_and_key(picture: dict[str, Any]) -> None:
    random = cutter(count=12, scale=(0.5, 0.9), seed=1)
    first = all_of(random, picture)
    again = all_of(random, picture)
    assert places(first) == places(again)
    assert all((a.clean == b.clean).all() for a, b in zip(first, again, strict=True))
    assert places(all_of(random, picture, key="b.tif")) != places(first)
    assert places(all_of(cutter(count=12, scale=(0.5, 0.9), seed=2), picture)) != places(first)


def test_patches_lie_in_the_shrunk_picture(picture: dict[str, Any]) -> None:
    found = all_of(cutter(scale=(0.5, 0.5)), picture)
    assert places(found) == [(y, x) for y in (0, 16) for x in (0, 16, 32)]  # of 45 x 60 pixels
    assert found[0].clean.dtype == np.uint16
    whole = decode(Path(picture["uri"]).read_bytes()).pixels
    assert abs(float(found[0].clean.mean()) - float(whole[:32, :32].mean())) < 1_000


def test_a_changed_file_is_not_cut(picture: dict[str, Any]) -> None:
    made = cutter()
    row = made.survey(picture)
    path = Path(picture["uri"])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UnusableError, match=r"^the file changed while the job ran$"):
        made.cut(Piece(picture["uri"], "a.tif", None, row["digest"], 0, 1))


def test_too_small_when_shrunk_is_said(picture: dict[str, Any]) -> None:
    row = cutter(patch=64, scale=(0.5, 0.5)).survey(picture)
    assert (row["status"], row["error_message"]) == ("skipped", "it has 60x45 pixels when shrunk; a patch 64")


def test_a_picture_above_the_limit_is_an_error(picture: dict[str, Any]) -> None:
    row = cutter(max_pixels=100).survey(picture)
    assert (row["status"], row["error_type"]) == ("error", "too_large")


def test_another_depth_is_no_pair(picture: dict[str, Any], tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(tmp_path / "noisy.png")
    row = cutter().survey({**picture, "noisy_uri": str(tmp_path / "noisy.png")})
    assert (row["status"], row["error_type"]) == ("error", "unlike_pair")
    said = "the clean picture is 120x90x3 uint16, the noisy one 120x90x3 uint8; allowed: the same"
    assert row["error_message"] == said


def test_a_shard_holds_its_patches_in_random_order(picture: dict[str, Any], tmp_path: Path) -> None:
    """A row group then holds patches from all over the shard."""
    made = cutter()
    row = made.survey(picture)
    piece = Piece(picture["uri"], "a.tif", None, row["digest"], 0, row["patches"])
    shard = Shard("train/part-00000.parquet", "train", (piece,))
    written = made.write(shard, tmp_path)
    file = read_shard(tmp_path / shard.name)
    assert (written["rows"], written["bytes"], written["failures"]) == (file.rows, file.bytes, [])
    found = places(read_group(file, 0))
    assert sorted(found) == places(all_of(made, picture))
    assert found != sorted(found)

"""The job on a real local Ray with real files: every row is a window of its picture, whatever the number of workers."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import ray
import tifffile

from raydenoise.config import PrepareConfig
from raydenoise.core.image import decode
from raydenoise.data import layout, storage
from raydenoise.data.lease import LeaseLostError, check_free, held
from raydenoise.data.schema import FAILURES, PATCHES, SPLITS
from raydenoise.data.shards import Patch, ShardSet, read_group, read_manifest
from raydenoise.pipelines import prepare

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Data warns of its own defaults

PATCH = 32
SMALL_SHARDS = 60_000  # bytes: several files of few small patches


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """One Ray with three CPUs for the module: each start takes 10 s."""
    ray.init(
        address="local", num_cpus=3, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the job on the module's Ray, with shards as small as the pictures, into tmp_path/out."""
    monkeypatch.setattr(prepare, "session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(layout, "SHARD_BYTES", SMALL_SHARDS)

    def run(*inputs: Path, **options: Any) -> dict[str, Any]:
        defaults = {"output": str(tmp_path / "out"), "patch": PATCH, "quiet": True}
        return prepare.run(PrepareConfig(input=tuple(map(str, inputs)), **{**defaults, **options}))

    return run


def textured(height: int, width: int, *, seed: int, channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    """(H, W, C) of random values."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Twenty good pictures of all kinds beside bad, small and flat ones."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for index in range(14):
        PIL.Image.fromarray(textured(65 + index, 97, seed=index)).save(folder / f"{index}.png")
    for index, name in enumerate(("a.jpg", "b.webp", "c.bmp")):
        PIL.Image.fromarray(textured(64, 70, seed=20 + index)).save(folder / "sub" / name)
    PIL.Image.fromarray(textured(40, 70, seed=30)[..., 0]).save(folder / "grey.png")
    PIL.Image.fromarray(textured(40, 70, seed=31, channels=4)).save(folder / "alpha.png")
    tifffile.imwrite(folder / "deep.tif", textured(40, 70, seed=32, dtype="uint16"), photometric="rgb")
    PIL.Image.fromarray(textured(31, 200, seed=33)).save(folder / "small.png")
    PIL.Image.fromarray(np.full((64, 64, 3), (9, 200, 7), np.uint8)).save(folder / "flat.png")
    (folder / "text.jpg").write_bytes(b"no picture at all")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:300])
    return folder


GOOD, BAD, WITHOUT = 20, {"text.jpg", "cut.png"}, {"small.png", "flat.png"}


def patches(shards: ShardSet) -> dict[str, list[Patch]]:
    return {
        split: [
            patch
            for file in shards.files[split]
            for group in range(len(file.groups))
            for patch in read_group(file, group)
        ]
        for split in SPLITS
    }


def grid(height: int, width: int, *, stride: int = PATCH) -> set[tuple[int, int]]:
    return {(y, x) for y in range(0, height - PATCH + 1, stride) for x in range(0, width - PATCH + 1, stride)}


def reports(output: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(output / "failures.parquet")
    assert table.schema.equals(FAILURES)
    return {row["key"]: row for row in table.to_pylist()}


def test_every_row_is_a_window_of_its_picture(run: Any, collection: Path, tmp_path: Path) -> None:
    run(collection, split=(0.6, 0.2, 0.2), seed=7)

    shards = read_manifest(tmp_path / "out")
    assert (shards.patch, shards.paired, shards.seed) == (PATCH, False, 7)
    assert (shards.dtypes, shards.channels) == (("uint16", "uint8"), (1, 3))
    assert len(shards.files["train"]) > 1
    found = patches(shards)
    keys = {split: {patch.key for patch in found[split]} for split in SPLITS}
    assert [len(keys[split]) for split in SPLITS] == [12, 4, 4], "split by picture, exactly"
    assert len(keys["train"] | keys["validation"] | keys["test"]) == GOOD
    for key in set().union(*keys.values()):
        pixels = decode((collection / key).read_bytes()).pixels
        own = [patch for split in SPLITS for patch in found[split] if patch.key == key]
        assert {(patch.y, patch.x) for patch in own} == grid(*pixels.shape[:2])
        assert len(own) == len(grid(*pixels.shape[:2]))
        for patch in own:
            window = pixels[patch.y : patch.y + PATCH, patch.x : patch.x + PATCH]
            np.testing.assert_array_equal(patch.clean, window, strict=True)
            assert (patch.uri, patch.noisy) == (str(collection / key), None)
    for split in SPLITS:
        for file in shards.files[split]:
            table = pq.read_table(file.path)
            assert table.schema.equals(PATCHES)
            assert set(table["split"].to_pylist()) == {split}


def test_what_was_not_used_is_reported_and_counted(run: Any, collection: Path, tmp_path: Path) -> None:
    summary = run(collection)

    assert (summary["images"], summary["used"], summary["skipped"], summary["failed"]) == (24, GOOD, 2, 2)
    assert {failure["key"] for failure in summary["first_failures"]} == BAD
    rows = reports(tmp_path / "out")
    assert {key for key, row in rows.items() if row["status"] == "error"} == BAD
    assert {key for key, row in rows.items() if row["status"] == "skipped"} == WITHOUT
    assert rows["text.jpg"]["error_type"] == "not_an_image"
    assert rows["small.png"]["error_message"] == "it has 200x31 pixels; a patch 32"
    assert rows["flat.png"]["error_message"].startswith("each of its patches deviates less than 1 grey levels")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["images"] == {"listed": 24, "failed": 2, "skipped": 2}
    assert {Path(failure["uri"]).name for failure in manifest["failures"]} == BAD
    assert {Path(failure["uri"]).name for failure in manifest["skipped"]} == WITHOUT
    assert manifest["config"]["patch"] == PATCH
    assert manifest["splits"]["train"]["images"] == summary["splits"]["train"]["images"] == 18
    assert sum(split["patches"] for split in manifest["splits"].values()) == summary["patches"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "failures.parquet",
        "lease",
        "manifest.json",
        "test",
        "test.png",
        "train",
        "train.png",
        "validation",
    ]
    assert not list((tmp_path / "out").rglob("*.partial"))


ONE_CPU = """
import sys
import raydenoise.data.layout as layout
from raydenoise import cli
from raydenoise.pipelines import prepare
layout.SHARD_BYTES = {bytes}
prepare.cores = lambda: 1
sys.exit(cli.main(["prepare", *{argv!r}]))
"""


def test_one_worker_and_three_write_the_same_bytes(run: Any, collection: Path, tmp_path: Path) -> None:
    """The command with one CPU beside the module's three: count, scale and seed are all at work."""
    argv = [str(collection), "--output", str(tmp_path / "one"), "--patch", PATCH, "--count", 9, "--scale", "0.85:1"]
    script = ONE_CPU.format(bytes=SMALL_SHARDS, argv=[str(word) for word in [*argv, "--seed", 3]])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    run(collection, count=9, scale=(0.85, 1.0), seed=3)

    assert done.returncode == 3, done.stderr
    names = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.p*"))
    assert len([name for name in names if name.parent.name == "train"]) > 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    listed = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "out")]
    for part in ("splits", "images", "failures", "skipped", "dtypes"):
        assert listed[0][part] == listed[1][part]
    assert "surveying 24 pictures: starting Ray" in done.stderr
    assert "24: 20 used, 2 without a patch, 2 failed" in done.stdout
    assert "failed: cut.png: " in done.stdout
    assert "train" in done.stdout
    run(collection, count=9, scale=(0.85, 1.0), seed=4, output=str(tmp_path / "other"))
    first = Path("train") / "part-00000.parquet"
    assert (tmp_path / "other" / first).read_bytes() != (tmp_path / "out" / first).read_bytes()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """tmp_path/noisy and tmp_path/clean: a noisy pixel is its clean one and 7."""
    for index, name in enumerate(("a.png", "sub/b.png", "c.png", "d.png", "unlike.png", "alone.png")):
        clean = 80 + textured(64, 96, seed=index) % 40
        for kind, picture in (("clean", clean), ("noisy", clean + np.uint8(7))):
            path = tmp_path / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(picture).save(path)
    (tmp_path / "clean" / "c.png").rename(tmp_path / "clean" / "c.PNG.bmp")
    PIL.Image.open(tmp_path / "clean" / "d.png").save(tmp_path / "clean" / "d.tif")
    (tmp_path / "clean" / "d.png").unlink()
    PIL.Image.fromarray(textured(64, 95, seed=9)).save(tmp_path / "clean" / "unlike.png")
    (tmp_path / "clean" / "alone.png").unlink()
    return tmp_path


@pytest.mark.parametrize("scale", [None, (0.6, 0.9)])
def test_noisy_patches_lie_where_their_clean_ones_do(run: Any, pairs: Path, scale: Any) -> None:
    summary = run(noisy=str(pairs / "noisy"), clean=str(pairs / "clean"), scale=scale, split=(0.5, 0.5, 0))

    shards = read_manifest(pairs / "out")
    assert shards.paired
    assert shards.files["test"] == ()
    assert not (pairs / "out" / "test.png").exists()
    rows = reports(pairs / "out")
    assert {key: row["error_type"] for key, row in rows.items()} == {
        "alone.png": "unpaired",
        "c.png": "unpaired",
        "unlike.png": "unlike_pair",
    }
    assert rows["alone.png"]["error_message"] == f"no picture of this path below {pairs / 'clean'}"
    assert rows["alone.png"]["uri"] == str(pairs / "noisy" / "alone.png")
    said = "the clean picture is 95x64x3 uint8, the noisy one 96x64x3 uint8; allowed: the same"
    assert rows["unlike.png"]["error_message"] == said
    assert summary["failed"] == 3
    found = [patch for members in patches(shards).values() for patch in members]
    assert {patch.key for patch in found} == {"a.png", "sub/b.png", "d.png"}
    assert {patch.uri for patch in found if patch.key == "d.png"} == {str(pairs / "clean" / "d.tif")}
    for patch in found:
        difference = patch.noisy.astype(int) - patch.clean
        assert np.abs(difference - 7).max() <= (0 if scale is None else 1)  # resampling rounds


def test_a_giant_picture_is_spread_over_shards(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PIECE_BYTES", 10_000)
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(textured(300, 333, seed=0)).save(tmp_path / "in" / "giant.png")
    summary = run(tmp_path / "in", stride=20)
    shards = read_manifest(tmp_path / "out")
    assert len(shards.files["train"]) > 5
    found = patches(shards)["train"]
    assert {(patch.y, patch.x) for patch in found} == grid(300, 333, stride=20)
    assert len(found) == len(grid(300, 333, stride=20)) == summary["patches"]
    assert (summary["images"], summary["used"]) == (1, 1)


def test_several_inputs_are_told_apart(run: Any, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        PIL.Image.fromarray(textured(40, 50, seed=len(folder))).save(tmp_path / folder / "a.png")
    run(tmp_path / "one", tmp_path / "two", tmp_path / "two" / "a.png", limit=5)
    found = [patch.key for members in patches(read_manifest(tmp_path / "out")).values() for patch in members]
    assert sorted(found) == ["one/a.png", "two/a.png"]


def between_passes(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something after the survey, before shards are written."""

    def lay_out(*arguments: Any, **options: Any) -> Any:
        action()
        return layout.lay_out(*arguments, **options)

    monkeypatch.setattr(prepare, "lay_out", lay_out)


def test_one_job_at_a_time_writes_a_folder(
    run: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, written = tmp_path / "out", "is being written by process"
    with held(output), pytest.raises(ValueError, match=written):
        run(collection)

    def look() -> None:
        with pytest.raises(ValueError, match=written):
            check_free(output)

    between_passes(monkeypatch, look)
    run(collection)
    check_free(output)

    def come_and_go() -> None:
        with held(tmp_path / "other"):
            (tmp_path / "other" / "manifest.json").write_text("another job's")

    listed = prepare.list_pictures
    monkeypatch.setattr(prepare, "list_pictures", lambda config: (listed(config), come_and_go())[0])
    with pytest.raises(
        ValueError, match=r"already holds something \(manifest\.json\); allowed: a new or an empty folder"
    ):
        run(collection, output=str(tmp_path / "other"))
    assert (tmp_path / "other" / "manifest.json").read_text() == "another job's"


def test_a_job_that_another_one_took_over_leaves_its_manifest(
    run: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between_passes(monkeypatch, lambda: storage.create(tmp_path / "out" / "lease" / "000002.json", b"{}"))
    with pytest.raises(LeaseLostError, match="took over"):
        run(collection)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "running"


def test_what_changes_or_vanishes_in_between_is_reported(
    run: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddle() -> None:
        PIL.Image.fromarray(textured(66, 97, seed=99)).save(collection / "1.png")
        (collection / "2.png").unlink()

    between_passes(monkeypatch, meddle)
    summary = run(collection)

    rows = reports(tmp_path / "out")
    assert {key for key, row in rows.items() if row["status"] == "error"} == {*BAD, "1.png", "2.png"}
    assert rows["1.png"]["error_message"] == "the file changed while the job ran"
    assert rows["2.png"]["error_type"] == "FileNotFoundError"
    assert (summary["failed"], summary["used"]) == (4, GOOD - 2)
    found = patches(read_manifest(tmp_path / "out"))
    assert len({patch.key for members in found.values() for patch in members}) == GOOD - 2
    assert all((collection / patch.key).exists() for members in found.values() for patch in members)


def test_a_job_whose_pictures_all_vanish_breaks(
    run: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between_passes(monkeypatch, lambda: collection.rename(tmp_path / "elsewhere"))
    with pytest.raises(RuntimeError, match=r"^no patch was written: every picture changed or vanished while the job"):
        run(collection)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    with pytest.raises(ValueError, match=r"^shards '.*out' are of a run that is 'broken'"):
        read_manifest(tmp_path / "out")


def test_an_output_that_cannot_be_written_breaks_the_job(
    run: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block() -> None:
        (tmp_path / "out" / "train").write_text("in the way")

    between_passes(monkeypatch, block)
    with pytest.raises(Exception, match=r"FileExistsError|NotADirectoryError"):
        run(collection)
    with pytest.raises(ValueError, match=r"^shards '.*out' are of a run that is 'broken'"):
        read_manifest(tmp_path / "out")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_job_says_so(
    run: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def stopped(*_: Any) -> None:
        raise stop

    monkeypatch.setattr(prepare, "_write", stopped)
    with pytest.raises(stop):
        run(collection)
    with pytest.raises(
        ValueError, match=r"^shards '.*out' are of a run that is 'interrupted'; allowed: a finished one"
    ):
        read_manifest(tmp_path / "out")


def test_no_patch_at_all_is_said_and_nothing_is_written(run: Any, collection: Path, tmp_path: Path) -> None:
    said = (
        r"^no patch in 24 pictures: 2 failed, 22 have none, such as cut\.png: .*; "
        r"allowed: at least one picture with a patch$"
    )
    with pytest.raises(ValueError, match=said):
        run(collection, patch=500)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lease"]

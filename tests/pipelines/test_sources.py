"""What a job reads: never what it wrote, and under names that no other choice of pictures changes."""

from pathlib import Path
from typing import Any

import boto3
import pytest

from raydenoise.config import DenoiseConfig
from raydenoise.data.manifest import Output
from raydenoise.data.place import place
from raydenoise.pipelines.sources import check_apart, list_pictures, resolved


def config(root: Path, **options: Any) -> DenoiseConfig:
    return DenoiseConfig(**{"input": str(root), "output": str(root / "clean"), **options})


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def keys(config: DenoiseConfig) -> list[str]:
    return list_pictures(config).table["key"].to_pylist()


WRITTEN = (
    "clean/images/a.png",
    "clean/metrics/part-00001-00000.parquet",
    "clean/lease/000001.json",
    "clean/manifest.json",
)


def test_an_output_below_the_input_is_not_read(tmp_path: Path) -> None:
    files(tmp_path, "a.png", "sub/b.png", "cleaner/c.png", *WRITTEN)
    assert keys(config(tmp_path)) == ["a.png", "cleaner/c.png", "sub/b.png"]
    assert keys(config(tmp_path, input=f"{tmp_path}/**/*.png")) == ["a.png", "cleaner/c.png", "sub/b.png"]
    (tmp_path.parent / "link").symlink_to(tmp_path)
    assert keys(config(tmp_path, input=str(tmp_path.parent / "link"))) == ["a.png", "cleaner/c.png", "sub/b.png"]


def test_nor_where_it_is_the_input(tmp_path: Path) -> None:
    files(tmp_path, "clean/mine.png", "clean/raw/b.png", *WRITTEN)
    assert keys(config(tmp_path, input=str(tmp_path / "clean"))) == ["mine.png", "raw/b.png"]
    files(tmp_path, "clean/report/hers.png")  # no report was written
    assert keys(config(tmp_path, input=str(tmp_path / "clean"))) == ["mine.png", "raw/b.png", "report/hers.png"]
    files(tmp_path, "clean/report.html", "clean/report/gains.png")
    assert keys(config(tmp_path, input=str(tmp_path / "clean"))) == ["mine.png", "raw/b.png"]
    (tmp_path / "link").symlink_to("clean")
    for name in ("link", "clean/raw/.."):
        assert keys(config(tmp_path, input=str(tmp_path / name))) == ["mine.png", "raw/b.png"]
        assert keys(config(tmp_path, input=str(tmp_path / "clean"), output=str(tmp_path / name)))[0] == "mine.png"
    files(tmp_path, "other/images/a.png")
    with pytest.raises(ValueError, match="holds no files but those of the output"):
        list_pictures(config(tmp_path, input=str(tmp_path / "other"), output=str(tmp_path / "other")))


def test_an_output_below_the_input_in_a_bucket_is_not_read(bucket: str) -> None:
    for name in ("in/a.png", "in/cleaner/c.png", *(f"in/{written}" for written in WRITTEN)):
        (place(bucket) / name).write_bytes(b"x")
    assert keys(DenoiseConfig(input=f"{bucket}/in", output=f"{bucket}/in/clean")) == ["a.png", "cleaner/c.png"]


def test_an_object_with_an_empty_part_is_one_of_the_others(bucket: str) -> None:
    for name in ("in/a.png", "in/b//d/e.png"):
        boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=b"x")
    found = list_pictures(DenoiseConfig(input=f"{bucket}/in", output=f"{bucket}/out"))
    assert found.table["key"].to_pylist() == ["a.png", "b//d/e.png"]


@pytest.mark.parametrize("name", ["in/x [1]", "in/x*"])
def test_a_folder_of_a_bucket_may_look_like_a_glob(bucket: str, name: str) -> None:
    for folder in (name, "in/x 1"):
        (place(bucket) / folder / "a.png").write_bytes(b"x")
    assert keys(DenoiseConfig(input=f"{bucket}/{name}", output=f"{bucket}/out")) == ["a.png"]


def test_a_listing_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_text("uri\n/photos/a.png\n")
    monkeypatch.chdir(tmp_path)
    found = list_pictures(DenoiseConfig(list="list.csv", output="out"))
    monkeypatch.chdir("/")  # as a worker of a Ray that runs already
    assert [table["key"].to_pylist() for table in found.listing.read()] == [["photos/a.png"]]


@pytest.mark.parametrize("name", ["input", "reference", "list", "model"])
def test_what_overwrite_would_remove_is_not_read(tmp_path: Path, name: str) -> None:
    files(tmp_path, "clean/images/a.png")
    options = {name: str(tmp_path / "clean" / "images")} | ({"input": None} if name == "list" else {})
    given = config(tmp_path, **options)
    with pytest.raises(ValueError, match=f"{name} .*/clean/images' lies in images of the output .*/clean'; allowed: "):
        check_apart(given, Output(place(given.output)))
    given = DenoiseConfig(input="s3://b/in", reference="s3:///b/out/images", output="s3://b/out")
    with pytest.raises(ValueError, match=r"reference .* lies in images of the output"):
        check_apart(given, Output(place(given.output)))
    check_apart(config(tmp_path, model="default"), Output(tmp_path / "clean"))
    check_apart(config(tmp_path, output=str(tmp_path)), Output(tmp_path))  # pictures below OUT, but not what it writes


def test_a_limit_changes_no_name(tmp_path: Path) -> None:
    files(tmp_path, "a.bmp", "a.png")
    names = [
        list_pictures(config(tmp_path, format="png", limit=limit)).table["output_key"].to_pylist()
        for limit in (1, None)
    ]
    assert names == [["a.bmp.png"], ["a.bmp.png", "a.png"]]


def test_a_job_is_known_by_where_its_pictures_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (resolved(config(tmp_path, input=text)) for text in ("photos", f"{tmp_path}/photos"))
    assert one == other == {"input": f"{tmp_path}/photos"}
    assert resolved(config(tmp_path, input="s3://b/photos/")) == {"input": "s3://b/photos"}

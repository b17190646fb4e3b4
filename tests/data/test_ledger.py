"""Laws of the ledger: done is what is committed and there; a job goes on only as it began."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydenoise.data import storage
from raydenoise.data.lease import FOLDER, Lease, LeaseLostError, held, newest
from raydenoise.data.ledger import Commits, Ledger, check_ours, check_same, clear, digests, settle
from raydenoise.data.manifest import DENOISING_KIND, Output, part_name
from raydenoise.data.place import place
from raydenoise.data.schema import SOURCES, metrics_table

CONFIG = {
    "input": "/in", "list": None, "column": "uri", "sigma": "auto", "strength": 1.0, "tta": 1, "reference": None,
    "format": "keep", "quality": 95, "tile": None, "max_pixels": 10**9, "precision": "auto", "actors": 2,
}  # fmt: skip


@pytest.fixture(params=["disk", "bucket", "gs_bucket"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    """An OUT with three rows in two files: a picture, a failure, and one whose picture is gone."""
    out = Output(
        place(tmp_path / "out" if request.param == "disk" else f"{request.getfixturevalue(request.param)}/out")
    )
    rows = [
        {"key": "a.png", "status": "ok", "output_uri": str(out.images / "a.png"), "precision": "bfloat16"},
        {"key": "sub/b ü.png", "status": "error", "error_type": "empty", "precision": None},
        {"key": "gone.png", "status": "ok", "output_uri": str(out.images / "gone.png"), "precision": "bfloat16"},
    ]
    storage.publish_table(out.metrics / "part-00001-00000.parquet", metrics_table(rows[:2]))
    storage.publish_table(out.metrics / "part-00001-00001.parquet", metrics_table(rows[2:]))
    storage.publish(out.images / "a.png", b"a")
    storage.publish(out.scratch / ".x.partial", b"half")
    return out


def sources(*keys: str) -> pa.Table:
    return pa.table([[f"/in/{key}" for key in keys], keys, keys, [None] * len(keys)], schema=SOURCES)


def test_done_are_pictures_that_are_there_and_failures(output: Output) -> None:
    counted: list[str] = []
    ledger = settle(output, count=lambda rows: counted.extend(rows["key"].to_pylist()))
    assert counted == ["a.png", "sub/b ü.png"]
    assert ledger.precision == "bfloat16"
    left = ledger.pending(sources("a.png", "gone.png", "new.png", "sub/b ü.png"))
    assert left["key"].to_pylist() == ["gone.png", "new.png"]
    assert not output.scratch.exists()


def test_rows_without_their_picture_leave_the_table(output: Output) -> None:
    settle(output)
    again: list[str] = []
    settle(output, count=lambda rows: again.extend(rows["key"].to_pylist()))
    assert again == ["a.png", "sub/b ü.png"]


def test_failures_can_be_tried_again(output: Output) -> None:
    asked = sources("a.png", "sub/b ü.png")
    ledger = settle(output, retry=np.sort(digests(asked["key"].to_pylist())))
    assert ledger.pending(asked)["key"].to_pylist() == ["sub/b ü.png"]


def test_failures_that_this_job_is_not_asked_for_keep_their_rows(output: Output) -> None:
    settle(output, retry=digests(["a.png"]))
    assert storage.read_parquet(output.metrics)["key"].to_pylist() == ["a.png", "sub/b ü.png"]


def test_clearing_leaves_nothing_of_a_run_and_all_else(output: Output) -> None:
    storage.publish(output.manifest, b"{}")
    storage.publish(output.root / "notes.txt", b"mine")
    clear(output)
    assert list(storage.walk(output.root)) == ["notes.txt"]
    assert settle(output).pending(sources("a.png"))["key"].to_pylist() == ["a.png"]


def test_an_empty_ledger_has_done_nothing() -> None:
    assert len(Ledger().pending(sources("a", "b"))) == 2
    assert len(Ledger(digests(["a"])).pending(sources())) == 0


def test_a_row_that_comes_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydenoise.data.ledger.MERGED", 3)
    book = Ledger(digests(["old"]))
    came = [
        book.fresh(metrics_table([{"key": key}]))["key"].to_pylist()
        for key in ["a", "b", "a", "old", "c", "d", "e", "a", "b", "f"]
    ]
    assert came == [["a"], ["b"], [], [], ["c"], ["d"], ["e"], [], [], ["f"]]
    assert book.fresh(metrics_table([{"key": key} for key in ("g", "a", "g")]))["key"].to_pylist() == ["g"]


def manifest(**changes: Any) -> dict[str, Any]:
    model = {"sha256": changes.pop("sha256", "0" * 64)}
    return {"kind": DENOISING_KIND, "config": {**CONFIG, **changes}, "model": model}


@pytest.mark.parametrize(
    "change", [{}, {"actors": 7}, {"precision": "float32"}, {"max_pixels": 2 * 10**9, "retry_failed": True}]
)
def test_what_decides_no_row_may_change(tmp_path: Path, change: dict[str, Any]) -> None:
    check_same(Output(tmp_path), manifest())
    storage.publish_json(tmp_path / "manifest.json", manifest())
    check_same(Output(tmp_path), manifest(**change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sigma": 25.0}, "sigma was 'auto' and is 25.0"),
        ({"sha256": "1"}, "model was '0+' and is '1'"),
        ({"input": "/other"}, "input was '/in' and is '/other'"),
        ({"max_pixels": 2 * 10**9}, "max_pixels was 1000000000 and is 2000000000"),
        ({"max_pixels": 10**8, "retry_failed": True}, "max_pixels was 1000000000 and is 100000000"),
        ({"tta": 8, "format": "png"}, "tta was 1 and is 8; format was 'keep' and is 'png'"),
    ],
)
def test_another_setting_is_refused_with_what_it_was(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    storage.publish_json(tmp_path / "manifest.json", manifest())
    with pytest.raises(ValueError, match=rf"holds a run with other settings: {said}; allowed: the same settings, "):
        check_same(Output(tmp_path), manifest(**change))


@pytest.mark.parametrize("link", [False, True])
def test_one_place_may_be_typed_in_several_ways(tmp_path: Path, link: bool) -> None:
    (tmp_path / "photos").mkdir()
    other = tmp_path / "link" if link else tmp_path / "sub" / ".." / "photos"
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("photos")
    storage.publish_json(tmp_path / "manifest.json", manifest(input=str(other)))
    check_same(Output(tmp_path), manifest(input=str(tmp_path / "photos")))
    with pytest.raises(ValueError, match="input was "):
        check_same(Output(tmp_path), manifest(input=str(tmp_path / "sub")))


KEYS = ("a", "a.jpg", "images/a.jpg", "b/images/a.jpg", "b/images/images/a", "b/images/a")


@pytest.mark.parametrize("folder", ["out", "images", "x/images/y", "images/images"])
@pytest.mark.parametrize("gone", KEYS)
def test_a_picture_is_that_of_its_row_whatever_folders_are_called(tmp_path: Path, folder: str, gone: str) -> None:
    out = Output(tmp_path / folder)
    rows = [{"key": key, "status": "ok", "output_uri": str(out.images / key)} for key in KEYS]
    storage.publish_table(out.metrics / "part-00001.parquet", metrics_table(rows))
    for key in KEYS:
        if key != gone:
            storage.publish(out.images / key, b"x")
    left = settle(out).pending(sources(*KEYS))
    assert left["output_key"].to_pylist() == left["key"].to_pylist() == [gone]


def test_a_taken_name_without_an_extension_gets_one() -> None:
    ledger = Ledger(outputs=digests(["a"]))
    assert ledger.pending(sources("a"))["output_key"].to_pylist() == ["a.picture"]


def test_pictures_behind_a_link_are_there(output: Output, tmp_path: Path) -> None:
    if not isinstance(output.root, Path):
        pytest.skip("a bucket has no links")
    (output.root / "images").rename(tmp_path / "elsewhere")
    (output.root / "images").mkdir()
    (output.root / "images" / "2023").symlink_to(tmp_path / "elsewhere")
    rows = [{"key": "2023/a.png", "status": "ok", "output_uri": str(output.images / "2023" / "a.png")}]
    storage.publish_table(output.metrics / "part-00002.parquet", metrics_table(rows))
    assert settle(output).pending(sources("2023/a.png", "a.png"))["key"].to_pylist() == ["a.png"]


def test_a_moved_run_goes_on(output: Output, tmp_path: Path) -> None:
    if not isinstance(output.root, Path):
        pytest.skip("objects are not moved")
    (tmp_path / "images").mkdir()
    moved = Output(output.root.rename(tmp_path / "images" / "elsewhere"))
    ledger = settle(moved)
    assert ledger.pending(sources("a.png", "gone.png"))["key"].to_pylist() == ["gone.png"]
    assert len(storage.read_parquet(moved.metrics)) == 2


def test_a_finished_picture_keeps_its_name(output: Output) -> None:
    ledger = settle(output)
    table = pa.table([["/in/a.bmp", "/in/b.bmp"], ["a.bmp", "b.bmp"], ["a.png", "b.png"], [None, None]], schema=SOURCES)
    assert ledger.pending(table)["output_key"].to_pylist() == ["a.bmp.png", "b.png"]


def test_what_a_killed_job_left_beside_its_files_goes(output: Output) -> None:
    left = [output.root / ".1.partial", output.metrics / ".2.partial", output.root / "lease" / ".3.partial"]
    left.append(output.root / ".4.partial" / "a.png")  # of a folder that was being removed
    if not isinstance(output.root, Path):
        pytest.skip("a bucket has no temporary names")
    for path in left:
        storage.publish(path, b"half")
    settle(output)
    assert not any(path.exists() for path in left)


def row(key: str) -> pa.Table:
    return metrics_table([{"key": key, "status": "error"}])


def keys(output: Output) -> list[str]:
    return sorted(storage.read_parquet(output.metrics)["key"].to_pylist())


def take_over(output: Output, stack: ExitStack) -> Lease:
    """The next lease, whose holder takes the one before for dead, as after a long stop of its machine."""
    number, content = newest(output.root)
    if content is not None:
        dead = json.dumps({**content, "pid": 2**22 + 1}).encode()  # no process has such a number
        storage.publish(output.root / FOLDER / f"{number:06d}.json", dead)
    return stack.enter_context(held(output.root))


def test_a_job_that_slept_through_the_loss_of_its_lease_commits_nothing(
    output: Output, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    stack = ExitStack()
    request.addfinalizer(stack.close)
    stopped = Commits(output, take_over(output, stack))
    assert not stopped.lease.after_dead
    stopped.create(output.metrics / part_name(stopped.next()), row("first.png"))
    its_next = output.metrics / part_name(stopped.next())
    stopped.lease._stop.set()
    stopped.lease._thread.join()
    new = Commits(output, take_over(output, stack))
    new.fence()
    monkeypatch.setattr(stopped.lease, "check", lambda: None)  # it was stopped just behind it
    with pytest.raises(LeaseLostError, match=r"part-\d+.parquet is another job's, which took over; nothing more was"):
        stopped.create(its_next, row("second.png"))
    new.create(output.metrics / part_name(new.next()), row("second.png"))
    assert keys(output) == ["a.png", "first.png", "gone.png", "second.png", "sub/b ü.png"]

    clear(output)
    with pytest.raises(LeaseLostError, match="took over"):
        stopped.create(its_next, row("second.png"))
    assert check_ours(output) is None
    assert keys(output) == []


def test_who_takes_over_from_a_job_that_just_commits_counts_its_rows(
    output: Output, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    stack = ExitStack()
    request.addfinalizer(stack.close)
    slow = Commits(output, take_over(output, stack))
    new = Commits(output, take_over(output, stack))
    monkeypatch.setattr(slow.lease, "check", lambda: None)  # it looked before
    told = Commits.next

    def next(self: Commits) -> int:
        number = told(self)
        if len(storage.names(output.metrics)) == 2:
            slow.create(output.metrics / part_name(number), row("late.png"))
        return number

    monkeypatch.setattr(Commits, "next", next)
    new.fence()
    assert "late.png" in keys(output)
    with pytest.raises(LeaseLostError, match="took over"):
        slow.create(output.metrics / part_name(told(slow) - 1), row("later.png"))


def test_a_job_after_one_that_ended_begins_at_once(output: Output) -> None:
    with held(output.root):
        pass
    with held(output.root) as lease:
        commits = Commits(output, lease)
        commits.fence()
        assert len(storage.names(output.metrics)) == 2
        assert commits.next() == 2  # also where the leases were removed


def test_only_a_run_of_ours_may_be_removed(tmp_path: Path) -> None:
    assert check_ours(Output(tmp_path)) is None
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"already holds something \(images\) and no manifest"):
        check_ours(Output(tmp_path))
    storage.publish_json(tmp_path / "manifest.json", {"kind": DENOISING_KIND, "config": CONFIG})
    with pytest.raises(ValueError, match="lacks config or model; allowed: another folder"):
        check_ours(Output(tmp_path))
    storage.publish_json(tmp_path / "manifest.json", manifest())
    assert check_ours(Output(tmp_path))["config"] == CONFIG


def test_the_precision_of_the_rows_stays(output: Output) -> None:
    storage.publish_json(output.manifest, manifest())
    check_same(output, manifest(precision="auto"))
    check_same(output, manifest(precision="bfloat16"))  # what auto became
    with pytest.raises(ValueError, match="other settings: precision was 'bfloat16' and is 'float32'; allowed: "):
        check_same(output, manifest(precision="float32"))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"already holds something \(images\) and no manifest of a run; allowed: "):
        check_same(Output(tmp_path), manifest())
    storage.publish_json(tmp_path / "manifest.json", {"kind": "raydenoise training"})
    with pytest.raises(ValueError, match=r"holds a 'raydenoise training'; allowed: another folder$"):
        check_same(Output(tmp_path), manifest())
    (tmp_path / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"holds a 'list'; allowed: another folder$"):
        check_same(Output(tmp_path), manifest())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json cannot be read: "):
        check_same(Output(tmp_path), manifest())

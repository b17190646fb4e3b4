"""Laws of the page about a denoise run: its numbers are those of the table, whatever the table holds."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raydenoise.report import denoising
from raydenoise.report.blocks import Block, Comparisons, Note, Page, Table
from tests.report.rows import STARTED, UNMEASURED, MakeOut, failure, row


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing to test_page.py: it takes most of the time."""
    monkeypatch.setattr("raydenoise.report.plots._png", lambda *_: b"")


def describe(root: Path, *, pictures: int = 3) -> Page:
    return denoising.page(root, json.loads((root / "manifest.json").read_text()), pictures=pictures)


def tile(page: Page, label: str) -> str:
    (found,) = [tile.value for tile in page.tiles if tile.label == label]
    return found


def section(page: Page, title: str) -> Sequence[Block]:
    (found,) = [section.blocks for section in page.sections if section.title == title]
    return found


def shown(page: Page) -> list[tuple[str, str]]:
    return [
        (view.label, view.key)
        for part in page.sections
        for block in part.blocks
        if isinstance(block, Comparisons)
        for view in block.items
    ]


def test_the_totals_are_those_of_the_table(make_out: MakeOut) -> None:
    root = make_out([row(index) for index in range(10)] + [failure(index, "empty", "no byte") for index in (10, 11)])
    table = pq.read_table(root / "metrics").to_pylist()
    page = describe(root)
    assert tile(page, "pictures") == str(len(table)) == "12"
    assert tile(page, "failed") == str(sum(entry["status"] == "error" for entry in table)) == "2"
    assert tile(page, "mean PSNR gain") == "+7.55\N{NO-BREAK SPACE}dB"  # 8 - mean of 0, 0.1 ... 0.9
    assert tile(page, "estimated noise") == "24.5 → 1.0"
    assert tile(page, "pictures a second") == "0.60"


@pytest.mark.parametrize(("before", "speed"), [(0, ["0.50"]), (6, ["0.20"]), (10, [])])
def test_the_speed_is_that_of_the_last_start(make_out: MakeOut, before: int, speed: list[str]) -> None:
    page = describe(make_out([row(index) for index in range(10)], summary={"seconds": 20.0, "before": before}))
    assert [tile.value for tile in page.tiles if tile.label == "pictures a second"] == speed
    (text,) = [section.text for section in page.sections if section.title == "Time"]
    assert text == (
        "" if before else "The first picture was finished after 10.0 s; from then on it were 1.00 pictures a second."
    )


def test_a_killed_run_that_went_on_tells_no_speed(make_out: MakeOut) -> None:
    began = STARTED + timedelta(seconds=15)
    root = make_out([row(index) for index in range(10)], started_at=began.isoformat(), status="running")
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["summary"]
    page = denoising.page(root, manifest, pictures=0)
    assert [section.text for section in page.sections if section.title == "Time"] == [""]


def test_best_and_worst_are_the_extremes_of_the_gain_and_share_no_picture(make_out: MakeOut) -> None:
    page = describe(make_out([row(index) for index in range(10)]), pictures=2)
    assert shown(page)[:4] == [("best", "0.png"), ("best", "1.png"), ("worst", "9.png"), ("worst", "8.png")]
    few = describe(make_out([row(index) for index in range(3)], name="few"), pictures=2)
    assert shown(few)[:3] == [("best", "0.png"), ("best", "1.png"), ("worst", "2.png")]


def test_no_pictures_are_read_where_none_are_asked_for(make_out: MakeOut) -> None:
    assert shown(describe(make_out([row(0), row(1, psnr_denoised=1.0)]), pictures=0)) == []


def test_without_references_pictures_are_ranked_by_the_noise_taken_away(make_out: MakeOut) -> None:
    page = describe(make_out([row(index, **UNMEASURED) for index in range(4)]), pictures=1)
    assert shown(page)[:2] == [("best", "3.png"), ("worst", "0.png")]
    assert {"mean PSNR gain", "mean SSIM"}.isdisjoint(tile.label for tile in page.tiles)
    assert [plot.name for plot in page.plots] == ["noise", "throughput", "stages"]


def test_a_picture_equal_to_its_reference_has_no_gain_and_breaks_nothing(make_out: MakeOut) -> None:
    page = describe(make_out([row(0), row(1, psnr_denoised=None, mse_denoised=0.0)]))
    assert tile(page, "mean PSNR gain") == "+8.00\N{NO-BREAK SPACE}dB"
    assert [key for _, key in shown(page)] == ["0.png"]


def test_a_table_without_rows_and_no_table(make_out: MakeOut) -> None:
    root = make_out([], status="interrupted")
    for _ in range(2):
        page = describe(root)
        assert page.status == "interrupted"
        assert tile(page, "pictures") == "0"
        assert section(page, "Failures") == [Note("There is no row yet.")]
        assert page.plots == []
        (root / "metrics" / "part-00000.parquet").unlink(missing_ok=True)


def test_failures_alone(make_out: MakeOut) -> None:
    rows = [failure(index, "truncated", f"at {index}") for index in range(5)] + [failure(7, "empty", "no byte")]
    page = describe(make_out(rows))
    assert tile(page, "failed") == "6"
    counts, examples = section(page, "Failures")
    assert isinstance(counts, Table)
    assert isinstance(examples, Table)
    assert [tuple(line) for line in counts.rows] == [("truncated", "5", "83.3 %"), ("empty", "1", "16.7 %")]
    assert [tuple(line) for line in examples.rows] == [
        ("truncated", "0.png", "at 0"),
        ("", "1.png", "at 1"),
        ("", "2.png", "at 2"),
        ("empty", "7.png", "no byte"),
    ]
    assert [plot.name for plot in page.plots] == ["throughput", "stages"]


def test_one_picture(make_out: MakeOut) -> None:
    page = describe(make_out([row(0)]))
    assert tile(page, "pictures") == "1"
    assert [plot.name for plot in page.plots] == ["noise", "psnr-gain", "throughput", "stages"]


def test_a_picture_that_is_gone_is_named(make_out: MakeOut, pictures: dict[str, str]) -> None:
    root = make_out([row(0, **pictures), row(1), row(2, height=20_000, width=20_000)])
    views = next(block for block in section(describe(root), "Best and worst") if isinstance(block, Comparisons)).items
    assert views[0].missing == ""
    assert views[0].before
    assert "No such file" in views[1].missing
    assert views[2].missing == "cannot be shown: 20000x20000 pixels; shown: up to 100 megapixels"


def test_notes_are_counted_and_shown(make_out: MakeOut) -> None:
    page = describe(make_out([row(index, note=f"said {index}") for index in range(5)] + [row(9)]))
    _, table = section(page, "What came in")
    assert isinstance(table, Table)
    assert table.caption == "Notes: 5 pictures, the first by name"
    assert [tuple(line) for line in table.rows] == [(f"{index}.png", f"said {index}") for index in range(3)]


def test_a_folder_named_like_a_pattern_is_read_itself(make_out: MakeOut) -> None:
    make_out([row(0), row(1)], name="outs")
    assert tile(describe(make_out([row(0)], name="out[s]*")), "pictures") == "1"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"psnr_denoised": 21.0}, "Denoised is worse than noisy"),
        ({"psnr_denoised": 22.5}, "Gained far less than the others"),
        ({"sigma_out_estimate": 15.0}, "Still noisy"),
        ({"sigma": 20.0, "sigma_in_estimate": 22.0}, "Noisier than the model was trained for"),
        ({"sigma_in_estimate": 0.1, "sigma_out_estimate": 0.1}, "Hardly any noise found"),
        ({"sigma": 60.0, "sigma_in_estimate": 60.0}, "Noise unlike the rest of the collection"),
        ({"infer_s": 9.0}, "Slow"),
    ],
)
def test_a_picture_that_stands_out_is_named_with_the_rule(
    make_out: MakeOut, changes: dict[str, Any], rule: str
) -> None:
    usual = [row(index, sigma=20.0, sigma_in_estimate=20.0, psnr_denoised=30.0) for index in range(20)]
    assert section(describe(make_out(usual)), "Worth a look") == [Note("No picture stands out by any rule.")]
    odd = {**usual[7], **changes, "key": "odd.png"}
    table, *_ = section(describe(make_out([*usual, odd], name="odd")), "Worth a look")
    assert isinstance(table, Table)
    assert (rule, "1", "odd.png") in {tuple(line[:3]) for line in table.rows}


def test_a_rule_counts_all_and_shows_the_most_extreme_first(make_out: MakeOut) -> None:
    rows = [row(index, psnr_denoised=22.0 - index) for index in range(1, 9)]
    table, *_ = section(describe(make_out(rows)), "Worth a look")
    assert isinstance(table, Table)
    worse = [tuple(line) for line in table.rows][:5]
    assert worse[0] == ("Denoised is worse than noisy", "8", "8.png", "8.00 dB lost")
    assert [line[2] for line in worse] == ["8.png", "7.png", "6.png", "5.png", "4.png"]


def test_a_picture_is_seen_once(make_out: MakeOut) -> None:
    rows = [row(index, psnr_denoised=22.0 - index) for index in range(1, 9)]
    page = describe(make_out(rows), pictures=1)
    assert shown(page) == [("best", "1.png"), ("worst", "8.png"), ("Denoised is worse than noisy", "7.png")]


def test_what_strength_leaves_is_not_called_noisy(make_out: MakeOut) -> None:
    rows = [row(index, sigma_out_estimate=8.0) for index in range(4)]  # of 20
    half = describe(make_out(rows, config={"sigma": 20.0, "strength": 0.6}))
    assert section(half, "Worth a look") == [Note("No picture stands out by any rule.")]
    full = describe(make_out([row(0, sigma_out_estimate=12.0)], name="full"))
    assert section(full, "Worth a look") != section(half, "Worth a look")

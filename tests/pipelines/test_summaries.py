"""Laws of the totals: they count every row once and average what was measured."""

import threading
from pathlib import Path
from typing import Any

import pytest

from raydenoise import tuning
from raydenoise.data.schema import metrics_table
from raydenoise.pipelines import displays
from raydenoise.pipelines.displays import Display, TrainDisplay, TuneDisplay
from raydenoise.pipelines.summaries import SHOWN_FAILURES, Totals, print_prepared, print_summary, print_training


def ok(key: str, *, height: int = 1000, width: int = 2000, **more: Any) -> dict[str, Any]:
    return {"key": key, "status": "ok", "height": height, "width": width, **more}


def measured(key: str, before: float, after: float) -> dict[str, Any]:
    return ok(key, psnr_noisy=before, psnr_denoised=after, mse_noisy=0.01, mse_denoised=0.001)


def failed(key: str) -> dict[str, Any]:
    return {"key": key, "status": "error", "error_message": f"{key} is broken"}


def totals(*tables: list[dict[str, Any]], referenced: bool = False) -> Totals:
    found = Totals()
    for rows in tables:
        found.add(metrics_table(rows), referenced=referenced)
    return found


def test_nothing_is_seen_at_first() -> None:
    assert totals().summary(seconds=0, output="out") == {
        "output": "out",
        "images": 0,
        "before": 0,
        "ok": 0,
        "failed": 0,
        "megapixels": 0.0,
        "seconds": 0,
        "images_per_s": None,
        "psnr_noisy": None,
        "psnr_denoised": None,
        "without_reference": 0,
        "first_failures": [],
    }
    assert totals([], []) == Totals()


def test_rows_are_counted_whatever_their_tables() -> None:
    rows = [ok("a"), failed("b"), ok("c", height=100, width=50), failed("d")]
    found = totals(rows)
    assert (found.images, found.failed) == (4, 2)
    assert found.megapixels == pytest.approx(2.005)
    assert found == totals(rows[:1], rows[1:2], [], rows[2:])
    summary = found.summary(seconds=8, output="out")
    assert (summary["images"], summary["ok"], summary["failed"]) == (4, 2, 2)
    assert (summary["megapixels"], summary["images_per_s"]) == (2.005, 0.5)


def test_failed_rows_have_no_megapixels() -> None:
    assert totals([{**ok("a"), "status": "error"}]).megapixels == 0


def test_many_pixels_do_not_overflow() -> None:
    assert totals([ok("a", height=100_000, width=60_000)]).megapixels == pytest.approx(6000)


def test_means_are_over_measured_rows_only() -> None:
    equal = ok("equal", mse_noisy=0.0, mse_denoised=0.001, psnr_denoised=30.0)  # no PSNR: it was infinite
    half = {**measured("half", 99, 99), "status": "error"}
    found = totals(
        [measured("a", 20, 30), ok("b")], [failed("c"), equal, half], [measured("d", 25, 32)], referenced=True
    )
    summary = found.summary(seconds=1, output="out")
    assert (summary["psnr_noisy"], summary["psnr_denoised"]) == (22.5, 31.0)
    assert found.measured == 2


def test_the_unpaired_are_counted_where_references_were_given() -> None:
    rows = [measured("a", 20, 30), ok("b"), ok("c"), failed("d"), ok("equal", mse_noisy=0.0)]
    assert totals(rows, [ok("e")], referenced=True).summary(seconds=1, output="")["without_reference"] == 3
    assert totals(rows, [ok("e")]).summary(seconds=1, output="")["without_reference"] == 0


def test_the_first_failures_are_kept() -> None:
    found = totals([failed("0"), ok("x"), failed("1")], [failed(str(number)) for number in range(2, 10)], [failed("z")])
    assert found.failed == 11
    assert found.failures == [(str(number), f"{number} is broken") for number in range(SHOWN_FAILURES)]
    assert found.summary(seconds=1, output="")["first_failures"][4] == {"key": "4", "error": "4 is broken"}


def test_the_summary_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = totals([measured("a", 20, 30), ok("b"), *(failed(f"{number}[/]") for number in range(7))], referenced=True)
    print_summary(found.summary(seconds=2, output="runs/out"))
    said = capsys.readouterr().out
    for text in (
        "9: 2 denoised, 7 failed",
        "4.0 megapixels",
        "20.00 dB -> 30.00 dB (+10.00 dB)",
        "1 pictures have no usable reference",
        "failed: 4[/]: 4[/] is broken",
        "and 2 more",
        "runs/out",
    ):
        assert text in said


@pytest.mark.parametrize("output", ["run [old]", "run [/x]", "[red]run"])
def test_brackets_in_the_output_folder_are_no_markup(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(totals([ok("a")]).summary(seconds=2, output=output))
    assert output in capsys.readouterr().out


def test_what_was_prepared_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    part = {"images": 3, "patches": 120, "files": 2, "megabytes": 5.25}
    summary = {
        "output": "run [/x]",
        "images": 16,
        "used": 9,
        "skipped": 1,
        "failed": 6,
        "splits": {"train": part, "validation": part, "test": {**part, "patches": 0}},
        "seconds": 7.5,
        "first_failures": [{"key": f"{number}[/]", "error": "broken"} for number in range(5)],
    }
    print_prepared(summary)
    said = capsys.readouterr().out
    for text in (
        "16: 9 used, 1 without a patch, 6 failed",
        "120 patches of 3 pictures, 5.2 MB in 2 files",
        "0 patches of 3 pictures",
        "run [/x]",
        "failed: 4[/]: broken",
        "... and 1 more: failures.parquet",
    ):
        assert text in said


def test_a_display_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(3, doing="surveying", begin="starting Ray", quiet=False, waiting=lambda: None) as display:
        display.update(done=1, failed=0)
    assert capsys.readouterr().err == "surveying 3 pictures: starting Ray\n"
    with Display(3, doing="surveying", begin="starting Ray", quiet=True, waiting=lambda: None):
        pass
    assert capsys.readouterr().err == ""


def test_a_training_tells_its_step(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays, "LOOK_SECONDS", 0.01)
    news: list[dict[str, Any]] = [{}, {"step": 20, "batch_size": 8, "rate": 4.0, "loss": 0.5, "psnr": {"psnr": 27.5}}]
    looked = threading.Event()

    def read() -> dict[str, Any]:
        if len(news) == 1:
            looked.set()
            raise OSError("the board is gone")
        return news.pop()

    with TrainDisplay(100, quiet=False, read=read, waiting=lambda: None):
        assert looked.wait(10)
    first, line = capsys.readouterr().err.splitlines()
    assert first == "training for 100 steps: starting Ray and the workers"
    assert line == "step 20 of 100: loss 0.50000, validation 27.50 dB, 4 patches/s, about 160 s left"


def test_a_training_tells_what_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(displays, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(displays, "LINE_SECONDS", 0.01)
    reasons = ["for B", None, "for B", "for A", "for A"]  # popped from the end
    looked = threading.Event()

    def waiting() -> str | None:
        if not reasons:
            looked.set()
            return None
        return reasons.pop()

    with TrainDisplay(100, quiet=False, read=dict, waiting=waiting):
        assert looked.wait(10)
    assert capsys.readouterr().err.splitlines()[1:] == ["for A", "for B", "for B"]


def test_a_tuning_tells_each_trial_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = [{"depth": 1}, {"depth": 2}, {"depth": 3}]
    tuning.record(tmp_path, 0, status="finished")
    with TuneDisplay(tmp_path, drawn, quiet=False):
        tuning.record(tmp_path, 2, status="error", error="no luck")
    first, line = capsys.readouterr().err.splitlines()
    assert first == "tuning with 3 trials, 1 of them before: starting Ray and the workers"
    assert line.startswith("trial 2 (depth")
    assert line.endswith("error at step 0: no luck")


@pytest.mark.parametrize("output", ["s3://b/run", "/home/me/run"])
def test_a_training_tells_where_its_bundle_is(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_training({"output": output, "steps": 60, "seconds": 12.4, "step": 60})
    assert capsys.readouterr().out.splitlines()[-1].split() == ["bundle", f"{output}/bundle"]


def test_a_fine_tuning_tells_what_the_bundle_reached_before(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"psnr_noisy": 20.0, "psnr_denoised": 27.5, "psnr_init": 25.25}
    print_training({"output": "run", "steps": 60, "seconds": 12.4, "step": 60, "test": scores})
    out = capsys.readouterr().out
    assert "60 steps in 12 s; best at step 60" in out
    assert "PSNR 20.00 dB -> 27.50 dB (+7.50 dB; init 25.25 dB)" in out

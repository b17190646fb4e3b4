"""Laws of the page: it holds all it needs, shows hostile text as text, and is the same for the same folder."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raydenoise import cli
from raydenoise.config import ReportConfig
from raydenoise.data import storage
from raydenoise.data.place import place
from raydenoise.report import page, plots
from tests.report.rows import MakeOut, failure, row

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}.png"


def write(root: Path, **options: Any) -> str:
    summary = page.run(ReportConfig(folder=str(root), **options))
    return Path(summary["report"]).read_text()


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> str:
    assert cli.main(["report", str(folder), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_same_folder_gives_the_same_bytes(make_out: MakeOut, pictures: dict[str, str]) -> None:
    root = make_out([row(index) for index in range(7)] + [row(8, **pictures)])
    first = write(root)
    files = {path.name: path.read_bytes() for path in (root / "report").iterdir()}
    assert sorted(files) == ["noise.png", "psnr-gain.png", "stages.png", "throughput.png"]
    assert write(root) == first
    assert {path.name: path.read_bytes() for path in (root / "report").iterdir()} == files


def test_names_and_messages_are_shown_as_text(make_out: MakeOut) -> None:
    root = make_out([row(0, key=HOSTILE), failure(1, HOSTILE, HOSTILE, key=HOSTILE)], name="<b>&", status=HOSTILE)
    html = write(root)
    assert html.count("<script>") == 1
    assert "<img src=x" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}.png" in html


def test_nothing_is_fetched(make_out: MakeOut, pictures: dict[str, str]) -> None:
    html = write(make_out([row(0, **pictures)]))
    assert set(re.findall(r'(?:src|srcset|href)="(.{5})', html)) == {"data:"}
    assert "url(" not in html
    assert "style=" not in html  # the policy would refuse it
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_a_plot_of_an_earlier_report_goes_and_other_files_stay(make_out: MakeOut) -> None:
    root = make_out([row(0)])
    write(root)
    (root / "report" / "mine.png").write_bytes(b"")
    pq.write_table(pq.read_table(root / "metrics").slice(0, 0), root / "metrics" / "part-00000.parquet")
    write(root)
    assert [path.name for path in (root / "report").iterdir()] == ["mine.png"]


def test_elsewhere_leaves_the_folder_as_it_was(make_out: MakeOut, tmp_path: Path) -> None:
    root = make_out([row(0)])
    before = sorted(root.rglob("*"))
    write(root, output=str(tmp_path / "there"))
    assert sorted(root.rglob("*")) == before
    assert (tmp_path / "there" / "report.html").is_file()
    assert (tmp_path / "there" / "report" / "noise.png").is_file()


@pytest.mark.parametrize("kind", ["bucket", "gs_bucket"])
def test_a_folder_in_a_bucket_has_the_same_report(
    make_out: MakeOut,
    pictures: dict[str, str],
    training: Path,
    evaluation: Path,
    shards: Path,
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    bucket = place(request.getfixturevalue(kind))
    out = make_out([row(index) for index in range(7)] + [row(8, **pictures)])
    for root in (out, training, evaluation, shards):
        storage.publish_folder(root, bucket / root.name)
        write(root)
        there = bucket / root.name
        assert page.run(ReportConfig(folder=str(there)))["report"] == f"{there}/report.html"
        for name in ("report.html", *(f"report/{plot.name}" for plot in root.glob("report/*"))):
            assert (there / name).read_bytes() == (root / name).read_bytes()


def test_the_command_says_where_the_report_is(make_out: MakeOut, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_out([failure(0, "empty", "no byte")])
    assert cli.main(["report", str(root)]) == 0
    assert capsys.readouterr().out == f"report  {root}/report.html\n"
    assert cli.main(["report", str(root), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["report"] == f"{root}/report.html"
    assert summary["plots"] == [f"{root}/report/throughput.png", f"{root}/report/stages.png"]


def test_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = "allowed: the output folder of raydenoise denoise, train, evaluate or prepare"
    assert (
        refused(capsys, tmp_path / "gone") == f"raydenoise report: error: '{tmp_path}/gone' is no folder; {allowed}\n"
    )
    assert refused(capsys, tmp_path) == f"raydenoise report: error: '{tmp_path}' holds no manifest.json; {allowed}\n"
    (tmp_path / "manifest.json").write_text("{")
    assert f"{tmp_path}/manifest.json cannot be read: " in refused(capsys, tmp_path)


@pytest.mark.parametrize(("content", "kind"), [('{"kind": "a cake"}', "a cake"), ("{}", "None"), ("[]", "list")])
def test_another_kind_of_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, kind: str
) -> None:
    (tmp_path / "manifest.json").write_text(content)
    said = refused(capsys, tmp_path)
    assert f"manifest.json is of '{kind}'; allowed: 'raydenoise denoising', 'raydenoise training', " in said
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_table_that_cannot_be_read_is_refused(make_out: MakeOut, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_out([row(0)])
    (root / "metrics" / "part-00009.parquet").write_bytes(b"PAR1 and no more")
    assert f"{root}/metrics cannot be read: " in refused(capsys, root)
    (root / "metrics" / "part-00009.parquet").unlink()
    table = pq.read_table(root / "metrics")
    pq.write_table(table.drop_columns(["note", "tiles"]), root / "metrics" / "part-00000.parquet")
    said = refused(capsys, root)
    assert said.endswith("metrics lacks the columns tiles, note; allowed: files that raydenoise wrote\n")
    assert not (root / "report.html").exists()


def test_a_training_shows_its_curves_scores_card_and_shards(training: Path) -> None:
    html = write(training)
    for text in ("resunet", "raydenoise train $SHARDS --output $RUN", "20.50", "30.75", "+10.25", "x86_64, 1 nodes"):
        assert text in html, text
    assert "patches of the test split" in html
    assert sorted(path.name for path in (training / "report").iterdir()) == [
        "learning-rate.png",
        "loss.png",
        "psnr.png",
        "rate.png",
    ]


def test_a_training_that_has_just_begun(training: Path, shards: Path) -> None:
    for path in [*training.glob("metrics/*"), *training.glob("bundle/*"), *shards.glob("*.png")]:
        path.unlink()
    manifest = json.loads((training / "manifest.json").read_text())
    (training / "manifest.json").write_text(json.dumps({**manifest, "status": "running", "summary": {}}))
    html = write(training)
    assert "There is no row yet" in html
    assert "There is no bundle" in html
    assert "patches of the test split" not in html


def test_shards_show_their_sheets_and_counts(shards: Path) -> None:
    html = write(shards)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    for cell in ("train", "12", "test", "3", "empty", "the file is empty", "flat"):
        assert cell in cells, cell
    assert html.count('class="sheet"') == 2
    assert not (shards / "report").exists()


def test_an_evaluation_shows_verdicts_tables_and_where_it_hurt(evaluation: Path) -> None:
    html = write(evaluation)
    assert html.count('<p class="loud">') == 2
    assert "Sigma 50: default is better than median by 7.00 dB, 95% interval 6.80 to 7.20, on 10 images." in html
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in html.splitlines() if line.startswith("<tr>")]
    decibel = "\N{NO-BREAK SPACE}dB"
    assert [
        "median",
        "",
        "10",
        f"22.00{decibel}",
        f"+2.00{decibel}",
        "1.75 to 2.25",
        "0.8000",
        "1.00e-02",
        "1.5",
    ] in rows
    assert ["noisy", "", "10", f"20.00{decibel}", "", "", "0.8000", "1.00e-02", ""] in rows
    assert ["sigma 15", "median", "1", "10.0 %", f"-3.00{decibel}", f"+2.00{decibel}", f"+2.00{decibel}"] in rows
    assert ["sigma 15", "median", "7.png", f"17.00{decibel}", f"-3.00{decibel}"] in rows
    assert ["broken.png", "no byte"] in rows
    assert html.count('class="sheet"') == 1
    assert sorted(path.name for path in (evaluation / "report").iterdir()) == ["gain-1.png", "gain-2.png"]


def said_aloud(evaluation: Path, **changes: Any) -> tuple[str, str]:
    """What is said of the first level, after changes there, and the whole page."""
    summary = json.loads((evaluation / "summary.json").read_text())
    summary["sets"][0].update(changes)
    (evaluation / "summary.json").write_text(json.dumps(summary))
    html = write(evaluation)
    said = re.findall(r'<p class="loud">([^<]*)</p>', html)
    assert said[1].startswith("Sigma 50: default is better than median by 7.00 dB")
    return said[0], html


def compared(second: tuple[str, str], verdict: str, *, shown: bool) -> dict[str, Any]:
    """The best method against another one."""
    first, other = ({"method": method, "sigma_source": told} for method, told in (("default", "known"), second))
    return {"first": first, "second": other, "better": first if shown else None, "verdict": verdict}


def test_an_evaluation_says_what_came_of_the_best_two_methods(evaluation: Path) -> None:
    comparisons = [
        compared(("default", "auto"), "default is better than default (sigma auto)", shown=True),
        compared(("rival", "known"), "no difference is shown between default and rival", shown=False),
        compared(("median", "known"), "default is better than median", shown=True),
    ]
    said, _ = said_aloud(evaluation, comparisons=comparisons)
    assert said == "Sigma 15: no difference is shown between default and rival."
    alone, html = said_aloud(evaluation, comparisons=comparisons[:1])
    assert alone == "Sigma 15: default has the highest PSNR; there is nothing to compare it with."
    assert "default is better than default (sigma auto)" in html


@pytest.mark.parametrize("psnr", [35.0, None])
def test_an_evaluation_praises_no_method_that_loses_to_the_noisy_input(evaluation: Path, psnr: float | None) -> None:
    summary = json.loads((evaluation / "summary.json").read_text())
    *methods, noisy = summary["sets"][0]["methods"]
    said, html = said_aloud(evaluation, methods=[*methods, {**noisy, "psnr": psnr}])
    assert said == "Sigma 15: no method beats the noisy input."
    assert html.count("no method beats the noisy input") == 2  # a tile says so, too


def test_an_evaluation_that_was_stopped(evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (evaluation / "sheet.png").unlink()
    (evaluation / "summary.json").write_text("{")
    assert f"{evaluation}/summary.json cannot be read: " in refused(capsys, evaluation)
    (evaluation / "summary.json").unlink()
    html = write(evaluation)
    assert "There is no summary yet." in html
    assert "7.png" in html


def test_every_plot_has_a_name_that_the_next_report_replaces() -> None:
    with pytest.raises(AssertionError, match=r"^other would not be replaced by the next report"):
        plots.draw("other", "", lambda _: None)

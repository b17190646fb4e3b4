"""Laws of what a tuning leaves: tables, plot and config say what the runs' rows say."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from raydenoise import tuning
from raydenoise.config import TrainConfig, parse
from raydenoise.data.schema import TRAINING, TRIALS

DRAWN: list[dict[str, Any]] = [
    {"learning_rate": 1e-3, "loss": "l1", "model_args.filters": (8, 16), "sigma": (0.0, 55.0)},
    {"learning_rate": 3e-2, "loss": "mse", "model_args.filters": (8,), "sigma": (0.0, 75.0)},
    {"learning_rate": 9e-1, "loss": "l1", "model_args.filters": (8, 16), "sigma": (0.0, 75.0)},
    {"learning_rate": 2e-3, "loss": "l1", "model_args.filters": (8, 16), "sigma": (0.0, 75.0)},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One trial to the end, best before it; one stopped; one failed at once; one that has not ended."""
    root = tmp_path / "TUNE"
    write_rows(root, 0, {10: 22.0, 20: 27.5, 30: 27.0})
    write_rows(root, 1, {10: 21.0})
    write_rows(root, 3, {10: 23.0})
    tuning.record(root, 0, status="finished")
    tuning.record(root, 1, status="stopped")
    tuning.record(root, 2, status="error", error="RuntimeError: the loss | became\nnan")
    return root


def write_rows(root: Path, number: int, psnr: dict[int, float]) -> None:
    """One file a validation, with a row between that has none, as a run writes them."""
    folder = tuning.run_folder(root, number) / tuning.METRICS
    folder.mkdir(parents=True)
    for step, value in psnr.items():
        rows = [{"step": step - 1, "loss": 1.0, "seconds": step - 1.0}]
        rows += [{"step": step, "loss": 1.0, "psnr": value, "seconds": float(step)}]
        pq.write_table(pa.Table.from_pylist(rows, schema=TRAINING), folder / f"step-{step:09d}.parquet")


def test_a_trial_is_what_its_rows_say(root: Path) -> None:
    first, second, third, fourth = tuning.read_trials(root, DRAWN)
    assert (first.status, first.best, first.psnr, first.steps, first.seconds) == (
        "finished",
        (20, 27.5),
        27.0,
        30,
        30.0,
    )
    assert (second.status, second.curve) == ("stopped", ((10, 21.0),))
    assert (third.status, third.best, third.psnr, third.steps, third.seconds) == ("error", None, None, 0, None)
    assert (fourth.status, fourth.best) == ("running", (10, 23.0))
    assert tuning.best_of([first, second, third, fourth]) is first
    assert tuning.best_of([third]) is None


def test_the_first_note_of_an_end_stays(root: Path) -> None:
    tuning.record(root, 0, status="stopped")
    assert tuning.read_trials(root, DRAWN)[0].status == "finished"
    assert [tuning.ended(root, number) for number in range(4)] == [True, True, True, False]


def test_the_tables(root: Path) -> None:
    trials = tuning.read_trials(root, DRAWN)
    tuning.write(root, trials, options=None)
    table = pq.read_table(root / "trials.parquet")
    assert table.schema.names == [*TRIALS.names, *DRAWN[0]]
    assert table["trial"].to_pylist() == [0, 1, 2, 3]
    assert table["best_psnr"].to_pylist() == [27.5, 21.0, None, 23.0]
    assert table["learning_rate"].to_pylist() == [1e-3, 3e-2, 9e-1, 2e-3]
    assert table["sigma"].to_pylist() == ["0:55", "0:75", "0:75", "0:75"]
    assert table["model_args.filters"].to_pylist() == ["8,16", "8", "8,16", "8,16"]
    lines = (root / "trials.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0", "| 3", "| 1", "| 2"]
    assert "error: RuntimeError: the loss \\| became nan" in lines[-1]
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}
    assert pyarrow.csv.read_csv(root / "trials.csv", parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True))[
        "trial"
    ].to_pylist() == [0, 3, 1, 2]


def test_the_best_config_makes_the_best_trials_training(root: Path) -> None:
    trials = tuning.read_trials(root, DRAWN)
    options = {
        **{name: value for name, value in DRAWN[0].items() if "." not in name},
        "model_args": {"filters": (8, 16), "depth": 1},
        "augment": (),
    }
    tuning.write(root, trials, options=options)
    made = parse(TrainConfig, ["shards", "--config", str(root / "best.yaml")], prog="", description="")
    expected = TrainConfig(shards="shards", output=str(root / "best"), **options)
    for entry in fields(TrainConfig):
        assert getattr(made, entry.name) == getattr(expected, entry.name), entry.name
    assert (root / "best.yaml").read_text().startswith("# Trial 0 of TUNE: 27.50 dB on the validation split")


def test_arguments_drawn_together_reach_the_config(root: Path) -> None:
    options = {"model_args": (("filters", (8,)), ("depth", 2))}
    tuning.write(root, tuning.read_trials(root, DRAWN), options=options)
    made = parse(TrainConfig, ["shards", "--config", str(root / "best.yaml")], prog="", description="")
    assert made.model_args == {"filters": (8,), "depth": 2}


@pytest.mark.parametrize("names", [("learning_rate",), ("loss", "learning_rate"), tuple(DRAWN[0])])
def test_the_plot_is_drawn(root: Path, names: tuple[str, ...]) -> None:
    drawn = [{name: one[name] for name in names} for one in DRAWN]
    tuning.write(root, tuning.read_trials(root, drawn), options={})
    with PIL.Image.open(root / "tune.png") as picture:
        assert min(picture.size) > 400


def test_checkpoints_go_and_rows_stay(root: Path) -> None:
    (tuning.run_folder(root, 0) / "checkpoints" / "one").mkdir(parents=True)
    tuning.drop(root, "checkpoints", count=4)
    assert sorted(path.name for path in tuning.run_folder(root, 0).iterdir()) == ["metrics", "outcome.json"]

"""What a tuning leaves: the table of its trials, the plot, the config of the best one. Without Ray."""

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raydenoise.config.space import shown_value
from raydenoise.data.schema import TRIALS
from raydenoise.data.storage import publish, publish_json, publish_table

RUNS, OUTCOME, METRICS = "runs", "outcome.json", "metrics"  # TUNE/runs/007/outcome.json, .../metrics
PARQUET, TABLE, CSV, PLOT, BEST = "trials.parquet", "trials.md", "trials.csv", "tune.png", "best.yaml"
MANY = 6  # numbers: fewer stand side by side in the plot, each with its name
SHOWN_ERROR = 120  # characters of an error in the tables for people


@dataclass(frozen=True)
class Trial:
    """One combination and what came of it.

    Attributes:
        number: from 0, in the order of the drawing.
        drawn: option -> value.
        status: "finished", "stopped" by the scheduler, "error", or "running" where it has not ended.
        error: of a trial that failed.
        curve: (step, validation PSNR in dB) of each validation.
        seconds: wall time of its steps.
    """

    number: int
    drawn: Mapping[str, Any]
    status: str
    error: str | None = None
    curve: Sequence[tuple[int, float]] = field(default_factory=tuple)
    seconds: float | None = None

    @property
    def psnr(self) -> float | None:
        """Of the last validation, dB."""
        return self.curve[-1][1] if self.curve else None

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and dB of the best validation: that checkpoint would ship."""
        return max(self.curve, key=lambda point: point[1], default=None)

    @property
    def steps(self) -> int:
        """Done, as far as they were validated."""
        return self.curve[-1][0] if self.curve else 0


def run_folder(root: Path, number: int) -> Path:
    """Where a trial's training is."""
    return root / RUNS / f"{number:03d}"


def record(root: Path, number: int, *, status: str, error: str | None = None) -> None:
    """Note how a trial ended, once: the first note stays."""
    path = run_folder(root, number) / OUTCOME
    if not path.exists():
        publish_json(path, {"status": status, "error": error})


def ended(root: Path, number: int) -> bool:
    """Tell whether a trial has ended."""
    return (run_folder(root, number) / OUTCOME).exists()


def read_trials(root: Path, combinations: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """Read what became of the trials of a tuning."""
    return [read_trial(root, number, drawn) for number, drawn in enumerate(combinations)]


def read_trial(root: Path, number: int, drawn: Mapping[str, Any]) -> Trial:
    """Read what became of one trial."""
    folder = run_folder(root, number)
    outcome = json.loads((folder / OUTCOME).read_text()) if ended(root, number) else {"status": "running"}
    parts = sorted((folder / METRICS).glob("*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part, columns=["step", "psnr", "seconds"]).to_pylist()]
    curve = tuple((row["step"], row["psnr"]) for row in rows if row["psnr"] is not None)
    seconds = rows[-1]["seconds"] if rows else None
    return Trial(number, drawn, outcome["status"], outcome.get("error"), curve, seconds)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial whose best checkpoint has the highest validation PSNR; None where none has any."""
    measured = [trial for trial in trials if trial.best and trial.status != "error"]
    return max(measured, key=lambda trial: trial.best[1] if trial.best else 0.0, default=None)


def write(root: Path, trials: Sequence[Trial], *, options: Mapping[str, Any] | None) -> None:
    """Write the tables, the plot and the best trial's config, each whole or not at all.

    Args:
        root: TUNE.
        trials: all of them.
        options: of `train`, for the best trial; None where no trial has a PSNR.
    """
    publish_table(root / PARQUET, trials_table(trials))
    rows = table_rows(trials)
    publish(root / TABLE, _markdown(rows).encode())
    publish(root / CSV, _csv(rows).encode())
    best = best_of(trials)
    if best is not None and options is not None:
        publish(root / PLOT, plot(trials))
        publish(root / BEST, best_config(best, options, root=root).encode())


def trials_table(trials: Sequence[Trial]) -> pa.Table:
    """Make the table for programs: `schema.TRIALS` and a column for each drawn option.

    Numbers stay numbers; what is a list or a word is written as the command line takes it.
    """
    rows = [
        {
            "trial": trial.number,
            "status": trial.status,
            "error": trial.error,
            "psnr": trial.psnr,
            "best_psnr": trial.best[1] if trial.best else None,
            "best_step": trial.best[0] if trial.best else None,
            "steps": trial.steps,
            "seconds": trial.seconds,
        }
        for trial in trials
    ]
    table = pa.Table.from_pylist(rows, schema=TRIALS)
    for name in trials[0].drawn:
        values = [trial.drawn[name] for trial in trials]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        table = table.append_column(name, pa.array(values if numbers else [shown_value(value) for value in values]))
    return table


def table_rows(trials: Sequence[Trial]) -> list[dict[str, str]]:
    """Make the table for people: the best trial first, failed ones last."""

    def order(trial: Trial) -> tuple[bool, float]:
        return trial.status == "error", -(trial.best[1] if trial.best else 0.0)

    return [
        {
            "trial": str(trial.number),
            **{name: shown_value(value) for name, value in trial.drawn.items()},
            "best dB": f"{trial.best[1]:.2f}" if trial.best else "",
            "at step": str(trial.best[0]) if trial.best else "",
            "last dB": f"{trial.psnr:.2f}" if trial.psnr is not None else "",
            "steps": str(trial.steps),
            "seconds": f"{trial.seconds:.0f}" if trial.seconds is not None else "",
            "status": trial.status + (f": {trial.error[:SHOWN_ERROR]}" if trial.error else ""),
        }
        for trial in sorted(trials, key=order)
    ]


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines
    )


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def best_config(best: Trial, options: Mapping[str, Any], *, root: Path) -> str:
    """Write the options of the best trial for `raydenoise train SHARDS --config`."""
    step, psnr = best.best or (0, 0.0)
    return (
        f"# Trial {best.number} of {root.name}: {psnr:.2f} dB on the validation split, {step} of {best.steps} steps.\n"
        f"#   raydenoise train SHARDS --config {root.name}/{BEST}\n"
        "# Its length is left out: train takes 10 epochs unless told otherwise. A flag wins over this file.\n"
        + yaml.safe_dump(
            {"output": str(root / "best"), **plain(options)},
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
        )
    )


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Write options with the types of JSON and YAML: lists for tuples, a mapping for `model_args`."""
    pairs = {name: dict(value) if _is_pairs(value) else value for name, value in options.items()}
    return dict(json.loads(json.dumps(pairs)))


def _is_pairs(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(item, tuple) for item in value)


def drop(root: Path, name: str, *, count: int) -> None:
    """Remove a folder of every run: no trial goes on from its checkpoints any more."""
    for number in range(count):
        shutil.rmtree(run_folder(root, number) / name, ignore_errors=True)


def plot(trials: Sequence[Trial]) -> bytes:
    """Draw the validation PSNR over the steps of every trial, and the best PSNR over each drawn option: a PNG.

    A trial that was stopped is hollow; one that failed is a cross at the foot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: it takes half a second to import
    from matplotlib.figure import Figure

    names = list(trials[0].drawn)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * max(columns, 2), 4 + 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(4, 3 * rows), squeeze=False)[:, 0]
    _draw_curves(upper.subplots(), trials)
    for index, name in enumerate(names):
        _draw_option(lower.add_subplot(rows, columns, index + 1), trials, name, first=index % columns == 0)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


def _draw_curves(axes: Any, trials: Sequence[Trial]) -> None:
    best = best_of(trials)
    for trial in trials:
        if not trial.curve:
            continue
        steps, values = zip(*trial.curve, strict=True)
        if trial is best:
            label = "best: " + ", ".join(f"{name} {shown_value(value)}" for name, value in trial.drawn.items())
            style = {"color": "C1", "linewidth": 2.0, "label": label, "zorder": 3}
        else:
            style = {"color": "C0", "alpha": 0.5}
        axes.plot(steps, values, **style)
        hollow = {} if trial.status == "finished" else {"markerfacecolor": "white"}
        axes.plot(steps[-1], values[-1], marker="o", markersize=4, **hollow, **{**style, "label": None})
    failed = sum(trial.status == "error" for trial in trials)
    stopped = sum(trial.status == "stopped" for trial in trials)
    axes.set(
        title=f"{len(trials)} trials: {stopped} stopped early (hollow), {failed} failed",
        xlabel="step",
        ylabel="validation PSNR in dB",
    )
    axes.legend(loc="lower right", fontsize="small")
    axes.grid(alpha=0.3)


def _draw_option(axes: Any, trials: Sequence[Trial], name: str, *, first: bool) -> None:
    values = [trial.drawn[name] for trial in trials]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numeric and len(set(values)) > MANY:
        places: dict[Any, float] = {value: value for value in values}
        low, high = min(values), max(values)
        if low > 0 and high / low > 10:
            axes.set_xscale("log")
    else:
        kinds = [shown_value(value) for value in (sorted(set(values)) if numeric else [])]
        kinds = kinds or sorted({shown_value(value) for value in values})
        places = {value: float(kinds.index(shown_value(value))) for value in values}
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
    best = best_of(trials)
    for trial in trials:
        x = places[trial.drawn[name]]
        colour = "C1" if trial is best else "C0"
        if trial.best and trial.status != "error":
            face = colour if trial.status == "finished" else "white"
            axes.plot(x, trial.best[1], "o", color=colour, markerfacecolor=face, zorder=3 if trial is best else 2)
        else:
            axes.plot(x, 0.02, "x", color="C3", transform=axes.get_xaxis_transform())
    axes.set_xlabel(name)
    if first:
        axes.set_ylabel("best PSNR in dB")
    axes.grid(alpha=0.3)

"""What a person sees when a job ends."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raydenoise.config.space import shown_value
from raydenoise.evaluation.summary import HEADINGS, cells, title

SHOWN_FAILURES = 5


@dataclass
class Totals:
    """Sums over the metrics rows seen so far; rows themselves are not kept."""

    images: int = 0
    failed: int = 0
    megapixels: float = 0.0
    measured: int = 0
    unpaired: int = 0
    psnr_noisy: float = 0.0
    psnr_denoised: float = 0.0
    precisions: set[str] = field(default_factory=set)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, rows: pa.Table, *, referenced: bool) -> None:
        """Count a table of metrics rows."""
        ok = rows.filter(pc.equal(rows["status"], "ok"))
        self.images += len(rows)
        self.failed += len(rows) - len(ok)
        pixels = pc.multiply(ok["height"].cast(pa.int64()), ok["width"].cast(pa.int64()))
        self.megapixels += (pc.sum(pixels).as_py() or 0) / 1e6
        both = ok.filter(pc.and_(pc.is_valid(ok["psnr_noisy"]), pc.is_valid(ok["psnr_denoised"])))
        self.measured += len(both)
        self.psnr_noisy += pc.sum(both["psnr_noisy"]).as_py() or 0.0
        self.psnr_denoised += pc.sum(both["psnr_denoised"]).as_py() or 0.0
        self.precisions |= set(pc.unique(ok["precision"]).to_pylist())
        self.unpaired += ok["mse_noisy"].null_count if referenced else 0
        if len(self.failures) < SHOWN_FAILURES:
            bad = rows.filter(pc.equal(rows["status"], "error")).select(["key", "error_message"]).to_pylist()
            self.failures += [(row["key"], row["error_message"]) for row in bad][: SHOWN_FAILURES - len(self.failures)]

    def summary(self, *, seconds: float, output: str, before: int = 0) -> dict[str, Any]:
        """The figures of the whole job; `before` of its pictures were done when this run began."""
        return {
            "output": output,
            "images": self.images,
            "before": before,
            "ok": self.images - self.failed,
            "failed": self.failed,
            "megapixels": round(self.megapixels, 3),
            "seconds": round(seconds, 1),
            "images_per_s": round((self.images - before) / seconds, 2) if seconds else None,
            "psnr_noisy": round(self.psnr_noisy / self.measured, 2) if self.measured else None,
            "psnr_denoised": round(self.psnr_denoised / self.measured, 2) if self.measured else None,
            "without_reference": self.unpaired,
            "first_failures": [{"key": key, "error": error} for key, error in self.failures],
        }


def print_training(summary: dict[str, Any]) -> None:
    """Print the table at the end of a training to stdout."""
    console, table = _summary_table()
    table.add_row("trained", f"{summary['steps']} steps in {summary['seconds']:.0f} s; best at step {summary['step']}")
    for split in ("validation", "test"):
        for name, value in summary.get(split, {}).items():
            if name.startswith("psnr_denoised"):
                level = name.removeprefix("psnr_denoised").replace("_", " at sigma ")
                noisy = summary[split][name.replace("denoised", "noisy")]
                init = summary[split].get(name.replace("denoised", "init"))
                before = "" if init is None else f"; init {init:.2f} dB"
                told = f"PSNR {noisy:.2f} dB -> {value:.2f} dB ({value - noisy:+.2f} dB{before})"
                table.add_row(f"{split}{level}", told)
    table.add_row("bundle", Text(f"{summary['output']}/bundle"))
    console.print(table)


def print_tuning(summary: dict[str, Any]) -> None:
    """Print the table at the end of a tuning to stdout."""
    console, table = _summary_table()
    counts = f"{summary['finished']} to the end, {summary['stopped']} stopped early, {summary['failed']} failed"
    table.add_row("trials", f"{summary['trials']}: {counts}")
    best = dict(summary["best"])
    number, psnr, step = (best.pop(name) for name in ("trial", "psnr", "step"))
    table.add_row("best", f"trial {number}: {psnr:.2f} dB on the validation split at step {step}")
    for name, value in best.items():
        table.add_row("", f"{name}: {shown_value(tuple(value) if isinstance(value, list) else value)}")
    table.add_row("time", f"{summary['seconds']} s, start-up included")
    table.add_row("table", Text(str(Path(summary["output"]) / "trials.md")))
    table.add_row("plot", Text(str(Path(summary["output"]) / "tune.png")))
    table.add_row("next", Text(f"raydenoise train SHARDS --config {Path(summary['output']) / 'best.yaml'}"))
    console.print(table)
    _print_failures(console, summary, "trials.md")


def print_summary(summary: dict[str, Any]) -> None:
    """Print the table at the end of a job to stdout."""
    console, table = _summary_table()
    before = f"; {summary['before']} of them before" if summary["before"] else ""
    counts = f"{summary['ok']} denoised, {summary['failed']} failed"
    table.add_row("pictures", f"{summary['images']}: {counts}{before}")
    table.add_row("size", f"{summary['megapixels']:.1f} megapixels")
    table.add_row("time", f"{summary['seconds']} s, {summary['images_per_s']} images/s start-up included")
    if summary["psnr_noisy"] is not None:
        gain = summary["psnr_denoised"] - summary["psnr_noisy"]
        table.add_row("PSNR", f"{summary['psnr_noisy']:.2f} dB -> {summary['psnr_denoised']:.2f} dB ({gain:+.2f} dB)")
    if summary["without_reference"]:
        table.add_row(
            "unmeasured", f"{summary['without_reference']} pictures have no usable reference (see column note)"
        )
    table.add_row("output", Text(summary["output"]))
    console.print(table)
    _print_failures(console, summary, "rows with status = 'error'")


def print_prepared(summary: dict[str, Any]) -> None:
    """Print the table at the end of `prepare` to stdout."""
    console, table = _summary_table()
    counts = f"{summary['used']} used, {summary['skipped']} without a patch, {summary['failed']} failed"
    table.add_row("pictures", f"{summary['images']}: {counts}")
    for split, part in summary["splits"].items():
        told = f"{part['patches']} patches of {part['images']} pictures, {part['megabytes']:.1f} MB"
        table.add_row(split, f"{told} in {part['files']} files")
    table.add_row("time", f"{summary['seconds']} s, start-up included")
    table.add_row("output", Text(summary["output"]))
    console.print(table)
    _print_failures(console, summary, "failures.parquet")


def print_evaluation(summary: dict[str, Any]) -> None:
    """Print the tables and verdicts at the end of `evaluate` to stdout."""
    console, facts = _summary_table()
    for part in summary["sets"]:
        table = Table(title=title(part), title_justify="left", title_style="bold", box=None, pad_edge=False)
        chosen = [index for index, heading in enumerate(HEADINGS) if heading != "MSE"]  # 80 characters a line
        for index in chosen:
            table.add_column(HEADINGS[index], justify="left" if index < 2 else "right")
        for entry in part["methods"]:
            table.add_row(*(Text(cells(entry)[index]) for index in chosen))
        console.print(table)
        for found in part["comparisons"]:
            console.print(f"  {found['verdict']}", markup=False)
        console.print()
    facts.add_row("images", f"{summary['images']}: {summary['ok']} evaluated, {summary['failed']} failed")
    facts.add_row("time", f"{summary['seconds']} s, start-up included")
    facts.add_row("output", Text(summary["output"]))
    console.print(facts)
    _print_failures(console, summary, "rows of results/ with status = 'error'")


def _summary_table() -> tuple[Console, Table]:
    """Stdout, and a table of names and values for it."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    return Console(file=sys.stdout, highlight=False, soft_wrap=True), table


def _print_failures(console: Console, summary: dict[str, Any], where: str) -> None:
    for failure in summary["first_failures"]:
        console.print(f"  failed: {failure['key']}: {failure['error']}", markup=False)
    if summary["failed"] > len(summary["first_failures"]):
        console.print(f"  ... and {summary['failed'] - len(summary['first_failures'])} more: {where}")

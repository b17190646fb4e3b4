"""Rows of an evaluation -> means of each method, and which of two is better."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydenoise.core.compare import Difference, measured_on, paired_difference, verdict
from raydenoise.data.layout import generator

SHOWN_FAILURES = 5
COLUMNS = ("uri", "key", "status", "method", "sigma", "sigma_source", "psnr", "ssim", "mse", "seconds")


@dataclass(frozen=True)
class Entry:
    """The results of one method, told the level from one source, at one level: one value an image.

    Attributes:
        method: its name.
        source: "known", "auto", or None for one that takes no level.
        keys: of the images, sorted.
        pictures: that each is, or is a part of.
        psnr: dB; NaN where the result equals the clean image.
        ssim: NaN where there is none.
        mse: at data range 1.
        megapixels: in all.
        seconds: in all; None for the noisy input.
    """

    method: str
    source: str | None
    keys: tuple[str, ...]
    pictures: tuple[str, ...]
    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    mse: NDArray[np.float64]
    megapixels: float
    seconds: float | None

    @property
    def label(self) -> str:
        """The name in verdicts."""
        return f"{self.method} (sigma auto)" if self.source == "auto" else self.method

    def comparable(self, other: "Entry") -> bool:
        """Whether the two differ in one thing: the method, or what it was told."""
        return self.method == other.method or None in (self.source, other.source) or self.source == other.source


def summarize(rows: pa.Table, *, methods: Sequence[str], seed: int) -> dict[str, Any]:
    """Make what `summary.json` holds.

    Args:
        rows: of `schema.EVALUATION`, in any order.
        methods: all, the baseline first.
        seed: of the bootstrap.
    """
    keys = set(rows["key"].to_pylist())
    bad = rows.filter(pc.equal(rows["status"], "error")).sort_by("key")
    failed = {
        row["key"]: f"{row['method']}: {row['error_message']}" if row["method"] else row["error_message"]
        for row in bad.select(["key", "method", "error_message"]).to_pylist()
    }
    first = [{"key": key, "error": error} for key, error in list(failed.items())[:SHOWN_FAILURES]]
    return {
        "images": len(keys),
        "ok": len(keys) - len(failed),
        "failed": len(failed),
        "sets": [_set(level, entries, seed=seed) for level, entries in _levels(rows, methods)],
        "first_failures": first,
    }


def _levels(rows: pa.Table, methods: Sequence[str]) -> Iterator[tuple[float | None, list[Entry]]]:
    """The entries of each level of the added noise, in ascending order; of pairs there is one level, None."""
    good = rows.filter(pc.equal(rows["status"], "ok")).sort_by("key")
    columns = {name: np.array(good[name].to_pylist(), dtype=object) for name in COLUMNS}
    pixels = np.array(good["height"].to_pylist(), float) * np.array(good["width"].to_pylist(), float)
    for level in sorted(set(columns["sigma"]), key=lambda value: value or 0.0):
        entries = []
        for method in methods:
            for source in (None, "known", "auto"):
                chosen = (columns["sigma"] == level) & (columns["method"] == method)
                chosen &= np.array([value == source for value in columns["sigma_source"]], bool)
                if chosen.any():
                    entries.append(_entry({name: column[chosen] for name, column in columns.items()}, pixels[chosen]))
        yield level, entries


def _entry(columns: dict[str, NDArray[Any]], pixels: NDArray[np.float64]) -> Entry:
    seconds = columns["seconds"]
    return Entry(
        method=columns["method"][0],
        source=columns["sigma_source"][0],
        keys=tuple(columns["key"]),
        pictures=tuple(columns["uri"]),
        psnr=columns["psnr"].astype(float),  # None becomes NaN
        ssim=columns["ssim"].astype(float),
        mse=columns["mse"].astype(float),
        megapixels=float(pixels.sum()) / 1e6,
        seconds=None if None in seconds else float(seconds.sum()),
    )


def _set(level: float | None, entries: list[Entry], *, seed: int) -> dict[str, Any]:
    """The results at one level: the methods, best first, and every pair of them that can be compared."""
    noisy, *others = entries
    others.sort(key=lambda entry: -_mean(entry.psnr, otherwise=-np.inf))
    pairs = [pair for pair in combinations(others, 2) if pair[0].comparable(pair[1])]
    return {
        "sigma": level,
        "methods": [_described(entry, _difference(entry, noisy, level, seed)) for entry in [*others, noisy]],
        "comparisons": [
            _compared(first, second, found)
            for first, second in pairs
            if (found := _difference(first, second, level, seed)) is not None
        ],
    }


def _difference(first: Entry, second: Entry, level: float | None, seed: int) -> Difference | None:
    """The difference in PSNR on the images of both; None where there is none."""
    where = {key: index for index, key in enumerate(second.keys)}
    both = [
        (i, where[key])
        for i, key in enumerate(first.keys)
        if key in where and np.isfinite(first.psnr[i]) and np.isfinite(second.psnr[where[key]])
    ]
    if not both:
        return None
    here, there = (list(indices) for indices in zip(*both, strict=True))
    differences = first.psnr[here] - second.psnr[there]
    rng = generator(seed, "bootstrap", *sorted((first.label, second.label)), repr(level))
    return paired_difference(differences, [first.pictures[index] for index in here], rng=rng)


def _described(entry: Entry, gain: Difference | None) -> dict[str, Any]:
    return {
        "method": entry.method,
        "sigma_source": entry.source,
        "images": len(entry.keys),
        "psnr": _mean(entry.psnr),
        "gain": None if gain is None else {"mean": gain.mean, "low": gain.low, "high": gain.high},
        "ssim": _mean(entry.ssim),
        "mse": _mean(entry.mse),
        "megapixels_per_s": entry.megapixels / entry.seconds if entry.seconds else None,
    }


def _compared(first: Entry, second: Entry, found: Difference) -> dict[str, Any]:
    ahead = first if found.mean >= 0 else second
    return {
        "first": {"method": first.method, "sigma_source": first.source},
        "second": {"method": second.method, "sigma_source": second.source},
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "images": found.images,
        "pictures": found.pictures,
        "measured": measured_on(found),
        "better": {"method": ahead.method, "sigma_source": ahead.source} if found.shown else None,
        "verdict": verdict(first.label, second.label, found),
    }


def _mean(values: NDArray[np.float64], *, otherwise: Any = None) -> Any:
    """The mean of what there is."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else otherwise


def to_markdown(summary: dict[str, Any]) -> str:
    """Write the summary as tables and sentences."""
    lines = ["# Evaluation", "", f"{summary['images']} images, {summary['failed']} failed."]
    for part in summary["sets"]:
        lines += ["", f"## {title(part)}", ""]
        lines += _row(HEADINGS) + _row(["---"] * len(HEADINGS))
        for entry in part["methods"]:
            lines += _row(cells(entry))
        lines += ["", *(f"- {found['verdict']}." for found in part["comparisons"])]
    if summary["failed"]:
        lines += ["", "## Failed", "", *(f"- `{bad['key']}`: {bad['error']}" for bad in summary["first_failures"])]
        if summary["failed"] > len(summary["first_failures"]):
            lines.append("- ... and more: rows of results/ with status = 'error'")
    return "\n".join(lines) + "\n"


HEADINGS = ("method", "sigma", "images", "PSNR, dB", "gain, dB", "95% interval", "SSIM", "MSE", "MP/s")


def title(part: dict[str, Any]) -> str:
    """Name a set of results by its noise."""
    return "Pairs" if part["sigma"] is None else f"Sigma {part['sigma']:g}"


def cells(entry: dict[str, Any]) -> list[str]:
    """Write one method's results as the cells of a table row."""
    gain = None if entry["megapixels_per_s"] is None else entry["gain"]  # the noisy input's own is 0
    return [
        entry["method"],
        entry["sigma_source"] or "",
        str(entry["images"]),
        _number(entry["psnr"], "{:.2f}"),
        "" if gain is None else f"{gain['mean']:+.2f}",
        "" if gain is None else f"{gain['low']:.2f} to {gain['high']:.2f}",
        _number(entry["ssim"], "{:.4f}"),
        _number(entry["mse"], "{:.2e}"),
        _number(entry["megapixels_per_s"], "{:.3g}"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _row(texts: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"]

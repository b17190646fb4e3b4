"""Plots for a page, each drawn on light and on dark ground."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raydenoise.report.blocks import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 6.0, 3.2, 180  # inches; twice as many pixels as half of a wide page
GAINS = tuple(f"gain-{number}" for number in range(1, 9))  # of an evaluation's levels, the first eight
NAMES = ("throughput", "noise", "psnr-gain", "stages", "loss", "psnr", "learning-rate", "rate", *GAINS)  # all of them
LIGHT = {"ground": "#ffffff", "ink": "#1c2024", "soft": "#6b7280", "grid": "#e5e7eb"}
DARK = {"ground": "#171a1e", "ink": "#e6e8eb", "soft": "#9aa3ad", "grid": "#2a2f36"}
# Tell apart in both grounds and by the colour-blind: Okabe and Ito's, two of them a little lighter.
COLOURS = ("#e69f00", "#3a8fd6", "#12a37f", "#cc79a7", "#d55e00", "#8b95a1")
BEFORE, AFTER, GOOD, OTHER, BAD, GREY = COLOURS


def draw(name: str, alt: str, paint: Callable[["Axes"], None], *, height: float = HEIGHT) -> Plot:
    """Paint into axes, twice."""
    assert name in NAMES, f"{name} would not be replaced by the next report"
    return Plot(name, alt, *(_png(paint, palette, height) for palette in (LIGHT, DARK)))


def _png(paint: Callable[["Axes"], None], palette: Mapping[str, str], height: float) -> bytes:
    import matplotlib  # here: it takes half a second to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "figure.facecolor": palette["ground"],
        "axes.facecolor": palette["ground"],
        "axes.edgecolor": palette["soft"],
        "axes.labelcolor": palette["soft"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": palette["grid"],
        "text.color": palette["ink"],
        "xtick.color": palette["soft"],
        "ytick.color": palette["soft"],
        "legend.frameon": False,
        "font.size": 10,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        paint(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def throughput(bins: Sequence[Mapping[str, Any]], *, seconds: float, count: int) -> Plot:
    """Pictures a second over the time of a job."""
    span = seconds / count
    unit, scale = ("s", 1.0) if seconds < 300 else ("min", 60.0) if seconds < 3 * 3600 else ("h", 3600.0)
    edges = [index * span / scale for index in range(count + 1)]
    done, failed = [0.0] * count, [0.0] * count
    for row in bins:
        done[row["bin"]] = row["pictures"] / span
        failed[row["bin"]] = row["failed"] / span

    def paint(axes: "Axes") -> None:
        axes.stairs(done, edges, fill=True, color=AFTER, alpha=0.25)
        axes.stairs(done, edges, color=AFTER, linewidth=1.5, label="finished")
        if any(failed):
            axes.stairs(failed, edges, color=BAD, linewidth=1.5, label="of them failed")
            axes.legend()
        axes.set(xlabel=f"{unit} since the start", ylabel="pictures a second", xlim=(0, edges[-1]), ylim=(0, None))
        axes.grid(axis="y")

    return draw("throughput", "Pictures finished a second over the time of the job", paint)


def histograms(
    name: str, alt: str, series: Mapping[str, tuple[Sequence[int], str]], *, low: float, high: float, xlabel: str
) -> Plot:
    """Histograms over one range.

    Args:
        series: label -> counts and colour.
    """

    from matplotlib.ticker import MaxNLocator

    def paint(axes: "Axes") -> None:
        for label, (counts, colour) in series.items():
            edges = [low + (high - low) * index / len(counts) for index in range(len(counts) + 1)]
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts, edges, color=colour, linewidth=1.5, label=label)
        if low < 0 < high:
            axes.axvline(0, color=GREY, linewidth=1)
        if len(series) > 1:
            axes.legend()
        axes.set(xlabel=xlabel, ylabel="pictures", xlim=(low, high), ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")

    return draw(name, alt, paint)


def bars(name: str, alt: str, values: Mapping[str, float], *, xlabel: str, digits: int = 1) -> Plot:
    """Lying bars, the first on top."""

    def paint(axes: "Axes") -> None:
        labels = list(values)
        drawn = axes.barh(labels, list(values.values()), height=0.6, color=AFTER, alpha=0.75)
        axes.bar_label(drawn, fmt=f"{{:,.{digits}f}}", padding=4)
        axes.set(xlabel=xlabel)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.grid(axis="x")

    return draw(name, alt, paint, height=max(HEIGHT, 0.9 + 0.4 * len(values)))


def intervals(name: str, alt: str, values: Mapping[str, tuple[float, float, float]], *, xlabel: str) -> Plot:
    """Points with the two ends of an interval each, the first on top."""

    def paint(axes: "Axes") -> None:
        means, lows, highs = zip(*values.values(), strict=True)
        reach = [
            [mean - low for mean, low in zip(means, lows, strict=True)],
            [high - mean for mean, high in zip(means, highs, strict=True)],
        ]
        axes.errorbar(means, list(values), xerr=reach, fmt="o", color=AFTER, capsize=4, markersize=5)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set(xlabel=xlabel)
        axes.margins(y=0.15)
        axes.invert_yaxis()
        axes.grid(axis="x")

    return draw(name, alt, paint, height=1.3 + 0.35 * len(values))


def curves(
    name: str,
    alt: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    ylabel: str,
    log: bool = False,
    zero: bool = False,
    best: float | None = None,
) -> Plot:
    """Lines over the steps of a training.

    Args:
        lines: label -> points.
        log: the axis is logarithmic.
        zero: the axis begins at zero.
        best: step of the checkpoint that ships.
    """

    def paint(axes: "Axes") -> None:
        for colour, (label, points) in zip(COLOURS, lines.items(), strict=False):
            marker = "o" if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.5, marker=marker, markersize=3, label=label)
        if log:
            axes.set_yscale("log")
        if zero:
            axes.set_ylim(bottom=0)
        if best is not None:
            axes.axvline(best, color=GREY, linewidth=1, linestyle="--", label=f"best, step {best:,.0f}")
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend()
        axes.set(xlabel="step", ylabel=ylabel)
        axes.grid()

    return draw(name, alt, paint)

"""Learning curves."""

import io

from raydenoise.data.place import Place
from raydenoise.data.storage import publish, read_parquet


def learning_curve(metrics: Place, *, path: Place) -> None:
    """Draw the loss and the validation PSNR of a training run over its steps.

    Args:
        metrics: folder with the run's rows (`data.schema.TRAINING`).
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: it takes half a second to import
    from matplotlib.figure import Figure

    rows = read_parquet(metrics).sort_by("step").to_pydict()
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(rows["step"], rows["loss"], linewidth=1)
    upper.set(ylabel="loss", yscale="log")
    lowest, highest = upper.get_ylim()
    upper.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    # Within a decade there may be no major tick; over more of them the labels of all minor ones would overlap.
    upper.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if highest < 10 * lowest else "")
    for name, label in (("psnr_15", "sigma 15"), ("psnr_25", "sigma 25"), ("psnr_50", "sigma 50"), ("psnr", "mean")):
        points = [(step, value) for step, value in zip(rows["step"], rows[name], strict=True) if value is not None]
        if points:
            lower.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    lower.set(xlabel="step", ylabel="validation PSNR in dB")
    if lower.get_legend_handles_labels()[0]:
        lower.legend()
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    publish(path, png.getvalue())

"""The page of a denoise run."""

from collections.abc import Iterator, Sequence, Set
from datetime import datetime
from typing import Any

from raydenoise.data.place import Place
from raydenoise.data.schema import METRICS
from raydenoise.report import metrics, outliers, plots
from raydenoise.report.blocks import (
    MISSING,
    Block,
    Comparison,
    Comparisons,
    Note,
    Page,
    Plot,
    Section,
    Table,
    Tile,
    decibels,
    duration,
    how_it_ran,
    number,
    percent,
    when,
)
from raydenoise.report.outliers import Finding
from raydenoise.report.query import Rows
from raydenoise.report.views import compare


def page(root: Place, manifest: dict[str, Any], *, pictures: int) -> Page:
    """Describe a run.

    Args:
        root: OUT.
        manifest: its content.
        pictures: best and as many worst ones to show.
    """
    rows = Rows(root / "metrics", METRICS)
    totals, typical = metrics.totals(rows), metrics.typical(rows)
    looks = _looks(rows, totals, pictures=pictures)
    sections = [
        looks,
        _outliers(rows, typical, manifest, shown=_keys(looks) if pictures else None),
        _quality(rows, totals),
        _failures(rows, totals),
        _time(rows, totals, manifest),
        _inputs(rows, totals),
        how_it_ran(
            {
                "Options": manifest.get("config"),
                "Model": {**manifest.get("model", {}), "precision": manifest.get("precision")},
                "Ray": manifest.get("ray"),
                "Versions": manifest.get("versions"),
            }
        ),
    ]
    model = manifest.get("model", {}).get("name", MISSING)
    sigma = manifest.get("config", {}).get("sigma", MISSING)
    return Page(
        kind="denoising",
        title=root.name,
        status=str(manifest.get("status", MISSING)),
        facts=[f"model {model}", f"sigma {sigma}", *when(manifest)],
        tiles=_tiles(totals, typical, manifest),
        sections=[section for section in sections if section is not None],
    )


def _tiles(totals: dict[str, Any], typical: dict[str, Any], manifest: dict[str, Any]) -> list[Tile]:
    failed = totals["failed"]
    tiles = [
        Tile(
            "pictures", number(totals["pictures"]), f"{totals['ok']:,} denoised, {totals['megapixels']:,.1f} megapixels"
        ),
        Tile("failed", number(failed), percent(failed, totals["pictures"]), "bad" if failed else "plain"),
    ]
    if totals["gains"]:
        gain = totals["psnr_denoised"] - totals["psnr_noisy"]
        means = f"{totals['psnr_noisy']:.2f} → {decibels(totals['psnr_denoised'])}, {totals['gains']:,} pictures"
        tiles.append(Tile("mean PSNR gain", decibels(gain, sign=True), means, "good" if gain > 0 else "bad"))
    if totals["ssim_denoised"] is not None:
        tiles.append(Tile("mean SSIM", f"{totals['ssim_denoised']:.3f}", f"{totals['ssim_noisy']:.3f} before"))
    if typical["sigma_in"] is not None:
        value = f"{typical['sigma_in']:.1f} → {number(typical['sigma_out'], 1)}"
        tiles.append(Tile("estimated noise", value, "median, 8-bit grey levels"))
    seconds, before = manifest.get("summary", {}).get("seconds"), _before(manifest)
    if seconds and totals["pictures"] > before:
        each = (totals["pictures"] - before) / seconds
        note = "of the last start, start-up included" if before else "start-up included"
        tiles.append(Tile("pictures a second", number(each, 2 if each < 10 else 1), note))
    return tiles


def _before(manifest: dict[str, Any]) -> int:
    """How many pictures were done before the last start."""
    return int(manifest.get("summary", {}).get("before", 0))


def _looks(rows: Rows, totals: dict[str, Any], *, pictures: int) -> Section | None:
    """Best and worst: by PSNR gain, or where there is no reference by the noise that was taken away."""
    if not pictures or not totals["ok"]:
        return None
    measured = totals["gains"] > 0
    value, shown = (metrics.GAIN, "{:+.2f} dB") if measured else (metrics.REMOVED, "{:.1f} grey levels removed")
    best = metrics.ranked(rows, value, count=pictures, best=True)
    taken = {row["key"] for row in best}
    worst = [row for row in metrics.ranked(rows, value, count=2 * pictures, best=False) if row["key"] not in taken]
    chosen = [("best", row) for row in best] + [("worst", row) for row in worst[:pictures]]
    if not chosen:
        return None
    looks = [compare(row, label=label, facts=line(row, shown.format(row["value"]))) for label, row in chosen]
    by = "PSNR gain" if measured else "estimated noise taken away, since there were no references"
    return Section(
        "Best and worst",
        [Comparisons(looks)],
        text=f"By {by}. Drag the handle, or use the arrow keys. Beside it, what was taken away, four times as strong: "
        "edges in it are detail that was lost. Each part is the one that changed most, pixel by pixel.",
    )


def line(row: dict[str, Any], first: str) -> str:
    """Describe a denoised picture in a line."""
    parts = [first]
    if row["psnr_denoised"] is not None and row["psnr_noisy"] is not None:
        parts.append(f"PSNR {row['psnr_noisy']:.2f} → {row['psnr_denoised']:.2f}")
    if row["sigma_in_estimate"] is not None and row["sigma_out_estimate"] is not None:
        parts.append(f"noise {row['sigma_in_estimate']:.1f} → {row['sigma_out_estimate']:.1f}")
    parts.append(f"{row['width']}x{row['height']}")
    return " · ".join(parts)


def _keys(section: Section | None) -> set[str]:
    blocks = section.blocks if section is not None else ()
    return {view.key for block in blocks if isinstance(block, Comparisons) for view in block.items}


def _outliers(rows: Rows, typical: dict[str, Any], manifest: dict[str, Any], *, shown: Set[str] | None) -> Section:
    """What the rules name; `shown` are pictures that are to be seen already, None shows none."""
    found = [outliers.find(rows, rule) for rule in outliers.rules(typical, manifest.get("config", {}))]
    found = [finding for finding in found if finding.count]
    if not found:
        return Section("Worth a look", [Note("No picture stands out by any rule.")])
    table = Table(
        ("rule", "pictures", "the first", ""),
        [
            (
                finding.rule.name if first else "",
                number(finding.count) if first else "",
                str(row["key"]),
                outliers.told(finding.rule, row),
            )
            for finding in found
            for first, row in zip((True, *[False] * outliers.LISTED), finding.rows, strict=False)
        ],
        "tnct",
    )
    why = Table(("rule", "what it says"), [(finding.rule.name, finding.rule.why) for finding in found], "tt")
    looks = list(_views(found, shown)) if shown is not None else []
    return Section("Worth a look", [table, why, *([Comparisons(looks)] if looks else [])])


def _views(found: Sequence[Finding], shown: Set[str]) -> Iterator[Comparison]:
    """A picture of each rule, the first that is not to be seen already."""
    seen = set(shown)
    for finding in found:
        row = next((row for row in finding.rows if str(row["key"]) not in seen), None)
        if row is not None:
            seen.add(str(row["key"]))
            yield compare(row, label=finding.rule.name, facts=line(row, outliers.told(finding.rule, row)))


def _quality(rows: Rows, totals: dict[str, Any]) -> Section | None:
    count = metrics.bins(totals["ok"], least=12, most=60)
    drawn = [plot for plot in (_noise(rows, count), _gain(rows, count)) if plot is not None]
    if not drawn:
        return None
    text = "The outermost bins hold all that lies beyond them."
    return Section("Distributions", drawn, text=text)


def _noise(rows: Rows, count: int) -> Plot | None:
    before, after = (metrics.limits(rows, f"sigma_{side}_estimate") for side in ("in", "out"))
    if before is None or after is None:
        return None
    high = max(1.0, 1.05 * max(before[1], after[1]))
    series = {
        label: (metrics.histogram(rows, f"sigma_{side}_estimate", low=0, high=high, count=count), colour)
        for label, side, colour in (("before", "in", plots.BEFORE), ("after", "out", plots.AFTER))
    }
    alt = "Histogram of the estimated noise before and after"
    return plots.histograms("noise", alt, series, low=0, high=high, xlabel="estimated noise, 8-bit grey levels")


def _gain(rows: Rows, count: int) -> Plot | None:
    found = metrics.limits(rows, f"({metrics.GAIN})")
    if found is None:
        return None
    low, high = min(0.0, found[0]), max(1.0, 1.05 * found[1])
    series = {"gain": (metrics.histogram(rows, f"({metrics.GAIN})", low=low, high=high, count=count), plots.GOOD)}
    return plots.histograms(
        "psnr-gain", "Histogram of the PSNR gain", series, low=low, high=high, xlabel="PSNR gain, dB"
    )


def _failures(rows: Rows, totals: dict[str, Any]) -> Section:
    if not totals["failed"]:
        return Section("Failures", [Note("No picture failed." if totals["pictures"] else "There is no row yet.")])
    types = metrics.failures(rows)
    counts = [(row["type"], number(row["pictures"]), percent(row["pictures"], totals["failed"])) for row in types]
    examples = [
        (row["type"] if not index else "", example["key"], example["message"])
        for row in types
        for index, example in enumerate(row["examples"])
    ]
    return Section(
        "Failures",
        [
            Table(("type", "pictures", "of the failed"), counts, "tnn"),
            Table(("type", "picture", "what was wrong"), examples, "tct", "Examples, the first by name"),
        ],
        text="These rows have status = 'error' in the metrics; the pictures were left as they were.",
    )


def _time(rows: Rows, totals: dict[str, Any], manifest: dict[str, Any]) -> Section | None:
    if totals["last"] is None:
        return None
    started = manifest.get("started_at")
    start = datetime.fromisoformat(started).timestamp() if isinstance(started, str) else totals["first"]
    again = _before(manifest) > 0 if "summary" in manifest else totals["first"] < start
    start = min(start, totals["first"])
    count = metrics.bins(totals["pictures"], least=20, most=120)
    seconds = max(totals["last"] - start, 0.001)
    moments = metrics.moments(rows, start=start, end=start + seconds, count=count)
    stages = metrics.stages(rows)
    sums = {stage["stage"]: stage["total"] for stage in stages}
    blocks: list[Block] = [
        plots.throughput(moments, seconds=seconds, count=count),
        plots.bars("stages", "Seconds of each stage", sums, xlabel="seconds, all pictures together"),
        _stages(stages),
        _workers(rows),
    ]
    if again:
        return Section("Time", blocks)
    text = f"The first picture was finished after {duration(totals['first'] - start)}"
    steady = totals["last"] - totals["first"]
    text += f"; from then on it were {(totals['pictures'] - 1) / steady:,.2f} pictures a second." if steady > 0 else "."
    return Section("Time", blocks, text=text)


def _stages(stages: list[dict[str, Any]]) -> Table:
    spent = sum(stage["total"] for stage in stages)
    lines = [
        (
            stage["stage"],
            duration(stage["total"]),
            percent(stage["total"], spent),
            *(duration(stage[name]) for name in ("mean", "median", "p95", "longest")),
        )
        for stage in stages
    ]
    head = ("stage", "sum", "share", "mean", "median", "95 %", "longest")
    return Table(head, lines, "tnnnnnn", "Time per stage, a picture at a time; stages and workers overlap")


def _workers(rows: Rows) -> Table:
    lines = [
        (
            worker["worker"],
            number(worker["pictures"]),
            number(worker["megapixels"], 1),
            number(worker["megapixels"] / worker["infer_s"], 2) if worker["infer_s"] else MISSING,
        )
        for worker in metrics.workers(rows)
    ]
    head = ("worker", "pictures", "megapixels", "megapixels a second in the network")
    return Table(head, lines, "cnnn", "Workers")


def _inputs(rows: Rows, totals: dict[str, Any]) -> Section | None:
    found = [
        (
            row["format"],
            number(row["channels"]),
            f"{row['bit_depth']} bit",
            number(row["pictures"]),
            number(row["megapixels"], 1),
            number(row["sigma_in"], 1),
        )
        for row in metrics.inputs(rows)
    ]
    head = ("format", "channels", "depth", "pictures", "megapixels", "median noise")
    blocks: list[Block] = [Table(head, found, "tnnnnn")]
    if totals["notes"]:
        noted = [(row["key"], row["note"]) for row in metrics.notes(rows)]
        blocks.append(
            Table(("picture", "note"), noted, "ct", f"Notes: {totals['notes']:,} pictures, the first by name")
        )
    return Section("What came in", blocks) if found or totals["notes"] else None

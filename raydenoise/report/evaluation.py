"""The page of an evaluation."""

import json
import math
from collections.abc import Iterator
from typing import Any

from raydenoise.data.place import Place
from raydenoise.data.schema import EVALUATION
from raydenoise.report import plots
from raydenoise.report.blocks import (
    MISSING,
    Block,
    Note,
    Page,
    Plot,
    Section,
    Sheet,
    Table,
    Tile,
    decibels,
    how_it_ran,
    number,
    percent,
    when,
)
from raydenoise.report.query import Rows

RAN = {"Options": "config", "Methods": "models", "Versions": "versions"}
EXTREMES = 3  # pictures that gained least, of each method and level
GAIN = "psnr - psnr_noisy"


def page(root: Place, manifest: dict[str, Any]) -> Page:
    """Describe an evaluation.

    Args:
        root: EVAL.
        manifest: its content.

    Raises:
        ValueError: summary.json or the results cannot be read.
    """
    rows = Rows(root / "results", EVALUATION)
    summary = _summary(root)
    sets = summary.get("sets", [])
    sections = [
        Section("Verdicts", list(_verdicts(sets))) if sets else Section("Verdicts", [Note("There is no summary yet.")]),
        *(
            Section(_level(part).capitalize(), [_methods(part), *_gains(part, index)])
            for index, part in enumerate(sets)
        ),
        _hurt(rows),
        Section("Pictures", [Sheet("the same part of a few pictures by each method", sheet)])
        if (sheet := _bytes(root / "sheet.png"))
        else None,
        _failures(summary),
        how_it_ran({name: manifest.get(key) for name, key in RAN.items()}),
    ]
    return Page(
        kind="evaluation",
        title=root.name,
        status=str(manifest.get("status", MISSING)),
        facts=[f"{len(manifest.get('models', {}))} methods", *when(manifest)],
        tiles=_tiles(summary),
        sections=[section for section in sections if section is not None],
    )


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    failed = summary.get("failed", 0)
    return [
        Tile("pictures", number(summary.get("images")), f"{summary.get('ok', 0):,} with all results"),
        Tile("failed", number(failed), tone="bad" if failed else "plain"),
        *(_best_tile(part) for part in summary.get("sets", [])),
    ]


def _best_tile(part: dict[str, Any]) -> Tile:
    label, best = f"best, {_level(part)}", _best(part)
    if best is None:
        return Tile(label, "none", "no method beats the noisy input", "bad")
    return Tile(label, best["method"], f"PSNR {decibels(best['psnr'])}")


def _best(part: dict[str, Any]) -> dict[str, Any] | None:
    """The method with the highest PSNR; None where no method beats the noisy input."""
    best, noisy = part["methods"][0], part["methods"][-1]
    # A PSNR of None is infinite: the pictures equal the clean ones.
    reached, before = (math.inf if one["psnr"] is None else one["psnr"] for one in (best, noisy))
    return best if reached > before else None


def _summary(root: Place) -> dict[str, Any]:
    path = root / "summary.json"
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content
    except FileNotFoundError:
        return {}  # the evaluation did not come to its end
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; allowed: as raydenoise evaluate wrote it") from error


def _bytes(path: Place) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # there was nothing to show


def _level(part: dict[str, Any]) -> str:
    return "pairs" if part["sigma"] is None else f"sigma {part['sigma']:g}"


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['method']} (sigma auto)" if entry["sigma_source"] == "auto" else str(entry["method"])


def _verdicts(sets: list[dict[str, Any]]) -> Iterator[Block]:
    """Of each level the verdict about the best two methods aloud; all in a table where it says more."""
    for part in sets:
        yield Note(f"{_level(part).capitalize()}: {_said(part)}.", loud=True)
    rows = [(_level(part), found["verdict"]) for part in sets for found in part["comparisons"]]
    if any(found["verdict"] != _said(part) for part in sets for found in part["comparisons"]):
        yield Table(("noise", "verdict"), rows, "tt", "Every pair that can be compared")


def _said(part: dict[str, Any]) -> str:
    best = _best(part)
    if best is None:
        return "no method beats the noisy input"
    for found in part["comparisons"]:  # the best methods first
        methods = {found[side]["method"] for side in ("first", "second")}
        if len(methods) == 2 and best["method"] in methods:
            return str(found["verdict"])
    return f"{best['method']} has the highest PSNR; there is nothing to compare it with"


def _gains(part: dict[str, Any], index: int) -> Iterator[Plot]:
    """The gain of each method over the noisy pictures, with its interval."""
    gains = {
        _name(entry): (entry["gain"]["mean"], entry["gain"]["low"], entry["gain"]["high"])
        for entry in part["methods"]
        if entry["gain"] is not None and entry["megapixels_per_s"] is not None
    }
    if gains and index < len(plots.GAINS):
        alt = f"Gain of each method over the noisy pictures, {_level(part)}"
        yield plots.intervals(plots.GAINS[index], alt, gains, xlabel="gain over the noisy picture, dB, 95% interval")


def _methods(part: dict[str, Any]) -> Block:
    head = ("method", "told", "images", "PSNR", "gain", "95% interval", "SSIM", "MSE", "megapixels/s")
    rows = []
    for entry in part["methods"]:
        gain = entry["gain"] if entry["megapixels_per_s"] is not None else None
        rows.append(
            (
                entry["method"],
                entry["sigma_source"] or "",
                number(entry["images"]),
                decibels(entry["psnr"]),
                "" if gain is None else decibels(gain["mean"], sign=True),
                "" if gain is None else f"{gain['low']:.2f} to {gain['high']:.2f}",
                number(entry["ssim"], 4),
                MISSING if entry["mse"] is None else f"{entry['mse']:.2e}",
                "" if entry["megapixels_per_s"] is None else f"{entry['megapixels_per_s']:.3g}",
            )
        )
    return Table(head, rows, "ttnnnnnnn")


def _hurt(rows: Rows) -> Section | None:
    """How the gains scatter, and the pictures that gained least."""
    where = f"status = 'ok' AND isfinite({GAIN}) AND sigma_source IS NOT DISTINCT FROM ? AND method = ?"
    where += " AND sigma IS NOT DISTINCT FROM ?"
    groups = rows.all(
        f"""SELECT sigma, method, sigma_source, count(*) AS pictures, count(*) FILTER ({GAIN} < 0) AS worse,
            min({GAIN}) AS least, median({GAIN}) AS median, max({GAIN}) AS most
        FROM rows WHERE status = 'ok' AND isfinite({GAIN}) AND method IS NOT NULL
        GROUP BY ALL HAVING max(abs({GAIN})) > 0 ORDER BY sigma, method, sigma_source LIMIT 100"""
    )
    if not groups:
        return None
    spread = Table(
        ("noise", "method", "worse than noisy", "", "least gain", "median", "most"),
        [
            (
                _level(group),
                _name(group),
                number(group["worse"]),
                percent(group["worse"], group["pictures"]),
                *(decibels(group[name], sign=True) for name in ("least", "median", "most")),
            )
            for group in groups
        ],
        "ttnnnnn",
        "Gain over the noisy picture, picture by picture",
    )
    least = [
        (_level(group), _name(group), entry["key"], decibels(entry["psnr"]), decibels(entry["gain"], sign=True))
        for group in groups
        for entry in rows.all(
            f"SELECT key, psnr, {GAIN} AS gain FROM rows WHERE {where} ORDER BY gain, key LIMIT {EXTREMES}",
            group["sigma_source"],
            group["method"],
            group["sigma"],
        )
    ]
    table = Table(("noise", "method", "picture", "PSNR", "gain"), least, "ttcnn", "Gained least")
    return Section("Where it helped, where it hurt", [spread, table])


def _failures(summary: dict[str, Any]) -> Section | None:
    if not summary.get("failed"):
        return None
    rows = [(failure["key"], failure["error"]) for failure in summary["first_failures"]]
    text = f"{summary['failed']:,} pictures, the first {len(rows)} of them here; all are in results/."
    return Section("Failures", [Table(("picture", "what was wrong"), rows, "ct")], text=text)

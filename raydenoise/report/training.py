"""The page of a training run."""

import json
from typing import Any

from raydenoise.data.place import Place, Remote, place
from raydenoise.data.schema import TRAINING
from raydenoise.data.shards import KIND as SHARDS_KIND
from raydenoise.report import plots, shards
from raydenoise.report.blocks import (
    MISSING,
    Note,
    Page,
    Plot,
    Section,
    Table,
    Tile,
    Tone,
    decibels,
    duration,
    facts,
    how_it_ran,
    number,
    readable,
    when,
)
from raydenoise.report.query import Rows

RAN = {"Options": "config", "Resources": "resources", "Workers": "workers", "Versions": "versions"}
POINTS = 600  # of a curve, at most: more would be narrower than a pixel
LEVELS = {"psnr": "mean", "psnr_15": "sigma 15", "psnr_25": "sigma 25", "psnr_50": "sigma 50"}
SHOWN_OF_CARD = ("name", "architecture", "arguments", "channels", "noise_map", "sigma_range", "alignment", "radius")


def page(root: Place, manifest: dict[str, Any]) -> Page:
    """Describe a training.

    Args:
        root: RUN.
        manifest: its content.
    """
    rows = Rows(root / "metrics", TRAINING)
    card, lack = _card(root)
    scores = card.get("scores") or manifest.get("summary", {})
    recipe = manifest.get("recipe", {})
    trained = card.get("training", {})
    sections = [
        Section("Learning curves", _curves(rows, best=scores.get("step"))),
        _scores(scores),
        _samples(manifest, root),
        Section(
            "The model that ships",
            [
                Note(lack)
                if lack
                else facts({name: card.get(name) for name in (*SHOWN_OF_CARD, "halo", "fixed_size", "sha256")}),
                facts({name: value for name, value in trained.items() if name != "recipe"}, caption="How it was made"),
            ],
        ),
        Section("Recipe", [facts(recipe)], folded=True),
        how_it_ran({name: manifest.get(key) for name, key in RAN.items()}),
    ]
    return Page(
        kind="training",
        title=root.name,
        status=str(manifest.get("status", MISSING)),
        facts=[*(f"{name} {readable(recipe.get(name))}" for name in ("architecture", "precision")), *when(manifest)],
        tiles=_tiles(rows, recipe, scores),
        sections=[section for section in sections if section is not None],
    )


def _card(root: Place) -> tuple[dict[str, Any], str]:
    """The bundle's card, or why there is none."""
    try:
        return json.loads((root / "bundle" / "card.json").read_bytes()), ""
    except FileNotFoundError:
        return {}, "There is no bundle: it is written when a training ends."
    except (OSError, ValueError) as error:
        return {}, f"The bundle's card cannot be read: {error}"


def _tiles(rows: Rows, recipe: dict[str, Any], scores: dict[str, Any]) -> list[Tile]:
    last = rows.one(
        """SELECT max(step) AS step, max(seconds) AS seconds, median(patches_per_s) AS rate, max(psnr) AS psnr,
            arg_max(step, psnr) AS best FROM rows"""
    )
    tiles = [
        Tile("steps", number(last["step"]), f"of {number(recipe.get('steps'))}"),
        Tile("time", duration(last["seconds"]), f"{number(last['rate'])} patches a second"),
        Tile("best validation", decibels(last["psnr"]), f"step {number(last['best'])}"),
    ]
    for split in ("validation", "test"):
        pairs = _pairs(scores.get(split, {}))
        if pairs:
            gain = sum(after - before for _, before, after in pairs) / len(pairs)
            tone: Tone = "good" if gain > 0 else "bad"
            tiles.append(Tile(f"{split} gain", decibels(gain, sign=True), "mean over the levels", tone))
    return tiles


def _curves(rows: Rows, *, best: float | None) -> list[Plot | Note]:
    last = rows.one("SELECT max(step) AS step FROM rows")["step"]
    if last is None:
        return [Note("There is no row yet: the first one comes after 20 steps.")]
    width = max(1.0, last / POINTS)
    columns = ", ".join(f"avg({name}) AS {name}" for name in TRAINING.names if name != "step")
    found = rows.all(f"SELECT max(step) AS step, {columns} FROM rows GROUP BY floor(step / ?) ORDER BY step", width)

    def line(name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in found if row[name] is not None]

    levels = {label: points for name, label in LEVELS.items() if (points := line(name))}
    drawn: list[Plot | Note] = [
        plots.curves("loss", "Training loss over the steps", {"loss": line("loss")}, ylabel="loss", log=True, best=best)
    ]
    if levels:
        alt = "Validation PSNR over the steps"
        drawn.append(plots.curves("psnr", alt, levels, ylabel="validation PSNR, dB", best=best))
    for name, column, label in (
        ("learning-rate", "learning_rate", "learning rate"),
        ("rate", "patches_per_s", "patches/s"),
    ):
        alt = f"{label.capitalize()} over the steps"
        drawn.append(plots.curves(name, alt, {label: line(column)}, ylabel=label, zero=True))
    return drawn


def _pairs(split: dict[str, float]) -> list[tuple[str, float, float]]:
    """Level, PSNR before, PSNR after."""
    names = [name.removeprefix("psnr_denoised") for name in split if name.startswith("psnr_denoised")]
    return [
        (name.removeprefix("_") or "pairs", split[f"psnr_noisy{name}"], split[f"psnr_denoised{name}"]) for name in names
    ]


def _scores(scores: dict[str, Any]) -> Section | None:
    rows = [
        (split, level, decibels(before), decibels(after), decibels(after - before, sign=True))
        for split in ("validation", "test")
        for level, before, after in _pairs(scores.get(split, {}))
    ]
    if not rows:
        return None
    head = ("split", "sigma", "noisy", "denoised", "gain")
    text = "Mean PSNR of whole patches that took no part in the training; the validation split chose the checkpoint."
    return Section("Scores", [Table(head, rows, "tnnnn")], text=text)


def _samples(manifest: dict[str, Any], root: Place) -> Section | None:
    """The sheets of the shards it was trained from, where they can still be read: on a disk, or where RUN is too."""
    folder = manifest.get("shards", {}).get("root")
    if not isinstance(folder, str):
        return None
    try:
        there = place(folder)
        if isinstance(there, Remote) and not isinstance(root, Remote):
            return None
        content = json.loads((there / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("kind") != SHARDS_KIND:
        return None
    found = list(shards.sheets(there))
    return Section("What it was trained from", found, text=folder) if found else None

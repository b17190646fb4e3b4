"""`raydenoise preview`: a few pictures before and after, with several settings, on one sheet. Without Ray."""

import io
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
from numpy.typing import NDArray

from raydenoise.config import PreviewConfig
from raydenoise.config.denoise import Sigma
from raydenoise.core.image import ImageError, decode
from raydenoise.core.metrics import quality
from raydenoise.core.noise import estimate_sigma
from raydenoise.data.inputs import Source, list_sources, pair_references
from raydenoise.data.place import Remote, place
from raydenoise.data.storage import publish, read_picture
from raydenoise.fetching import on_disk
from raydenoise.model.card import check_sigma, read_checked

if TYPE_CHECKING:
    from raydenoise.model.denoiser import Denoiser

GAP, LINE = 10, 20  # pixels between cells, and of a line of text
INK, FAINT, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
MARK = ("Software", "raydenoise preview")  # in the PNG: only a sheet of ours is replaced


@dataclass(frozen=True)
class Setting:
    """One column.

    Attributes:
        model: as given.
        name: of the model, for people.
        sigma: the level; None for a network that takes none.
        strength: 0 to 1.
    """

    model: str
    name: str
    sigma: Sigma | None
    strength: float

    @property
    def title(self) -> str:
        """For people: the model on the first line, its settings on the second."""
        level = "takes no sigma" if self.sigma is None else f"sigma {_number(self.sigma)}"
        return f"{self.name}\n{level}, strength {self.strength:g}"


@dataclass(frozen=True)
class Cell:
    """What is pasted, and the line below it."""

    pixels: NDArray[Any]
    label: str


def run(config: PreviewConfig) -> dict[str, Any]:
    """Denoise the middle of a few pictures with every setting and draw them; returns the summary.

    Raises:
        ValueError: an argument is not allowed, there are no pictures, or a model does not take a sigma.
        RuntimeError: none of the pictures could be read.
    """
    path = place(config.output, argument="output")
    if isinstance(path, Remote):
        raise ValueError(f"output is {str(path)!r}; allowed: a local file")
    _check_replaceable(path)
    sources = list_sources(config.input)
    references = _references(config, sources)
    chosen = np.unique(np.linspace(0, len(sources) - 1, min(config.pictures, len(sources))).round().astype(int))
    denoisers = _load(config)
    settings = _settings(config, denoisers)
    rows: list[tuple[str, list[Cell]]] = []
    shown, failures, notes = [], [], []
    for index in chosen:
        source, reference = sources[index], references[index]
        try:
            title, cells, facts, note = _row(config, source, reference, settings, denoisers)
        except (ImageError, OSError) as error:
            failures.append({"key": source.key, "error": str(error)})
            continue
        rows.append((title, cells))
        shown.append({"key": source.key, **facts})
        notes += [f"{source.key}: {note}"] if note else []
    if not rows:
        first = f"{failures[0]['key']}: {failures[0]['error']}"
        raise RuntimeError(f"none of {len(failures)} pictures could be read; {first}")
    titles = ["before", *(setting.title for setting in settings), *(["clean"] if config.reference else [])]
    publish(path, _sheet(rows, titles, side=config.crop))
    return {
        "output": str(path),
        "pictures": shown,
        "listed": len(sources),
        "settings": [setting.title.replace("\n", ", ") for setting in settings],
        "failed": len(failures),
        "first_failures": failures,
        "notes": notes,
    }


def show(summary: dict[str, Any]) -> None:
    """Print what was drawn, and what was not."""
    pictures = summary["pictures"]
    print(f"{summary['output']}: {len(pictures)} of {summary['listed']} pictures, {len(summary['settings'])} settings")
    measured = [picture for picture in pictures if picture["psnr_noisy"] is not None]
    if measured:
        before = np.mean([picture["psnr_noisy"] for picture in measured])
        print(f"  PSNR of the crops, mean of {len(measured)}: {before:.2f} dB before")
    for index, setting in enumerate(summary["settings"]):
        pairs = [(one["psnr_noisy"], one["psnr"][index]) for one in measured if one["psnr"][index] is not None]
        if pairs:
            before, after = np.mean(pairs, axis=0)
            some = f", mean of {len(pairs)}" if len(pairs) < len(measured) else ""
            print(f"  {after:.2f} dB ({after - before:+.2f} dB{some}) by {setting}")
    for note in summary["notes"]:
        print(f"  {note}")
    for failure in summary["first_failures"]:
        print(f"  skipped: {failure['key']}: {failure['error']}", file=sys.stderr)


def _check_replaceable(path: Path) -> None:
    """Raise ValueError where the sheet's name is that of something else."""
    if not path.exists():
        return
    try:
        with PIL.Image.open(path) as picture:
            ours = picture.info.get(MARK[0]) == MARK[1]
    except OSError:  # a folder, or no picture
        ours = False
    if not ours:
        raise ValueError(f"output {str(path)!r} exists and is no preview; allowed: another name")


def _references(config: PreviewConfig, sources: Sequence[Source]) -> list[str | None]:
    keys = [source.key for source in sources]
    return pair_references(keys, config.reference) if config.reference else [None] * len(keys)


def _load(config: PreviewConfig) -> dict[str, "Denoiser"]:
    """Check what can be checked by the cards, then load the models."""
    with ExitStack() as stack:
        paths = {name: stack.enter_context(on_disk(name)) for name in config.models}
        for path in paths.values():
            if path.is_dir():
                card = read_checked(path)
                for level in config.sigma:
                    if level != "auto":
                        check_sigma(level, card=card)
        from raydenoise.model.denoiser import Denoiser  # imports keras: after the checks

        return {name: Denoiser.load(path, precision=config.precision) for name, path in paths.items()}


def _settings(config: PreviewConfig, denoisers: dict[str, "Denoiser"]) -> list[Setting]:
    """Every model with every level that it takes and every strength.

    A model is named by its card, or as given where two would share a name.
    """
    names = Counter(denoiser.card.name for denoiser in denoisers.values())
    return [
        Setting(given, denoiser.card.name if names[denoiser.card.name] == 1 else given, level, strength)
        for given, denoiser in denoisers.items()
        for level in (config.sigma if denoiser.card.sigma_range else (None,))
        for strength in config.strength
    ]


def _row(
    config: PreviewConfig,
    source: Source,
    reference: str | None,
    settings: Sequence[Setting],
    denoisers: dict[str, "Denoiser"],
) -> tuple[str, list[Cell], dict[str, Any], str | None]:
    """Read one picture and denoise its middle: title, cells, facts for the summary, and what a person should know."""
    noisy = decode(read_picture(source.uri, max_pixels=config.max_pixels), max_pixels=config.max_pixels).pixels
    height, width = noisy.shape[:2]
    estimate = estimate_sigma(noisy)  # of the whole picture, as denoise does
    window = tuple(_middle(extent, config.crop) for extent in (height, width))
    clean, note = _clean(config, reference, noisy, window)
    before = _psnr(clean, noisy[window])
    cells, found = [Cell(noisy[window], _measured(before, None))], []
    for setting in settings:
        denoised, level = _denoised(denoisers[setting.model], noisy, window, setting, estimate)
        psnr = _psnr(clean, denoised)
        told = [f"sigma {level:.1f}"] if level is not None and setting.sigma == "auto" else []
        cells.append(Cell(denoised, ", ".join([*told, *([_measured(psnr, before)] if psnr else [])])))
        found.append(psnr)
    if config.reference:
        cells.append(Cell(np.full_like(noisy[window], 255) if clean is None else clean, "" if note is None else note))
    title = f"{source.key}   {width}x{height}   estimated sigma {estimate:.1f}"
    return title, cells, {"sigma": round(estimate, 2), "psnr_noisy": before, "psnr": found}, note


def _middle(extent: int, side: int) -> slice:
    first = max(0, (extent - side) // 2)
    return slice(first, min(extent, first + side))


def _denoised(
    denoiser: "Denoiser", noisy: NDArray[Any], window: tuple[slice, ...], setting: Setting, estimate: float
) -> tuple[NDArray[Any], float | None]:
    """Denoise a window with as much around it as the network sees: the same pixels as of the whole picture."""
    level: Sigma = "auto"
    if setting.sigma is not None:
        level = denoiser.card.limited(estimate) if setting.sigma == "auto" else setting.sigma
    halo, alignment = denoiser.card.halo, denoiser.card.alignment
    outer = [
        slice(max(0, (part.start - halo) // alignment * alignment), part.stop + halo + alignment) for part in window
    ]
    # Its end, too, lies on the grid, unless the picture ends before.
    outer = [slice(part.start, -(-part.stop // alignment) * alignment) for part in outer]
    done = denoiser.denoise(noisy[tuple(outer)], sigma=level, strength=setting.strength)
    inner = tuple(
        slice(part.start - around.start, part.stop - around.start) for part, around in zip(window, outer, strict=True)
    )
    return done.image[inner], done.sigma


def _clean(
    config: PreviewConfig, reference: str | None, noisy: NDArray[Any], window: tuple[slice, ...]
) -> tuple[NDArray[Any] | None, str | None]:
    """Read the same window of the reference, or say why there is none."""
    if config.reference is None:
        return None, None
    if reference is None:
        return None, "no reference"
    try:
        clean = decode(read_picture(reference, max_pixels=config.max_pixels), max_pixels=config.max_pixels).pixels
    except (ImageError, OSError) as error:
        return None, f"the reference cannot be read: {error}"
    if clean.shape != noisy.shape:
        return None, f"the reference is {clean.shape[1]}x{clean.shape[0]} with {clean.shape[2]} channels"
    return clean[window], None


def _psnr(clean: NDArray[Any] | None, pixels: NDArray[Any]) -> float | None:
    return None if clean is None else quality(clean, pixels).psnr


def _measured(psnr: float | None, before: float | None) -> str:
    if psnr is None:
        return ""
    return f"{psnr:.2f} dB" + ("" if before is None else f" ({psnr - before:+.2f})")


def _number(value: Sigma) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _sheet(rows: Sequence[tuple[str, Sequence[Cell]]], titles: Sequence[str], *, side: int) -> bytes:
    """Draw a row of crops per picture, one file pixel a sheet pixel: a PNG."""
    width = GAP + len(titles) * (side + GAP)
    font = PIL.ImageFont.load_default(size=14)
    tops, top = [], GAP + 2 * LINE
    for _, cells in rows:
        tops.append(top)
        top += LINE + cells[0].pixels.shape[0] + LINE + GAP
    sheet = PIL.Image.new("RGB", (width, top), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        for line, text in enumerate(title.split("\n")):
            draw.text((GAP + column * (side + GAP), GAP + line * LINE), _fitted(text, font, side), INK, font)
    for row_top, (title, cells) in zip(tops, rows, strict=True):
        draw.text((GAP, row_top), _fitted(title, font, width - 2 * GAP), FAINT, font)
        for column, cell in enumerate(cells):
            left = GAP + column * (side + GAP)
            sheet.paste(_drawn(cell.pixels), (left, row_top + LINE))
            below = row_top + LINE + cell.pixels.shape[0] + 2
            draw.text((left, below), _fitted(cell.label, font, side), INK, font)
    buffer = io.BytesIO()
    mark = PIL.PngImagePlugin.PngInfo()
    mark.add_text(*MARK)
    sheet.save(buffer, "PNG", pnginfo=mark)
    return buffer.getvalue()


def _fitted(text: str, font: Any, room: int) -> str:
    """Shorten a text from its middle until it fits."""
    cut = text
    keep = len(text)
    while font.getlength(cut) > room and keep > 4:
        keep -= 2
        cut = text[: keep // 2] + "..." + text[-(keep // 2) :]
    return cut


def _drawn(pixels: NDArray[Any]) -> PIL.Image.Image:
    eight = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return PIL.Image.fromarray(np.repeat(eight, 3, axis=-1) if eight.shape[-1] == 1 else eight)

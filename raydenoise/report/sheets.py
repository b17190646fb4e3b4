"""Sheets: some pictures of a run, some patches of shards, in one PNG each."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from raydenoise.core.image import decode
from raydenoise.data.manifest import Output
from raydenoise.data.place import Place
from raydenoise.data.shards import Patch, ShardFile, spread
from raydenoise.data.storage import publish, read, read_parquet

CELL = 300  # pixels, side of a picture on the sheet
GAP = 12
LABEL = 26
PATCHES_SHOWN = 48
PATCH_CELL = 160  # pixels; larger patches are shrunk
PATCH_GAP = 6
INK, PAPER = (30, 30, 30), (255, 255, 255)


def read_metrics(output: Output) -> list[dict[str, Any]]:
    """Read the metrics rows of a run, sorted by key: for runs that fit in memory.

    Raises:
        ValueError: the folder holds no metrics.
    """
    if not output.metrics.is_dir():
        raise ValueError(f"{output.root} holds no metrics/; allowed: the output folder of raydenoise denoise")
    rows: list[dict[str, Any]] = read_parquet(output.metrics).to_pylist()
    return sorted(rows, key=lambda row: str(row["key"]))


def contact_sheet(output: Output, *, path: Path, limit: int = 12) -> None:
    """Draw before and after of the first pictures of a run, with a part of each at its own size.

    Four columns a picture: noisy and denoised whole, then the same middle part of both, one file pixel a sheet pixel.

    Raises:
        ValueError: no picture of the run was denoised.
    """
    rows = [row for row in read_metrics(output) if row["status"] == "ok"][:limit]
    if not rows:
        raise ValueError(f"{output.root} holds no denoised picture to show")
    columns = ("before", "after", "before, actual pixels", "after, actual pixels")
    width = GAP + len(columns) * (CELL + GAP)
    sheet = PIL.Image.new("RGB", (width, GAP + LABEL + len(rows) * (LABEL + CELL + GAP)), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(size=16)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (CELL + GAP), GAP), title, INK, font)
    for index, row in enumerate(rows):
        top = GAP + LABEL + index * (LABEL + CELL + GAP)
        draw.text((GAP, top), caption(row), INK, font)
        pictures = [rgb(decode(read(row[column])).pixels) for column in ("uri", "output_uri")]
        for column, cell in enumerate([_whole(p) for p in pictures] + [_middle(p) for p in pictures]):
            sheet.paste(cell, (GAP + column * (CELL + GAP), top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def caption(row: dict[str, Any]) -> str:
    """Describe one metrics row in a line."""
    parts = [str(row["key"]), f"{row['width']}x{row['height']}"]
    if row["sigma"] is not None:
        parts.append(f"sigma {row['sigma']:.1f}")
    if row["psnr_noisy"] is not None and row["psnr_denoised"] is not None:
        parts.append(f"PSNR {row['psnr_noisy']:.2f} dB -> {row['psnr_denoised']:.2f} dB")
    return "   ".join(parts)


def patch_sheet(files: Sequence[ShardFile], *, path: Place) -> None:
    """Draw patches from all over some shards in a grid, the noisy one left of its clean one where there are pairs.

    Raises:
        ValueError: the shards hold no patch.
    """
    cells = [_patch_cell(patch) for _, patch in spread(files, PATCHES_SHOWN)]
    if not cells:
        raise ValueError(f"the shards {[str(file.path) for file in files]} hold no patch to show")
    width, height = (extent + PATCH_GAP for extent in cells[0].size)
    columns = max(1, min(len(cells), 8 * cells[0].height // cells[0].width))
    rows = -(-len(cells) // columns)
    sheet = PIL.Image.new("RGB", (PATCH_GAP + columns * width, PATCH_GAP + rows * height), PAPER)
    for index, cell in enumerate(cells):
        sheet.paste(cell, (PATCH_GAP + index % columns * width, PATCH_GAP + index // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    publish(path, buffer.getvalue())


def _patch_cell(patch: Patch) -> PIL.Image.Image:
    pictures = [rgb(array) for array in (patch.noisy, patch.clean) if array is not None]
    for picture in pictures:
        picture.thumbnail((PATCH_CELL, PATCH_CELL))
    cell = PIL.Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height), PAPER)
    for index, picture in enumerate(pictures):
        cell.paste(picture, (index * picture.width, 0))
    return cell


def rgb(pixels: NDArray[Any]) -> PIL.Image.Image:
    """Turn (H, W, 1 or 3) uint8 or uint16 into a picture of three 8-bit planes."""
    eight = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return PIL.Image.fromarray(np.repeat(eight, 3, axis=-1) if eight.shape[-1] == 1 else eight)


def _whole(picture: PIL.Image.Image) -> PIL.Image.Image:
    cell = PIL.Image.new("RGB", (CELL, CELL), PAPER)
    small = picture.copy()
    small.thumbnail((CELL, CELL))
    cell.paste(small, (0, 0))
    return cell


def _middle(picture: PIL.Image.Image) -> PIL.Image.Image:
    cell = PIL.Image.new("RGB", (CELL, CELL), PAPER)
    left, top = (max(0, (extent - CELL) // 2) for extent in picture.size)
    cell.paste(picture.crop((left, top, min(left + CELL, picture.width), min(top + CELL, picture.height))), (0, 0))
    return cell

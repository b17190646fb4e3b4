"""Metrics parquet -> pictures and tables, without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydenoise.core.image import decode
from raydenoise.data.manifest import Output
from raydenoise.data.storage import read

CELL = 300  # pixels, side of a picture on the sheet
GAP = 12
LABEL = 26
INK, PAPER = (30, 30, 30), (255, 255, 255)


def read_metrics(output: Output) -> list[dict[str, Any]]:
    """Read the metrics rows of a run, sorted by key: for runs that fit in memory.

    Raises:
        ValueError: the folder holds no metrics.
    """
    if not output.metrics.is_dir():
        raise ValueError(f"{output.root} holds no metrics/; allowed: the output folder of raydenoise denoise")
    rows: list[dict[str, Any]] = pq.read_table(output.metrics).to_pylist()
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
        pictures = [_rgb(decode(read(row[column])).pixels) for column in ("uri", "output_uri")]
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


def _rgb(pixels: NDArray[Any]) -> PIL.Image.Image:
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

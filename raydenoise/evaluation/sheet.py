"""A sheet of test pictures: clean, noisy, and what each method made of it."""

import io
from collections.abc import Sequence
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pyarrow as pa
import pyarrow.compute as pc

from raydenoise.data.place import Place
from raydenoise.data.storage import publish

INK, PAPER = (30, 30, 30), (255, 255, 255)
GAP = 10
LABEL = 22
LEAST = 150  # pixels, width of a cell: room for its label
COLUMNS = 6  # cells of a line; more methods wrap


def draw_sheet(rows: pa.Table, *, methods: Sequence[str], path: Place) -> None:
    """Draw the middle of some pictures at actual pixels, a block of cells each, with PSNR.

    Args:
        rows: of `schema.EVALUATED`; those with a crop are drawn, by key.
        methods: their order.
        path: of the PNG.
    """
    shown = rows.filter(pc.is_valid(rows["crop"])).to_pylist()
    blocks = [_cells([row for row in shown if row["key"] == key], methods) for key in sorted({r["key"] for r in shown})]
    width, height = (max(cell[1].size[axis] for block in blocks for cell in block) for axis in (0, 1))
    width = max(width, LEAST)
    columns = min(COLUMNS, max(len(block) for block in blocks))
    lines = [-(-len(block) // columns) for block in blocks]
    size = (GAP + columns * (width + GAP), GAP + sum(LABEL + count * (LABEL + height + GAP) for count in lines))
    sheet = PIL.Image.new("RGB", size, PAPER)
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=15)
    top = GAP
    for key, block, count in zip(sorted({row["key"] for row in shown}), blocks, lines, strict=True):
        draw.text((GAP, top), _heading(key, shown), INK, font)
        top += LABEL
        for index, (label, picture) in enumerate(block):
            left, down = GAP + index % columns * (width + GAP), top + index // columns * (LABEL + height + GAP)
            draw.text((left, down), _fitted(label, width, font), INK, font)
            sheet.paste(picture, (left, down + LABEL))
        top += count * (LABEL + height + GAP)
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    publish(path, sink.getvalue())


def _cells(rows: list[dict[str, Any]], methods: Sequence[str]) -> list[tuple[str, PIL.Image.Image]]:
    """The labelled pictures of one image: clean, then the methods in their order."""
    rows = sorted(rows, key=lambda row: methods.index(row["method"]))
    clean = next(row["clean_crop"] for row in rows if row["clean_crop"] is not None)
    return [("clean", _opened(clean)), *((_label(row), _opened(row["crop"])) for row in rows)]


def _label(row: dict[str, Any]) -> str:
    psnr = "equal" if row["psnr"] is None else f"{row['psnr']:.2f} dB"
    return f"{row['method']}   {psnr}"


def _heading(key: str, rows: list[dict[str, Any]]) -> str:
    row = next(row for row in rows if row["key"] == key)
    noise = "pair" if row["sigma"] is None else f"sigma {row['sigma']:g}"
    return f"{key}   {row['width']}x{row['height']}   {noise}   (its middle; PSNR of the whole)"


def _opened(data: bytes) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def _fitted(text: str, width: int, font: Any) -> str:
    """Shorten a text from its left until it fits: the PSNR stands at its right."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text

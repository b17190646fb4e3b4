"""A part of a picture before and after: which part, and what was taken away."""

import io
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from raydenoise.core.image import decode
from raydenoise.data.storage import read
from raydenoise.report.blocks import Comparison
from raydenoise.report.sheets import rgb

SIDE = 256  # pixels of the part, each a pixel of the file
WHOLE = 112  # pixels, longer side of the whole picture
LARGEST = 100.0  # megapixels; a larger picture is not read for a part of it
MAGNIFIED = 4  # times what was taken away
SAMPLE = 4  # every so many-th pixel decides which part is shown
OUTLINE = (230, 159, 0)


def compare(row: dict[str, Any], *, label: str, facts: str) -> Comparison:
    """Show a denoised picture; one that cannot be read says why instead.

    Args:
        row: of the metrics.
        label: why it is shown.
        facts: in a line below.
    """
    key = str(row["key"])
    try:
        if row["height"] * row["width"] > LARGEST * 1e6:
            raise ValueError(f"{row['width']}x{row['height']} pixels; shown: up to {LARGEST:g} megapixels")
        pictures = [rgb(decode(read(row[name])).pixels) for name in ("uri", "output_uri")]
        before, after = (np.asarray(picture) for picture in pictures)
        if before.shape != after.shape:
            raise ValueError(f"before is {before.shape} and after {after.shape}; allowed: one size")
    except (OSError, ValueError, TypeError) as error:
        return Comparison(key, label, facts, missing=f"cannot be shown: {error}")
    y, x = busiest(before, after)
    part = np.s_[y : y + SIDE, x : x + SIDE]
    return Comparison(
        key,
        label,
        facts,
        before=_webp(before[part]),
        after=_webp(after[part]),
        removed=_webp(removed(before[part], after[part]), lossless=False),
        whole=_whole(pictures[1], (x, y, x + SIDE, y + SIDE)),
    )


def busiest(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> tuple[int, int]:
    """Find the top left corner of the part where most was changed.

    Args:
        before, after: (H, W, 3).
    """
    thin = [image[::SAMPLE, ::SAMPLE].astype(np.int16) for image in (before, after)]
    change = np.abs(thin[1] - thin[0]).sum(axis=-1)
    sums = np.pad(change.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
    height, width = (min(SIDE // SAMPLE, extent) for extent in change.shape)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    last_y, last_x = (max(0, extent - SIDE) for extent in before.shape[:2])
    return min(int(row) * SAMPLE, last_y), min(int(column) * SAMPLE, last_x)


def removed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw after less before, `MAGNIFIED` times, around middle grey: edges in it are detail that was lost."""
    change = after.astype(np.int16) - before
    drawn: NDArray[np.uint8] = np.clip(128 + MAGNIFIED * change, 0, 255).astype(np.uint8)
    return drawn


def _webp(pixels: NDArray[np.uint8], *, lossless: bool = True) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "WEBP", lossless=lossless, quality=80)
    return buffer.getvalue()


def _whole(picture: PIL.Image.Image, box: tuple[int, int, int, int]) -> bytes:
    small = picture.copy()
    small.thumbnail((WHOLE, WHOLE))
    ratio = small.width / picture.width
    if picture.width > SIDE or picture.height > SIDE:
        edges = [min(edge * ratio, limit - 1) for edge, limit in zip(box, small.size * 2, strict=True)]
        PIL.ImageDraw.Draw(small).rectangle(edges, outline=OUTLINE, width=2)
    return _webp(np.asarray(small), lossless=False)

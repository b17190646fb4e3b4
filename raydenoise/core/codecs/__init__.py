"""Readers of the five formats: file bytes -> samples as stored, with what the file says about them.

The containers (JPEG segments, PNG chunks, RIFF chunks, TIFF directories) are walked here, so that size,
metadata and completeness are known before a decoder allocates anything, and the decoders get nothing but
picture data: over damaged metadata Pillow warns and libpng writes to stderr. The public side is
`raydenoise.core.image`. Here is what the readers share; each format has a module.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image
import PIL.ImageCms
from numpy.typing import NDArray

ErrorKind = Literal[
    "empty", "not_an_image", "truncated", "corrupt", "too_large", "zero_sized", "multi_page", "unsupported"
]
_LONGEST_MESSAGE = 300  # characters: it becomes a cell of a table
MAX_ICC = 255 * 65519  # bytes: what the segments of a JPEG hold


class ImageError(ValueError):
    """A file that is no usable image; `kind` is one of `ErrorKind`, fit for a table's column."""

    kind: str

    def __init__(self, kind: ErrorKind, message: str) -> None:
        assert kind in get_args(ErrorKind)
        super().__init__(kind, message[:_LONGEST_MESSAGE])  # both are in `args`: the error can be pickled
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True)
class Decoded:
    """A picture as stored, not yet upright.

    Attributes:
        samples: (H, W) or (H, W, S), uint8 or uint16; S = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.
        icc: the colour profile of `samples`.
        exif: a TIFF-structured block, with or without the `Exif` prefix, as found.
        dpi: pixels per inch across and down.
        notes: what was left out or changed.
    """

    samples: NDArray[Any]
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def ends(name: str, data: bytes, where: str) -> ImageError:
    """Make the error for a file that ends early."""
    return ImageError("truncated", f"the {name} file ends after {len(data):,} bytes, {where}")


def check_size(width: int, height: int, *, max_pixels: int) -> None:
    """Refuse a declared size of zero or of more than `max_pixels` pixels."""
    if width < 1 or height < 1:
        raise ImageError("zero_sized", f"the file declares {width} x {height} pixels; allowed: from 1 x 1")
    if width * height > max_pixels:
        raise ImageError(
            "too_large",
            f"the file declares {width} x {height} = {width * height:,} pixels; allowed: {max_pixels:,}; "
            "--max-pixels raises the limit",
        )


def cmyk_to_rgb(image: PIL.Image.Image, icc: bytes | None) -> tuple[NDArray[Any], str]:
    """Convert a CMYK picture to sRGB, by its profile where that can be used; return it with a note."""
    if icc:
        try:
            source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = PIL.ImageCms.createProfile("sRGB")
            converted = PIL.ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        except (PIL.ImageCms.PyCMSError, OSError):
            pass
        else:
            assert converted is not None
            return np.asarray(converted), "CMYK converted to sRGB by its ICC profile, which is not kept"
    return np.asarray(image.convert("RGB")), "CMYK converted to RGB without a profile"

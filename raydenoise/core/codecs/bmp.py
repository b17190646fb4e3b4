"""The BMP reader."""

import io
import struct

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

from raydenoise.core.codecs import Decoded, check_size


def read_bmp(data: bytes, *, max_pixels: int) -> Decoded:
    """Read a BMP file; palettes are expanded."""
    old = data[14:15] == b"\x0c"  # OS/2's header has 16-bit sizes
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    check_size(width, abs(height), max_pixels=max_pixels)  # negative: the top row comes first
    image = BmpImageFile(io.BytesIO(data))
    image.load()
    dpi = image.info.get("dpi")
    mode = {"1": "L", "P": "RGB"}.get(image.mode)
    samples = np.asarray(image.convert(mode) if mode else image)
    return Decoded(samples, dpi=dpi if dpi and all(dpi) else None)

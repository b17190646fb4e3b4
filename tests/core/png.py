"""A PNG writer of the tests: what no library writes on demand."""

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    array: Array,
    *,
    depth: int = 8,
    colour: int = 0,
    extra: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """A PNG by the specification: any depth, no filters; passes of Adam7."""
    height, width = array.shape[:2]
    offsets = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    raw = b""
    for x, y, dx, dy in offsets if interlaced else ((0, 0, 1, 1),):
        for row in array[y::dy, x::dx]:
            if row.size:
                bits = np.unpackbits(row.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - min(depth, 8) :]
                raw += b"\0" + (row.astype(">u2").tobytes() if depth == 16 else np.packbits(bits).tobytes())
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body

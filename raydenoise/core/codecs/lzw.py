"""LZW strips of TIFF files, unpacked by libtiff.

imagecodecs 2026.3.6 does not look whether the code behind a CLEAR is a literal: with another one, the four bytes
`00 1d 03 40` among them, it copies from wherever a table that nobody filled points, and the process may die. libtiff
looks. The strips of a file are made the rows of one grey picture, so that one call unpacks them all.
"""

import struct
from dataclasses import dataclass

import imagecodecs

from raydenoise.core.codecs.exif import Fields, write_ifd

_CLASSIC = 0xFFFF0000  # bytes that the offsets of a classic TIFF file reach


@dataclass(frozen=True)
class Strips:
    """Strips or tiles in a file.

    Attributes:
        offsets: first byte of each.
        counts: bytes of each, packed.
        sizes: bytes of each, unpacked.
        fill_order: 2: the lowest bit of a byte comes first.
    """

    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    fill_order: int = 1


def unpacked(data: bytes, strips: Strips) -> tuple[bytes, Strips]:
    """Unpack LZW strips; returns the file with the plain ones behind it, and where these are.

    Raises:
        OSError: a strip is damaged.
        ValueError: the file is too large.
    """
    if len(data) > _CLASSIC:
        raise ValueError(f"the LZW file has {len(data):,} bytes; allowed: {_CLASSIC:,}")
    offsets = [0] * len(strips.sizes)
    parts, at = [data], len(data)
    for size in sorted(set(strips.sizes)):
        chosen = [i for i, found in enumerate(strips.sizes) if found == size]
        parts.append(_rows(data, strips, chosen, size))
        for row, index in enumerate(chosen):
            offsets[index] = at + row * size
        at += len(parts[-1])
    return b"".join(parts), Strips(tuple(offsets), strips.sizes, strips.sizes)


def _rows(data: bytes, strips: Strips, chosen: list[int], size: int) -> bytes:
    def longs(*values: int) -> tuple[int, bytes]:
        return 4, struct.pack(f"<{len(values)}I", *values)

    fields: Fields = {
        256: longs(size),
        257: longs(len(chosen)),
        258: longs(8),
        259: longs(5),  # LZW
        262: longs(1),
        266: longs(strips.fill_order),
        273: longs(*(strips.offsets[i] for i in chosen)),
        277: longs(1),
        278: longs(1),
        279: longs(*(strips.counts[i] for i in chosen)),
    }
    at = len(data) + len(data) % 2
    file = b"II*\0" + struct.pack("<I", at) + data[8:].ljust(at - 8, b"\0") + write_ifd(fields, at)
    return bytes(imagecodecs.tiff_decode(file).tobytes())  # Pillow's libtiff writes to stderr

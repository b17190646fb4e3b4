"""The WebP reader."""

import struct
from collections.abc import Mapping

import imagecodecs

from raydenoise.core.codecs import Decoded, ImageError, check_size


def read_webp(data: bytes, *, max_pixels: int) -> Decoded:
    """Read a WebP file, lossy or lossless, with or without alpha."""
    end = 8 + int.from_bytes(data[4:8], "little")
    at = 12
    found: dict[bytes, bytes] = {}
    frames = 0
    while at + 8 <= min(end, len(data)):
        name, length = struct.unpack_from("<4sI", data, at)
        found.setdefault(name, data[at + 8 : at + 8 + length])
        frames += name == b"ANMF"
        at += 8 + length + length % 2
    width, height = _webp_size(found)
    check_size(width, height, max_pixels=max_pixels)
    if end > len(data):
        raise ImageError("truncated", f"the WebP file declares {end:,} bytes and ends after {len(data):,}")
    if b"ANIM" in found or frames:
        raise ImageError("multi_page", f"an animated WebP of {frames} frames; allowed: none; split it first")
    return Decoded(imagecodecs.webp_decode(data), found.get(b"ICCP"), found.get(b"EXIF"))


def _webp_size(found: Mapping[bytes, bytes]) -> tuple[int, int]:
    try:
        if b"VP8X" in found:
            width, height = found[b"VP8X"][4:7], found[b"VP8X"][7:10]
            return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
        if b"VP8L" in found:
            (bits,) = struct.unpack_from("<I", found[b"VP8L"], 1)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        width, height = struct.unpack_from("<HH", found[b"VP8 "], 6)
        return width & 0x3FFF, height & 0x3FFF
    except (struct.error, KeyError) as error:
        raise ImageError("truncated", "the WebP file ends before its picture data") from error

"""The WebP reader."""

import struct

import imagecodecs

from raydenoise.core.codecs import Decoded, ImageError, check_size, ends

_SIZES = (b"VP8X", b"VP8L", b"VP8 ")
_METADATA = (b"ICCP", b"EXIF", b"ANIM")


def read_webp(data: bytes, *, max_pixels: int) -> Decoded:
    """Read a WebP file, lossy or lossless, with or without alpha."""
    end = 8 + int.from_bytes(data[4:8], "little")
    at = 12
    found: dict[bytes, bytes] = {}
    frames, sized = 0, False
    while at + 8 <= min(end, len(data)):
        name, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        if name in _SIZES:  # every one counts: libwebp goes by the first, wherever another stands
            check_size(*_webp_size(name, body), max_pixels=max_pixels)
            sized = True
        if name in _METADATA:
            found.setdefault(name, body)
        frames += name == b"ANMF"
        at += 8 + length + length % 2
    if not sized:
        raise ends("WebP", data, "before its picture data")
    if end > len(data):
        raise ImageError("truncated", f"the WebP file declares {end:,} bytes and ends after {len(data):,}")
    if b"ANIM" in found or frames:
        raise ImageError("multi_page", f"an animated WebP of {frames} frames; allowed: none; split it first")
    return Decoded(imagecodecs.webp_decode(data), found.get(b"ICCP"), found.get(b"EXIF"))


def _webp_size(name: bytes, body: bytes) -> tuple[int, int]:
    """Read the size that a chunk declares: WebP Container Specification, RFC 9649."""
    try:
        if name == b"VP8X":
            (low, high, last) = struct.unpack_from("<IHB", body, 3)
            return ((low >> 8) & 0xFFFFFF) + 1, (high | last << 16) + 1
        if name == b"VP8L":
            (bits,) = struct.unpack_from("<I", body, 1)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    except struct.error as error:
        raise ImageError("truncated", "the WebP file ends before its picture data") from error

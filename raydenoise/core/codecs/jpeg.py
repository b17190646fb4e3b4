"""The JPEG and MPO reader."""

import io
import re
import struct
from dataclasses import dataclass, field

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from raydenoise.core.codecs import Decoded, ImageError, check_size, cmyk_to_rgb, ends
from raydenoise.core.codecs.exif import BROKEN, block_ifd

# FF00 is a stuffed byte, FFFF fills; FF01 and FFD0 to FFD7, which restart a scan, have no length behind them.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODABLE_SOF = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # sequential, progressive; Huffman, arithmetic
_SOS, _EOI = 0xDA, 0xD9
_MOST_SCANS = 100  # what cjpeg writes at most; each runs over all pixels, and may take a few bytes of the file
# After a scan: libjpeg's bit reader looks 57 bits ahead (6 bytes are too few, 7 enough in 400 random files).
_LOOKAHEAD = bytes(8)


@dataclass
class _JpegHead:
    kept: bytearray
    frame: tuple[int, int] | None = None  # marker, components
    size: tuple[int, int] = (0, 0)  # width, height
    exif: bytes | None = None
    icc: dict[int, bytes] = field(default_factory=dict)  # by number
    icc_count: int = 0
    dpi: tuple[float, float] | None = None
    pictures: int = 1


def read_jpeg(data: bytes, *, max_pixels: int) -> Decoded:
    """Read the primary picture of a JPEG or MPO file; early ends are errors, never padded with grey.

    A progressive file without its later scans but with its end marker comes out blurred: nothing tells.
    """
    head = _JpegHead(bytearray(b"\xff\xd8"))
    marker, start, at = _segment(data, 2)
    while marker != _SOS:
        _read_segment(head, marker, data[start + 4 : at], max_pixels=max_pixels)
        if not 0xE0 <= marker <= 0xEF and marker != 0xFE:  # all but application data and comments
            head.kept += data[start:at]
        marker, start, at = _segment(data, at)
    if head.frame is None:
        raise ImageError("corrupt", "the JPEG file has picture data before its size")
    end = _scan_end(data, at)
    if head.frame[0] in (0xC0, 0xC1) and data[start + 4] == head.frame[1]:
        # One sequential scan. Were its end marker there, libjpeg would pad a short one with grey and Pillow
        # say nothing; without the marker Pillow asks for more data and raises.
        scans = data[start:end] + _LOOKAHEAD
    else:
        count = 1
        while data[end + 1] != _EOI:
            marker, _, at = _segment(data, end)
            count += marker == _SOS
            _check_scans(count)
            end = _scan_end(data, at)
        scans = data[start : end + 2]
    # The class itself, not PIL.Image.open, which would apply Pillow's own limit on pixels.
    image = JpegImageFile(io.BytesIO(bytes(head.kept) + scans))
    if image.size != head.size:
        raise ImageError("corrupt", f"the JPEG file declares {head.size} and {image.size} as its size")
    image.load()
    icc = b"".join(part for _, part in sorted(head.icc.items())) or None
    notes = []
    if len(head.icc) != head.icc_count:
        icc = None
        notes.append("an incomplete ICC profile not kept")
    if head.pictures > 1:
        secondary = head.pictures - 1
        what = "picture" if secondary == 1 else "pictures"
        notes.append(f"{secondary} secondary {what} of the MPO file (previews, depth or gain maps) not kept")
    elif data[end + 1] == _EOI and len(data) - end > 1024:  # bytes; less is padding
        notes.append(f"{len(data) - end - 2:,} bytes behind the picture (a motion photo's video?) not kept")
    if image.mode == "CMYK":
        rgb, note = cmyk_to_rgb(image, icc)
        return Decoded(rgb, None, head.exif, head.dpi, (*notes, note))
    return Decoded(np.asarray(image), icc, head.exif, head.dpi, tuple(notes))


def check_strip(data: bytes, *, width: int, height: int) -> None:
    """Check a strip or tile of a TIFF file, whose own header tells the decoder how much memory to take.

    Args:
        data: a JPEG stream, perhaps without tables.
        width: of the strip; the stream may have up to 15 pixels more, as some writers fill up their blocks.
        height: likewise.

    Raises:
        ImageError: it declares a larger picture, or a coding that no TIFF file of 8 bits needs.
    """
    marker, start, end = _segment(data, 2)
    while marker not in _SOF and marker != _SOS:
        marker, start, end = _segment(data, end)
    if marker not in _DECODABLE_SOF:
        raise ImageError(
            "unsupported", f"a TIFF file of JPEG strips of coding process {marker - 0xC0}; allowed: 0 to 2"
        )
    _, down, across = struct.unpack_from(">BHH", data, start + 4)
    if across > width + 15 or down > height + 15:
        raise ImageError("corrupt", f"a JPEG strip declares {across} x {down} pixels in a place of {width} x {height}")
    _check_scans(data.count(bytes([0xFF, _SOS])))


def _check_scans(count: int) -> None:
    if count > _MOST_SCANS:
        raise ImageError("unsupported", f"a JPEG file of over {_MOST_SCANS} scans; allowed: {_MOST_SCANS}; convert it")


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """Find the segment at or after byte `at`: its marker, first byte and end."""
    found = _MARKER.search(data, at)
    if found is None:
        raise ends("JPEG", data, "before its picture data")
    start = found.start()
    marker = data[start + 1]
    if marker == _EOI:
        raise ImageError("corrupt", "the JPEG file ends without picture data")
    end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
    if end > len(data):
        raise ends("JPEG", data, "inside a segment")
    return marker, start, end


def _scan_end(data: bytes, at: int) -> int:
    found = _MARKER.search(data, at)
    if found is None:
        raise ends("JPEG", data, "inside its picture data")
    return found.start()


def _read_segment(head: _JpegHead, marker: int, body: bytes, *, max_pixels: int) -> None:
    if marker in _SOF:
        bits, height, width, components = struct.unpack_from(">BHHB", body)
        check_size(width, height, max_pixels=max_pixels)
        if bits != 8 or components not in (1, 3, 4) or marker not in _DECODABLE_SOF:
            raise ImageError(
                "unsupported",
                f"a JPEG file of {bits} bits, {components} components, coding process {marker - 0xC0}; "
                "allowed: 8 bits, 1, 3 or 4 components, sequential or progressive coding; convert it first",
            )
        head.frame, head.size = (marker, components), (width, height)
    elif marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 12:
        head.kept += b"\xff\xe0" + struct.pack(">H", len(body) + 2) + body
        unit, across, down = struct.unpack_from(">BHH", body, 7)
        per_inch = {1: 1.0, 2: 2.54}.get(unit, 0.0)
        head.dpi = (across * per_inch, down * per_inch) if across and down and per_inch else None
    elif marker == 0xEE and body.startswith(b"Adobe"):  # says how the colours are coded
        head.kept += b"\xff\xee" + struct.pack(">H", len(body) + 2) + body
    elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
        head.exif = head.exif or body
    elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) >= 14:
        head.icc[body[12]] = body[14:]
        head.icc_count = body[13]
    elif marker == 0xE2 and body.startswith(b"MPF\0"):
        try:
            head.pictures = block_ifd(body[4:]).number(0xB001, 1)
        except BROKEN:
            head.pictures = 1

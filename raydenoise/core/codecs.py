"""Readers of the five formats: file bytes -> samples as stored, with what the file says about them.

The containers (JPEG segments, PNG chunks, RIFF chunks, TIFF directories) are walked here, so that size, metadata
and completeness are known before a decoder allocates anything, and the decoders get nothing but picture data: Pillow
warns and libpng writes to stderr over damaged metadata. The public side is `raydenoise.core.image`.
"""

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageCms
import tifffile
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile

ErrorKind = Literal[
    "empty", "not_an_image", "truncated", "corrupt", "too_large", "zero_sized", "multi_page", "unsupported"
]
_LONGEST_MESSAGE = 300  # characters: it becomes a cell of a table
MAX_ICC = 1 << 24  # bytes: a JPEG holds at most 255 segments of 64 KiB
logging.getLogger("tifffile").setLevel(
    logging.CRITICAL
)  # it reports every damaged tag; here that is an error or a note


class ImageError(ValueError):
    """A file that is no usable image; `kind` is one of `ErrorKind`, fit for a table's column."""

    kind: str

    def __init__(self, kind: ErrorKind, message: str) -> None:
        assert kind in get_args(ErrorKind)
        super().__init__(
            kind, message[:_LONGEST_MESSAGE]
        )  # both in `args`, so that the error survives pickling
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


def check_size(width: int, height: int, *, max_pixels: int) -> None:
    """Refuse a declared size of zero or of more than `max_pixels` pixels."""
    if width < 1 or height < 1:
        raise ImageError(
            "zero_sized", f"the file declares {width} x {height} pixels; at least 1 x 1 are needed"
        )
    if width * height > max_pixels:
        raise ImageError(
            "too_large",
            f"the file declares {width} x {height} = {width * height:,} pixels; allowed are {max_pixels:,}; "
            "--max-pixels raises the limit",
        )


_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_RATIONALS = (5, 10)  # two 4-byte words each
_UNSIGNED = {1: "<u1", 3: "<u2", 4: "<u4", 13: "<u4", 16: "<u8", 18: "<u8"}
ORIENTATION, EXIF_IFD, GPS_IFD, INTEROP_IFD = 274, 34665, 34853, 40965
_POINTERS: Mapping[int, Any] = {EXIF_IFD: {INTEROP_IFD: {}}, GPS_IFD: {}}
BROKEN = (struct.error, ValueError, KeyError)  # what walking a damaged directory raises

# What a directory holds, by tag: TIFF type and little-endian values, or a nested directory.
Fields: TypeAlias = "dict[int, tuple[int, bytes] | Fields]"


class Field(NamedTuple):
    """One entry of a directory: `values` values of TIFF type `type`, at byte `at` of the block."""

    type: int
    values: int
    at: int


@dataclass(frozen=True)
class Ifd:
    """A directory of a TIFF file, EXIF block or MPO index.

    Attributes:
        block: what holds it.
        order: "<" or ">".
        fields: the entries, by tag, except those with values outside the block.
        outside: tags of those.
        next_at: position of the link to the next directory.
        next: the link: position of the next directory or 0.
    """

    block: bytes
    order: str
    fields: Mapping[int, Field]
    outside: frozenset[int]
    next_at: int
    next: int

    def raw(self, tag: int) -> bytes:
        """Return a tag's values as little-endian bytes, b"" where it is absent."""
        if tag not in self.fields:
            return b""
        kind, count, at = self.fields[tag]
        data = self.block[at : at + count * _TYPE_BYTES[kind]]
        word = 4 if kind in _RATIONALS else _TYPE_BYTES[kind]
        return (
            data if self.order == "<" or word == 1 else np.frombuffer(data, f"u{word}").byteswap().tobytes()
        )

    def numbers(self, tag: int) -> list[int]:
        """Return a tag's unsigned integers, [] where it is absent or of another type."""
        if tag not in self.fields or self.fields[tag].type not in _UNSIGNED:
            return []
        return [int(value) for value in np.frombuffer(self.raw(tag), _UNSIGNED[self.fields[tag].type])]

    def number(self, tag: int, default: int) -> int:
        """Return a tag's first unsigned integer."""
        return next(iter(self.numbers(tag)), default)


def read_ifd(block: bytes, at: int, *, order: str, big: bool = False) -> Ifd:
    """Read the directory at byte `at`; raises `BROKEN` where its table leaves the block."""
    count_format, entry, link = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    (count,) = struct.unpack_from(order + count_format, block, at)
    at += struct.calcsize(order + count_format)
    entry_bytes, inline = (20, 8) if big else (12, 4)
    next_at = at + count * entry_bytes
    (following,) = struct.unpack_from(order + link, block, next_at)
    fields: dict[int, Field] = {}
    outside = set()
    total = 0
    for position in range(at, next_at, entry_bytes):
        tag, kind, values = struct.unpack_from(order + entry, block, position)
        size = values * _TYPE_BYTES.get(kind, 0)
        start = position + entry_bytes - inline
        if size > inline:
            (start,) = struct.unpack_from(order + link, block, start)
        if start + size > len(block):
            outside.add(tag)
        elif size:
            fields.setdefault(tag, Field(kind, values, start))
            total += size
    if total > len(block):
        raise ValueError("the directory's entries overlap")  # 65,535 entries could each name the whole file
    return Ifd(block, order, fields, frozenset(outside), next_at, following)


def read_header(block: bytes) -> tuple[str, bool, int]:
    """Read a TIFF header: byte order ("<" or ">"), whether it is BigTIFF, position of the first directory."""
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    big = {42: False, 43: True}[struct.unpack_from(order + "H", block, 2)[0]]
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), block, 8 if big else 4)
    return order, big, first


def tree(ifd: Ifd, pointers: Mapping[int, Any] = _POINTERS, *, big: bool = False) -> Fields:
    """Copy a directory with its Exif, GPS and interoperability directories, ready for `write_ifd`."""
    fields: Fields = {}
    for tag, entry in ifd.fields.items():
        if tag in pointers:
            child = read_ifd(ifd.block, ifd.number(tag, 0), order=ifd.order, big=big)
            fields[tag] = tree(child, pointers[tag], big=big)
        elif entry.type <= 13:  # BigTIFF's 8-byte integers cannot go into an EXIF block
            fields[tag] = (entry.type, ifd.raw(tag))
    return fields


def write_ifd(fields: Fields, at: int) -> bytes:
    """Serialise a directory, little-endian, for byte `at` of its file; nested ones follow it."""
    table, heap = struct.pack("<H", len(fields)), bytearray()
    heap_at = at + 2 + 12 * len(fields) + 4
    for tag, entry in sorted(fields.items()):
        heap += bytes(len(heap) % 2)  # values and directories start on even bytes
        position = heap_at + len(heap)
        if isinstance(entry, dict):
            heap += write_ifd(entry, position)
            entry = (4, struct.pack("<I", position))
        kind, data = entry
        table += struct.pack("<HHI", tag, kind, len(data) // _TYPE_BYTES[kind])
        if len(data) > 4:
            table += struct.pack("<I", position)
            heap += data
        else:
            table += data.ljust(4, b"\0")
    return table + bytes(4) + bytes(heap)


def exif_block(fields: Fields) -> bytes:
    """Make an EXIF block, without the `Exif` prefix, of directories."""
    return b"II*\0" + struct.pack("<I", 8) + write_ifd(fields, 8)


def _block_ifd(block: bytes) -> Ifd:
    order, big, first = read_header(block)
    return read_ifd(block, first, order=order, big=big)


def exif_fields(exif: bytes) -> Fields:
    """Read an EXIF block; raises `BROKEN`."""
    return tree(_block_ifd(exif))


def upright_exif(exif: bytes) -> tuple[bytes, int]:
    """Make an EXIF block fit the upright, denoised picture; return it with the orientation (1..8) it had.

    The block is edited in place, so that offsets inside maker notes stay valid: orientation 1, width and height
    swapped where the picture is turned, the thumbnail (it shows the noisy picture) unlinked and blanked.

    Raises:
        BROKEN: no header, or a directory outside the block.
    """
    block = re.sub(rb"^(Exif\0\0)+", b"", exif)
    ifd = _block_ifd(block)
    tree(ifd)  # every directory is readable
    out = bytearray(block)
    orientation = ifd.number(ORIENTATION, 1)
    if ORIENTATION in ifd.fields:
        kind, _, at = ifd.fields[ORIENTATION]
        size = _TYPE_BYTES[kind]
        out[at : at + size] = (1).to_bytes(size, "little" if ifd.order == "<" else "big")
    if 5 <= orientation <= 8 and EXIF_IFD in ifd.fields:
        sub = read_ifd(block, ifd.number(EXIF_IFD, 0), order=ifd.order).fields
        across, down = sub.get(0xA002), sub.get(0xA003)  # PixelXDimension, PixelYDimension
        if across and down and across[:2] == down[:2]:
            size = across.values * _TYPE_BYTES[across.type]
            out[across.at : across.at + size] = block[down.at : down.at + size]
            out[down.at : down.at + size] = block[across.at : across.at + size]
    if ifd.next:
        out[ifd.next_at : ifd.next_at + 4] = bytes(4)
        _blank_thumbnail(out, block, ifd)
    return bytes(out), orientation if 1 <= orientation <= 8 else 1


def _blank_thumbnail(out: bytearray, block: bytes, ifd: Ifd) -> None:
    try:
        thumbnail = read_ifd(block, ifd.next, order=ifd.order)
    except BROKEN:
        return
    start, size = thumbnail.number(0x201, 0), thumbnail.number(0x202, 0)  # JPEGInterchangeFormat, ...Length
    if not size or start + size > len(out) or start < ifd.next_at:
        return
    if start + size == len(out):
        del out[start:]
    else:
        out[start : start + size] = bytes(size)


_MARKER = re.compile(
    rb"\xff[^\x00\xd0-\xd7\xff]"
)  # FF00 is a stuffed byte, FFD0..7 restart a scan, FFFF fills
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODABLE_SOF = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # sequential, progressive; Huffman, arithmetic
_SOS, _EOI = 0xDA, 0xD9
# After a scan: libjpeg's bit reader looks 57 bits ahead (6 bytes are too few, 7 enough in 400 random files).
_LOOKAHEAD = bytes(8)


@dataclass
class _JpegHead:
    kept: bytearray
    frame: tuple[int, int] | None = None  # marker, components
    exif: bytes | None = None
    icc: dict[int, bytes] = field(default_factory=dict)  # by number
    icc_count: int = 0
    dpi: tuple[float, float] | None = None
    pictures: int = 1


def read_jpeg(data: bytes, *, max_pixels: int) -> Decoded:
    """Read the primary picture of a JPEG or MPO file; one that ends early is an error, never padded with grey.

    A progressive file whose later scans are gone but whose end marker is there comes out blurred: nothing tells.
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
        # One sequential scan. Were its end marker there, libjpeg would pad a short one with grey and Pillow say
        # nothing; without the marker Pillow asks for more data and raises.
        scans = data[start:end] + _LOOKAHEAD
    else:
        while data[end + 1] != _EOI:
            end = _scan_end(data, _segment(data, end)[2])
        scans = data[start : end + 2]
    # The class itself, not PIL.Image.open, which would apply Pillow's own limit on pixels.
    image = JpegImageFile(io.BytesIO(bytes(head.kept) + scans))
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
        notes.append(
            f"{len(data) - end - 2:,} bytes after the JPEG picture (a motion photo's video?) not kept"
        )
    if image.mode == "CMYK":
        rgb, note = cmyk_to_rgb(image, icc)
        return Decoded(rgb, None, head.exif, head.dpi, (*notes, note))
    return Decoded(np.asarray(image), icc, head.exif, head.dpi, tuple(notes))


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """Find the segment at or after byte `at`: its marker, first byte and end."""
    found = _MARKER.search(data, at)
    if found is None:
        raise ImageError(
            "truncated", f"the JPEG file ends after {len(data):,} bytes, before its picture data"
        )
    start = found.start()
    marker = data[start + 1]
    if marker == _EOI:
        raise ImageError("corrupt", "the JPEG file ends without picture data")
    end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
    if end > len(data):
        raise ImageError("truncated", f"the JPEG file ends after {len(data):,} bytes, inside a segment")
    return marker, start, end


def _scan_end(data: bytes, at: int) -> int:
    found = _MARKER.search(data, at)
    if found is None:
        raise ImageError(
            "truncated", f"the JPEG file ends after {len(data):,} bytes, inside its picture data"
        )
    return found.start()


def _read_segment(head: _JpegHead, marker: int, body: bytes, *, max_pixels: int) -> None:
    if marker in _SOF:
        bits, height, width, components = struct.unpack_from(">BHHB", body)
        check_size(width, height, max_pixels=max_pixels)
        if bits != 8 or components not in (1, 3, 4) or marker not in _DECODABLE_SOF:
            raise ImageError(
                "unsupported",
                f"a JPEG file of {bits} bits, {components} components, coding process {marker - 0xC0}; allowed are "
                "8 bits, 1, 3 or 4 components, sequential or progressive coding; convert it first",
            )
        head.frame = (marker, components)
    elif marker == 0xE0 and body.startswith(b"JFIF\0"):
        head.kept += b"\xff\xe0" + struct.pack(">H", len(body) + 2) + body
        unit, across, down = struct.unpack_from(">BHH", body, 7)
        per_inch = {1: 1.0, 2: 2.54}.get(unit, 0.0)
        head.dpi = (across * per_inch, down * per_inch) if across and down and per_inch else None
    elif marker == 0xEE and body.startswith(b"Adobe"):  # says how the colours are coded
        head.kept += b"\xff\xee" + struct.pack(">H", len(body) + 2) + body
    elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
        head.exif = head.exif or body
    elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
        head.icc[body[12]] = body[14:]
        head.icc_count = body[13]
    elif marker == 0xE2 and body.startswith(b"MPF\0"):
        try:
            head.pictures = _block_ifd(body[4:]).number(0xB001, 1)
        except BROKEN:
            head.pictures = 1


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# First column and row, step across and down of the seven passes: PNG specification, section 8.2.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_DEFLATE_MOST = 1032  # bytes out of one byte in, at most: zlib's technical details
_SRGB_GAMMA = 45455  # 100,000 / 2.2


def read_png(data: bytes, *, max_pixels: int) -> Decoded:
    """Read any PNG file that is not animated; palettes and transparent colours are expanded."""
    chunks = _png_chunks(data)
    name, header = next(chunks)
    if name != b"IHDR" or len(header) != 13:
        raise ImageError("corrupt", "the PNG file does not begin with its header")
    width, height, depth, colour, method, filtering, interlace = struct.unpack(">IIBBBBB", header)
    check_size(width, height, max_pixels=max_pixels)
    if depth not in _PNG_DEPTHS.get(colour, ()) or method or filtering or interlace > 1:
        raise ImageError(
            "corrupt", f"the PNG header declares {depth} bits, colour type {colour}: no such PNG"
        )
    found: dict[bytes, bytes] = {}
    stream = []
    for name, body in chunks:
        if name == b"IDAT":
            stream.append(body)
        else:
            found.setdefault(name, body)
    frames = int.from_bytes(found.get(b"acTL", b"")[:4], "big")
    if frames > 1:
        raise ImageError("multi_page", f"an animated PNG of {frames} frames; allowed is one; split it first")
    samples = _png_samples(header, b"".join(stream), _png_tables(found, colour, depth))
    icc, notes = _png_profile(found)
    return Decoded(samples, icc, found.get(b"eXIf"), _png_dpi(found.get(b"pHYs", b"")), notes)


def _png_samples(header: bytes, stream: bytes, tables: bytes) -> NDArray[Any]:
    width, height, depth, colour, *_, interlace = struct.unpack(">IIBBBBB", header)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(max(0, -(-(width - x) // dx)), max(0, -(-(height - y) // dy))) for x, y, dx, dy in passes]
    row_bits = _PNG_CHANNELS[colour] * depth
    row_bytes = [1 + -(-w * row_bits // 8) if w else 0 for w, _ in sizes]
    raw = _inflate(stream, size=sum(h * n for (_, h), n in zip(sizes, row_bytes, strict=True)))
    samples: NDArray[Any] | None = None
    at = 0
    for (x, y, dx, dy), (w, h), n in zip(passes, sizes, row_bytes, strict=True):
        if not w or not h:
            continue
        part = _stored_png(
            struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0), tables, raw[at : at + h * n]
        )
        at += h * n
        if not interlace:
            return part
        if samples is None:
            samples = np.zeros((height, width, *part.shape[2:]), part.dtype)
        samples[y::dy, x::dx] = part
    assert samples is not None  # the first pass has the pixel at the top left
    return samples


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and body of each chunk before IEND; damaged ancillary chunks are left out."""
    view = memoryview(data)
    at = len(_PNG_SIGNATURE)
    while True:
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data) or len(data) < at + 12:
            raise ImageError("truncated", f"the PNG file ends after {len(data):,} bytes, inside a chunk")
        name, body = data[at + 4 : at + 8], data[at + 8 : end - 4]
        if name == b"IEND":
            return
        if zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big"):
            yield name, body
        elif not name[0] & 0x20:  # a capital letter: the picture cannot do without it
            raise ImageError("corrupt", f"the PNG file's chunk {name!r} has a wrong checksum")
        at = end


def _inflate(stream: bytes, *, size: int) -> bytes:
    """Inflate exactly `size` bytes; more are ignored, as every PNG decoder does."""
    if size > _DEFLATE_MOST * (len(stream) + 1):
        raise ImageError(
            "corrupt", f"the PNG file holds {len(stream):,} bytes, too few for {size:,} bytes of pixels"
        )
    try:  # libdeflate: 1.2 ms where zlib takes 2.8 (481 x 321 RGB)
        raw = bytes(imagecodecs.deflate_decode(stream, out=size))
    except imagecodecs.DeflateError:
        inflater = zlib.decompressobj()
        raw = bytes(inflater.decompress(stream, size))
        if len(raw) < size and not inflater.eof:
            raise ImageError(
                "truncated", f"the PNG picture data end after {len(raw):,} of {size:,} bytes"
            ) from None
    if len(raw) < size:
        raise ImageError("corrupt", f"the PNG picture data are {len(raw):,} bytes instead of {size:,}")
    return raw


def _stored_png(header: bytes, tables: bytes, raw: bytes) -> NDArray[Any]:
    """Let libpng undo the filters, in an uncompressed PNG without interlacing: nothing for it to remark on."""
    stored = zlib.compress(raw, 0)
    most = 1 << 30  # bytes; a chunk's length has 31 bits
    data = b"".join(png_chunk(b"IDAT", stored[at : at + most]) for at in range(0, len(stored), most))
    png = _PNG_SIGNATURE + png_chunk(b"IHDR", header) + tables + data + png_chunk(b"IEND", b"")
    samples: NDArray[Any] = imagecodecs.png_decode(png)
    return samples


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Make a PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _png_tables(found: Mapping[bytes, bytes], colour: int, depth: int) -> bytes:
    """The chunks of palette and transparency that belong to the colour type."""
    palette, transparent = found.get(b"PLTE", b""), found.get(b"tRNS", b"")
    if colour == 3:
        palette = palette[: 3 << depth]
        if not palette or len(palette) % 3:
            raise ImageError(
                "corrupt", f"the PNG file's palette has {len(palette)} bytes; allowed are 3 to {3 << depth}"
            )
        transparent = transparent[: len(palette) // 3]
    elif len(transparent) != {0: 2, 2: 6}.get(colour):
        transparent = b""
    chunks = png_chunk(b"PLTE", palette) if colour == 3 else b""
    return chunks + png_chunk(b"tRNS", transparent) if transparent else chunks


def _png_profile(found: Mapping[bytes, bytes]) -> tuple[bytes | None, tuple[str, ...]]:
    if b"iCCP" in found:
        try:  # name, zero, method, deflated profile
            inflater = zlib.decompressobj()
            profile = inflater.decompress(found[b"iCCP"].partition(b"\0")[2][1:], MAX_ICC)
        except zlib.error:
            return None, ("a damaged ICC profile not kept",)
        return (profile, ()) if inflater.eof else (None, ("a damaged ICC profile not kept",))
    if b"cICP" in found:
        return None, ("the PNG file's cICP colour space not kept",)
    gamma = int.from_bytes(found.get(b"gAMA", b""), "big")
    if gamma and b"sRGB" not in found and abs(gamma - _SRGB_GAMMA) > 1000:
        return None, (f"the PNG file's gamma of {gamma / 100_000:.3g} not kept",)
    return None, ()


def _png_dpi(physical: bytes) -> tuple[float, float] | None:
    if len(physical) != 9 or physical[8] != 1:  # 1: per metre
        return None
    across, down = struct.unpack(">II", physical[:8])
    return (across * 0.0254, down * 0.0254) if across and down else None


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
        raise ImageError(
            "multi_page", f"an animated WebP of {frames} frames; allowed is one picture; split it first"
        )
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


def read_bmp(data: bytes, *, max_pixels: int) -> Decoded:
    """Read a BMP file; palettes are expanded."""
    old = (
        data[14] == 12
    )  # OS/2's header has 16-bit sizes; a negative height says that the top row comes first
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    check_size(width, abs(height), max_pixels=max_pixels)
    image = BmpImageFile(io.BytesIO(data))
    image.load()
    dpi = image.info.get("dpi")
    mode = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
    return Decoded(np.asarray(image.convert(mode)), dpi=dpi if dpi and all(dpi) else None)


# Tags of a TIFF file that describe the picture, not its storage; they go into the EXIF block and back.
_DESCRIPTION = 270
EXIF_TAGS = {271, 272, 305, 306, 315, 316, 33432, 0x4746, 0x4749, *range(0x9C9B, 0x9CA0), _DESCRIPTION}
_TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000)
_TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # photometric interpretation -> samples
_TIFF_NAMES = {
    4: "a mask",
    8: "CIELAB",
    9: "ICC LAB",
    10: "ITU LAB",
    32803: "camera raw",
    34892: "camera raw",
}
_TIFF_BITS = {0: (1, 2, 4, 8, 16), 1: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 5: (8,), 6: (8,)}
_TIFF_STORAGE = {258, 273, 279, 320, 324, 325, 347}  # tags without which nothing can be decoded
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_MANY_PAGES = 10_000


def read_tiff(data: bytes, *, max_pixels: int) -> Decoded:
    """Read the one full page of a TIFF or BigTIFF file."""
    order, big, at = read_header(data)
    chain: list[Ifd] = []
    seen = set()
    while at and at not in seen and len(chain) < _MANY_PAGES:
        seen.add(at)
        chain.append(read_ifd(data, at, order=order, big=big))
        at = chain[-1].next
    full = [
        i
        for i, ifd in enumerate(chain)
        if not ifd.number(254, 0) & (_REDUCED | _MASK) and ifd.number(255, 1) == 1
    ]
    if (
        not full or 50706 in chain[0].fields or data[8:10] == b"CR"
    ):  # DNG and CR2 say so; NEF and ARW hold only previews
        raise ImageError(
            "unsupported", "a camera raw file or a TIFF of previews only; develop it to a TIFF first"
        )
    page = chain[full[0]]
    check_size(page.number(256, 0), page.number(257, 0), max_pixels=max_pixels)
    stack = re.match(rb"ImageJ=[^\0]*\nimages=(\d+)", page.raw(_DESCRIPTION))
    pages = max(len(full), int(stack[1]) if stack else 1)
    if pages > 1:
        raise ImageError("multi_page", f"a TIFF file of {pages} pages; allowed is one; split it first")
    _check_tiff_layout(page)
    _check_tiff_data(page, len(data))
    notes = []
    others = len(chain) - 1 + len(page.numbers(330))
    if others:
        notes.append(f"{others} reduced pictures or masks of the TIFF file not kept")
    samples = _tiff_samples(data, full[0])
    icc = page.raw(34675)[:MAX_ICC] or None
    try:
        exif = _tiff_exif(page, big=big)
    except BROKEN:
        exif = None
        notes.append("a broken EXIF directory not kept")
    samples, icc, more = _tiff_colour(samples, page, icc)
    return Decoded(samples, icc, exif, _tiff_dpi(page), (*notes, *more))


def _check_tiff_layout(page: Ifd) -> None:
    photometric = _photometric(page)
    samples = page.number(277, 1)
    bits = page.numbers(258) or [1]
    kinds = page.numbers(339) or [1]
    if photometric not in _TIFF_COLOURS:
        came = _TIFF_NAMES.get(photometric, f"photometric interpretation {photometric}")
    elif any(kind not in (1, 4) for kind in kinds):  # 4: undefined, taken as unsigned
        came = (
            f"{bits[0]}-bit {({2: 'signed integer', 3: 'floating point'}).get(kinds[0], 'complex')} samples"
        )
    elif len(set(bits)) > 1 or bits[0] not in _TIFF_BITS[photometric]:
        came = f"{'/'.join(map(str, bits[:4]))}-bit samples of photometric interpretation {photometric}"
    elif samples - _TIFF_COLOURS[photometric] not in ((0,) if photometric in (3, 5, 6) else (0, 1)):
        came = f"{samples} samples per pixel of photometric interpretation {photometric}"
    elif photometric == 6 and page.number(259, 1) != 7:
        came = "YCbCr samples without JPEG compression"
    elif page.number(259, 1) not in _TIFF_COMPRESSIONS or page.number(32997, 1) != 1:
        came = f"compression {page.number(259, 1)}, depth {page.number(32997, 1)}"
    else:
        return
    raise ImageError(
        "unsupported",
        f"a TIFF file of {came}; allowed are unsigned 8- or 16-bit grey or RGB with or without alpha, 1-, 2- and "
        "4-bit grey, palettes, 8-bit CMYK; convert it first",
    )


def _photometric(page: Ifd) -> int:
    return page.number(262, 2 if page.number(277, 1) >= 3 else 1)


def _check_tiff_data(page: Ifd, size: int) -> None:
    """Refuse a page whose strips or tiles are missing, empty or outside the file; tifffile fills in zeros."""
    height, width = page.number(257, 0), page.number(256, 0)
    if 324 in page.fields or 322 in page.fields:
        across, down = page.number(322, 0), page.number(323, 0)
        offsets, counts = page.numbers(324), page.numbers(325)
    else:
        across, down = width, min(page.number(278, height), height)
        offsets, counts = page.numbers(273), page.numbers(279)
    # A tile is at most the picture and a margin: sides are multiples of 16, in practice up to a few thousand.
    if not 1 <= across <= width + 65536 or not 1 <= down <= height + 65536:
        raise ImageError("corrupt", f"the TIFF file declares strips or tiles of {across} x {down} pixels")
    planes = page.number(277, 1) if page.number(284, 1) == 2 else 1
    needed = -(-width // across) * -(-height // down) * planes
    inside = [offset + count <= size and count > 0 for offset, count in zip(offsets, counts, strict=False)]
    missing = needed - sum(inside[:needed])
    if missing or page.outside & _TIFF_STORAGE:
        message = (
            f"the TIFF file ends after {size:,} bytes, without {missing} of its {needed} strips or tiles"
        )
        raise ImageError("truncated", message if missing else f"{message} but without their description")


def _tiff_samples(data: bytes, index: int) -> NDArray[Any]:
    """Decode a page to (H, W, S), native byte order, values as stored."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[index]
        planes = page.asarray(squeeze=False, maxworkers=1)[
            :, 0
        ]  # (planes, H, W, samples); one of the two is 1
    samples = np.moveaxis(planes[..., 0], 0, -1) if len(planes) > 1 else planes[0]
    return np.ascontiguousarray(samples, np.uint16 if samples.dtype.itemsize == 2 else np.uint8)


def _tiff_colour(
    samples: NDArray[Any], page: Ifd, icc: bytes | None
) -> tuple[NDArray[Any], bytes | None, tuple[str, ...]]:
    photometric, bits = _photometric(page), page.number(258, 1)
    if photometric == 3:
        table = np.array(page.numbers(320)).reshape(3, -1)
        if table.shape[1] != 1 << bits:
            raise ImageError(
                "corrupt", f"the TIFF file's palette has {table.shape[1]} colours instead of {1 << bits}"
            )
        return (table >> 8).astype(np.uint8).T[samples[..., 0]], icc, ()
    if photometric == 5:
        height, width = samples.shape[:2]
        image = PIL.Image.frombuffer("CMYK", (width, height), samples.tobytes(), "raw", "CMYK", 0, 1)
        rgb, note = cmyk_to_rgb(image, icc)
        return rgb, None, (note,)
    most = (1 << bits) - 1
    colours = _TIFF_COLOURS[photometric]
    if photometric == 0:
        samples[..., 0] = most - samples[..., 0]
    if bits < 8:
        samples *= 255 // most
    if samples.shape[2] == colours:
        return samples, icc, ()
    extra = page.number(338, 2)
    if extra == 0:
        return samples[..., :colours], icc, ("a fourth channel of unspecified meaning not kept",)
    if extra == 1:
        alpha = np.maximum(samples[..., colours:].astype(np.float64), 1)
        samples[..., :colours] = np.minimum(np.rint(samples[..., :colours] * float(most) / alpha), most)
        return samples, icc, ("premultiplied alpha divided out",)
    return samples, icc, ()


def _tiff_exif(page: Ifd, *, big: bool) -> bytes | None:
    wanted = EXIF_TAGS | {ORIENTATION, *_POINTERS}
    if page.raw(_DESCRIPTION).lstrip().startswith((b"{", b"ImageJ=", b"<")):  # a program's notes on an array
        wanted.discard(_DESCRIPTION)
    kept = replace(page, fields={tag: entry for tag, entry in page.fields.items() if tag in wanted})
    fields = tree(kept, big=big)
    return exif_block(fields) if fields else None


def _tiff_dpi(page: Ifd) -> tuple[float, float] | None:
    per_inch = {2: 1.0, 3: 2.54}.get(page.number(296, 2))
    across, down = (np.frombuffer(page.raw(tag)[:8], "<u4").tolist() for tag in (282, 283))
    if per_inch is None or len(across) < 2 or len(down) < 2 or 0 in (*across, *down):
        return None
    return across[0] / across[1] * per_inch, down[0] / down[1] * per_inch


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

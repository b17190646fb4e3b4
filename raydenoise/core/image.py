"""Image files: bytes <-> arrays. JPEG, PNG, TIFF, WebP and BMP only; the bytes tell which, not the name.

Read: 8- and 16-bit grey or RGB with or without alpha, exactly as stored; 1-, 2- and 4-bit grey (scaled to 8),
palettes, transparent colours, CMYK (turned into RGB, with a note). Refused with a reason: more than one full
page or frame (split the file first), floating-point, signed, 32-bit and LAB samples, camera raw. A phone's
MPO file (a JPEG with previews, depth or gain maps behind it) gives its primary picture, a TIFF file its full
page without previews; a note counts the rest.

Kept: the ICC profile and EXIF by every format but BMP, the resolution by every format but WebP. In TIFF,
EXIF is its Exif, GPS and interoperability directories and the tags that describe the picture (make, model,
date, artist, copyright, ...). Pixels come out upright, so the orientation becomes 1; the thumbnail goes,
since it shows the noisy picture. Not kept: XMP, IPTC, comments and text, layers, and in JPEG an EXIF block of
more than 64 KiB.
"""

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never, get_args

import imagecodecs
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from raydenoise.core.codecs import MAX_ICC, Decoded, ErrorKind, ImageError
from raydenoise.core.codecs.bmp import read_bmp
from raydenoise.core.codecs.exif import BROKEN, EXIF_IFD, GPS_IFD, Fields, exif_fields, upright_exif, write_ifd
from raydenoise.core.codecs.jpeg import read_jpeg
from raydenoise.core.codecs.png import png_chunk, read_png
from raydenoise.core.codecs.tiff import EXIF_TAGS, read_tiff
from raydenoise.core.codecs.webp import read_webp

__all__ = [
    "DEFAULT_EXTENSION",
    "DEFAULT_MAX_PIXELS",
    "EXTENSIONS",
    "HEAD_BYTES",
    "ErrorKind",
    "Format",
    "Image",
    "ImageError",
    "admit",
    "decode",
    "encode",
]

Format = Literal["jpeg", "png", "tiff", "webp", "bmp"]
EXTENSIONS: dict[str, Format] = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".bmp": "bmp",
}
DEFAULT_EXTENSION: dict[Format, str] = {
    "jpeg": ".jpg",
    "png": ".png",
    "tiff": ".tif",
    "webp": ".webp",
    "bmp": ".bmp",
}
HEAD_BYTES = 256  # what tells the format
DEFAULT_MAX_PIXELS = 200_000_000  # 600 MB as 8-bit RGB; the largest camera sensors stay below it

_READERS: Mapping[Format, Callable[..., Decoded]] = {
    "jpeg": read_jpeg,
    "png": read_png,
    "tiff": read_tiff,
    "webp": read_webp,
    "bmp": read_bmp,
}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# First bytes, or the bytes after a 4-byte length, of what people keep among their pictures.
_OTHERS = {
    b"GIF8": "a GIF picture",
    b"%!PS": "an EPS or PostScript document",
    b"\xc5\xd0\xd3\xc6": "an EPS document",
    b"%PDF": "a PDF document",
    b"8BPS": "a Photoshop document",
    b"ftypavi": "an AVIF picture",
    b"ftypcrx": "a camera raw file (CR3)",
    b"ftyphe": "a HEIC picture",
    b"ftypmif1": "a HEIC picture",
    b"ftyp": "a video",
    b"\0\0\0\x0cjP": "a JPEG 2000 picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL": "a JPEG XL picture",
    b"FUJIFILM": "a camera raw file (RAF)",
    b"IIRO": "a camera raw file (ORF)",
    b"IIU\0": "a camera raw file (RW2)",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
}
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")
_LONGEST_SIDE: Mapping[Format, int] = {"jpeg": 65500, "webp": 16383}  # libjpeg's JPEG_MAX_DIMENSION; 14 bits
_JPEG_EXIF = 65527  # bytes: a 65,533-byte segment less its prefix

# Run lengths (3) of Paeth differences (128). ms / kB of a clean photo (481 x 321 RGB), the same with noise of
# sigma 25, and in 16 bits: this 7.6 / 243, 8.1 / 418, 11 / 759; libpng's own choices at level 1: 16 / 264,
# 22 / 410, 37 / 782; level 4: 22 / 256, 24 / 407, 55 / 778; level 6: 49 / 252, 25 / 407, 64 / 777. Drawings
# alone lose: 26 kB where level 4 gives 21.
_PNG = {"level": 1, "strategy": 3, "filter": 128}
# libdeflate after horizontal differences, the clean photo: level 1 5.6 ms for 267 kB, level 4 8.5 ms for 268.
_TIFF_LEVEL = 1
_STRIP_BYTES = 1 << 18  # a reader of a small part decodes little; 64 KiB strips came out 0.5% larger
# The clean photo, lossy: method 2 14 ms for 47.1 kB, Pillow's 4 26 ms for 46.8. Lossless: method 0 7 ms for
# 211 kB, 1 38 ms for 202, Pillow's default 280 ms for 185.
_WEBP_LOSSY = {"method": 2}
_WEBP_LOSSLESS = {"lossless": True, "method": 0, "quality": 0}  # the quality is an effort here


@dataclass(frozen=True, eq=False)
class Image:
    """A decoded picture, upright.

    Attributes:
        pixels: (H, W, C) uint8 or uint16, C = 1 (grey) or 3 (RGB).
        alpha: (H, W), of the type of `pixels`; not denoised.
        format: what the file was.
        icc: colour profile.
        exif: TIFF-structured block without the `Exif` prefix; its orientation is 1 and it has no thumbnail.
        note: what a reader should know, such as what was not kept.
        dpi: pixels per inch across and down.

    Raises:
        ValueError: the arrays are of other shapes or types.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    format: Format
    icc: bytes | None = None
    exif: bytes | None = None
    note: str | None = None
    dpi: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels are {dtype} {shape}; allowed: uint8 or uint16 of shape (H, W, 1 or 3)")
        if self.alpha is not None and (self.alpha.shape != shape[:2] or self.alpha.dtype != dtype):
            raise ValueError(f"alpha is {self.alpha.dtype} {self.alpha.shape}; allowed: {dtype} {shape[:2]}")

    @property
    def bit_depth(self) -> Literal[8, 16]:
        """Bits per sample."""
        return 8 if self.pixels.dtype == np.uint8 else 16

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    @property
    def channels(self) -> int:
        """Colour channels and alpha: 1 to 4."""
        return int(self.pixels.shape[2]) + (self.alpha is not None)


def decode(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Read an image file.

    Args:
        data: the whole file.
        max_pixels: refuse files that declare more than this, before decoding any.

    Raises:
        ImageError: the file is no usable image; `kind` says in which way. Else only MemoryError is raised.
    """
    if not data:
        raise ImageError("empty", "the file is empty: 0 bytes")
    format = _sniff(data)
    try:
        decoded = _READERS[format](data, max_pixels=max_pixels)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # damaged data make the decoders raise anything
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, (struct.error, EOFError, OverflowError)):
            text = "it is truncated where a header or directory should be"
        kind: ErrorKind = "truncated" if "truncated" in text.lower() else "corrupt"
        message = f"the {format} file of {len(data):,} bytes cannot be decoded: {text}"
        raise ImageError(kind, message) from error
    return _image(decoded, format)


def admit(head: bytes, size: int, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Refuse a file by its beginning and its size, before it is read whole: a video is no picture.

    Args:
        head: its first `HEAD_BYTES` bytes or more.
        size: bytes in all.
        max_pixels: a file of more than four 16-bit samples for each of them, and 64 MiB besides, is refused.

    Raises:
        ImageError: it is none of the formats, or too large.
    """
    if head:
        _sniff(head)
    most = 8 * max_pixels + (1 << 26)
    if size > most:
        raise ImageError("too_large", f"the file has {size:,} bytes; allowed: {most:,}; --max-pixels raises it")


def _sniff(data: bytes) -> Format:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(_TIFF_STARTS):
        return "tiff"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"BM") and data[6:10] == bytes(4):  # the reserved bytes tell it from text
        return "bmp"
    seen = f"it begins with {data[:8]!r}"
    for start, name in _OTHERS.items():
        if data.startswith(start) or data[4:].startswith(start):
            seen = f"it looks like {name}"
            break
    if data[:200].lstrip().lower().startswith(_MARKUP):
        seen = "it looks like an HTML or XML document"
    formats = ", ".join(get_args(Format))
    raise ImageError("not_an_image", f"no image file: {seen}; allowed: {formats}; convert or remove it")


def _image(decoded: Decoded, format: Format) -> Image:
    notes = list(decoded.notes)
    exif, orientation = upright_exif(decoded.exif) if decoded.exif else (None, 1)
    if decoded.exif and not exif:
        notes.append("a broken EXIF block not kept")
    icc = decoded.icc
    if icc and len(icc) > MAX_ICC:
        icc = None
        notes.append("an ICC profile of more than 16 MB not kept")
    dpi = decoded.dpi
    if dpi and not all(1 <= value <= 65535 for value in dpi):  # beyond what JFIF can say: a slip
        dpi = None
    if dpi and orientation >= 5:
        dpi = dpi[1], dpi[0]
    samples = _upright(np.atleast_3d(decoded.samples), orientation)
    colours = 3 if samples.shape[2] >= 3 else 1
    alpha = np.ascontiguousarray(samples[..., colours]) if samples.shape[2] > colours else None
    pixels = np.ascontiguousarray(samples[..., :colours])
    return Image(pixels, alpha, format, icc or None, exif, "; ".join(notes) or None, dpi)


def _upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation (1..8): TIFF 6.0, tag 274."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    # After the swap: 5 is done, 6 needs a mirror left to right, 7 both, 8 one top to bottom.
    across = orientation in (2, 3, 6, 7)
    down = orientation in (3, 4, 7, 8)
    return samples[:: -1 if down else 1, :: -1 if across else 1]


def encode(image: Image, *, format: Format, quality: int = 95) -> bytes:
    """Write an image file.

    PNG, TIFF and BMP are lossless, and so is WebP at quality 100. JPEG, WebP and BMP hold 8 bits: 16 are
    rounded. JPEG keeps full colour resolution (4:4:4). WebP has no grey: it is written as RGB.

    Args:
        image: its `format` does not matter here.
        format: of the file to write.
        quality: 1..100, for JPEG and WebP.

    Raises:
        ImageError: "unsupported": the format cannot hold the picture (alpha in JPEG or BMP, a side too long).
        ValueError: the quality is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; allowed: 1 to 100")
    if image.alpha is not None and format in ("jpeg", "bmp"):
        raise ImageError("unsupported", f"{format} cannot hold alpha; --format png, tiff or webp keeps it")
    longest, allowed = max(image.height, image.width), _LONGEST_SIDE.get(format)
    if allowed and longest > allowed:
        raise ImageError(
            "unsupported",
            f"a side is {longest} pixels; {format} allows {allowed}; --format png or tiff has no such limit",
        )
    match format:
        case "png":
            return _png(image)
        case "tiff":
            return _tiff(image)
        case "jpeg":
            exif = b"Exif\0\0" + image.exif if image.exif and len(image.exif) <= _JPEG_EXIF else b""
            return _pillow(image, "JPEG", quality=quality, subsampling=0, exif=exif)
        case "webp":
            how = _WEBP_LOSSLESS if quality == 100 else {"quality": quality, **_WEBP_LOSSY}
            if image.pixels.shape[2] == 1:
                grey_profile = image.icc is not None and image.icc[16:20] == b"GRAY"  # does not fit RGB
                icc = None if grey_profile else image.icc
                image = replace(image, pixels=np.repeat(image.pixels, 3, axis=2), icc=icc)
            # exact: colours under transparent pixels stay
            return _pillow(image, "WEBP", exact=True, exif=image.exif or b"", **how)
        case "bmp":
            return _pillow(image, "BMP")
        case _:
            assert_never(format)


def _samples(image: Image) -> NDArray[Any]:
    """Pixels and alpha as (H, W) or (H, W, S)."""
    if image.alpha is not None:
        return np.concatenate([image.pixels, image.alpha[..., None]], axis=2)
    return image.pixels[..., 0] if image.pixels.shape[2] == 1 else image.pixels


def _pillow(image: Image, name: str, **options: Any) -> bytes:
    samples = _samples(image)
    if image.bit_depth == 16:
        # x / 257, rounded: 65535 becomes 255. There are no ties, since 257 is odd.
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.icc:
        options["icc_profile"] = image.icc
    if image.dpi:
        options["dpi"] = image.dpi
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(samples)).save(buffer, name, **options)
    return buffer.getvalue()


def _png(image: Image) -> bytes:
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(_samples(image)), **_PNG))
    header = 33  # bytes of signature and IHDR, after which the others may come
    chunks = b""
    if image.icc:
        # Compressed like the picture: profiles are small beside it.
        chunks += png_chunk(b"iCCP", b"ICC profile\0\0" + imagecodecs.zlib_encode(image.icc))
    if image.dpi:
        across, down = (round(value / 0.0254) for value in image.dpi)  # per metre
        chunks += png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if image.exif:
        chunks += png_chunk(b"eXIf", image.exif)
    return data[:header] + chunks + data[header:]


def _tiff(image: Image) -> bytes:
    """Write a little-endian TIFF: strips, then one directory with the EXIF directories behind it."""
    samples = np.ascontiguousarray(np.atleast_3d(_samples(image)))
    height, width, count = samples.shape
    rows = min(height, max(1, _STRIP_BYTES // (width * count * samples.itemsize)))
    body = bytearray(b"II*\0\0\0\0\0")
    offsets, lengths = [], []
    for y in range(0, height, rows):
        differences = imagecodecs.delta_encode(samples[y : y + rows], axis=1)
        strip = imagecodecs.deflate_encode(differences.tobytes(), level=_TIFF_LEVEL)
        offsets.append(len(body))
        lengths.append(len(strip))
        body += strip
    body += bytes(len(body) % 2)
    if len(body) > 0xFFFF0000:
        raise ImageError("unsupported", "the TIFF file would have over 4 GiB; --format png has no such limit")
    fields = _tiff_metadata(image) | {
        256: _longs(width),
        257: _longs(height),
        258: _shorts(*[image.bit_depth] * count),
        259: _shorts(8),  # deflate
        262: _shorts(2 if count >= 3 else 1),  # RGB or grey, black is zero
        273: _longs(*offsets),
        277: _shorts(count),
        278: _longs(rows),
        279: _longs(*lengths),
        284: _shorts(1),  # samples side by side
        317: _shorts(2),  # horizontal differences
    }
    if image.alpha is not None:
        fields[338] = _shorts(2)  # alpha, not premultiplied
    struct.pack_into("<I", body, 4, len(body))
    return bytes(body) + write_ifd(fields, len(body))


def _tiff_metadata(image: Image) -> Fields:
    fields: Fields = {}
    if image.exif:
        try:
            kept = EXIF_TAGS | {282, 283, 296, EXIF_IFD, GPS_IFD}
            fields = {tag: field for tag, field in exif_fields(image.exif).items() if tag in kept}
        except BROKEN as error:
            raise ValueError("exif is no TIFF-structured block; allowed: what decode gives") from error
    if image.dpi:
        across, down = (struct.pack("<II", round(value * 1000), 1000) for value in image.dpi)
        fields |= {282: (5, across), 283: (5, down), 296: _shorts(2)}  # rational, per inch
    if image.icc:
        fields[34675] = (7, image.icc)
    return fields


def _shorts(*values: int) -> tuple[int, bytes]:
    return 3, struct.pack(f"<{len(values)}H", *values)


def _longs(*values: int) -> tuple[int, bytes]:
    return 4, struct.pack(f"<{len(values)}I", *values)

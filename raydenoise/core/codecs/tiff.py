"""The TIFF and BigTIFF reader."""

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from raydenoise.core.codecs import Decoded, ImageError, check_size, cmyk_to_rgb, ends
from raydenoise.core.codecs.exif import (
    BROKEN,
    ORIENTATION,
    POINTERS,
    RATIONAL,
    Ifd,
    exif_block,
    read_header,
    read_ifd,
    tree,
)
from raydenoise.core.codecs.jpeg import check_strip
from raydenoise.core.codecs.lzw import Strips, unpacked

# It reports every damaged tag; here those are errors or notes.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

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
_REDUCED, _MASK = 1, 4  # bits of tag 254, NewSubfileType; of the old tag 255, 1 is a full picture
_DNG_VERSION = 50706
_LARGE_TILE = 4096 * 4096  # pixels, in a picture that is smaller
_MOST_DIRECTORIES = 65_536
_MOST_TABLES = 1 << 26  # bytes of directories: 5 s to read; those of 65,536 pages have a quarter
_LZW, _JPEG = 5, 7
_BLOCK = 1 << 22  # samples turned at once, so that floats take little memory


def read_tiff(data: bytes, *, max_pixels: int) -> Decoded:
    """Read the one full page of a TIFF or BigTIFF file."""
    order, big, at = read_header(data)
    first, directories, full, page = None, 0, 0, None
    for index, ifd in enumerate(_tiff_chain(data, at, order=order, big=big)):
        first, directories = first or ifd, directories + 1
        if _is_full(ifd):
            full += 1
            if page is None:
                page, place = ifd, index
    # DNG and CR2 say what they are; NEF and ARW have previews only.
    if page is None or first is None or _DNG_VERSION in first.fields or data[8:10] == b"CR":
        raise ImageError("unsupported", "a camera raw file or previews only; develop it to a TIFF file first")
    check_size(page.number(256, 0), page.number(257, 0), max_pixels=max_pixels)
    stack = re.match(rb"ImageJ=[^\0]*\nimages=(\d+)", page.raw(_DESCRIPTION))
    pages = max(full, int(stack[1]) if stack else 1)
    if pages > 1:
        raise ImageError("multi_page", f"a TIFF file of {pages} pages; allowed: one; split it first")
    if page.outside & _TIFF_STORAGE:
        raise ends("TIFF", data, "inside its description")
    _check_tiff_layout(page)
    strips = _tiff_strips(page)
    notes = []
    others = directories - 1 + len(page.numbers(330))
    if others:
        notes.append(f"{others} of the TIFF file's directories (previews, masks) not kept")
    samples = _tiff_samples(page, place, strips)
    wanted = EXIF_TAGS | {ORIENTATION, *POINTERS}
    try:
        exif = _tiff_exif(page, wanted, big=big)
    except BROKEN:
        exif = _tiff_exif(page, wanted - {*POINTERS}, big=big)
        notes.append("a broken EXIF directory not kept")
    samples, icc, more = _tiff_colour(samples, page, page.raw(34675) or None)
    return Decoded(samples, icc, exif, _tiff_dpi(page), (*notes, *more))


def _tiff_chain(data: bytes, at: int, *, order: str, big: bool) -> Iterator[Ifd]:
    """Read one directory after the other, none twice."""
    seen = set()
    tables = 0
    while at and at not in seen:
        seen.add(at)
        ifd = read_ifd(data, at, order=order, big=big)
        tables += ifd.next_at - at
        if tables > len(data):  # a trap: they would take hours to read
            raise ImageError("corrupt", "the TIFF file's directories overlap")
        if tables > _MOST_TABLES or len(seen) > _MOST_DIRECTORIES:
            raise ImageError(
                "multi_page", f"a TIFF file of over {_MOST_DIRECTORIES:,} directories or entries; allowed: one page"
            )
        yield ifd
        at = ifd.next


def _is_full(ifd: Ifd) -> bool:
    return not ifd.number(254, 0) & (_REDUCED | _MASK) and ifd.number(255, 1) == 1


def _check_tiff_layout(page: Ifd) -> None:
    photometric = _photometric(page)
    samples = page.number(277, 1)
    bits = page.numbers(258) or [1]
    kinds = page.numbers(339) or [1]
    if photometric not in _TIFF_COLOURS:
        came = _TIFF_NAMES.get(photometric, f"photometric interpretation {photometric}")
    elif any(kind not in (1, 4) for kind in kinds):  # 4: undefined, taken as unsigned
        names = {2: "signed integer", 3: "floating point"}
        came = f"{bits[0]}-bit {names.get(kinds[0], 'complex')} samples"
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
        f"a TIFF file of {came}; allowed: unsigned 8- or 16-bit grey or RGB with or without alpha, "
        "1-, 2- and 4-bit grey, palettes, 8-bit CMYK; convert it first",
    )


def _photometric(page: Ifd) -> int:
    return page.number(262, 2 if page.number(277, 1) >= 3 else 1)


def _tiff_strips(page: Ifd) -> Strips:
    """Find the strips or tiles; refuse a page where some are missing, empty or outside: tifffile fills in zeros."""
    height, width = page.number(257, 0), page.number(256, 0)
    tiled = 324 in page.fields or 322 in page.fields
    across, down = (
        (page.number(322, 0), page.number(323, 0)) if tiled else (width, min(page.number(278, height), height))
    )
    offsets, counts = (page.numbers(tag) for tag in ((324, 325) if tiled else (273, 279)))
    if across < 1 or down < 1 or across * down > max(width * height, _LARGE_TILE):
        raise ImageError("corrupt", f"the TIFF file declares strips or tiles of {across} x {down} pixels")
    separate = page.number(284, 1) == 2
    high = -(-height // down)
    needed = -(-width // across) * high * (page.number(277, 1) if separate else 1)
    offsets, counts = offsets[:needed], counts[:needed]
    size = len(page.block)
    missing = needed - sum(count > 0 and at + count <= size for at, count in zip(offsets, counts, strict=False))
    if missing:
        raise ends("TIFF", page.block, f"without {missing} of its {needed} strips or tiles")
    samples = page.number(277, 1)
    if sum(counts) > size + width * height * samples * 2:  # a trap: each would be the whole file, thousands of times
        raise ImageError("corrupt", f"the TIFF file's strips or tiles overlap: {sum(counts):,} bytes in {size:,}")
    if page.number(259, 1) == _JPEG:
        for start, count in zip(offsets, counts, strict=True):
            check_strip(page.block[start : start + count], width=across, height=down)
    row = -(-across * (1 if separate else samples) * page.number(258, 1) // 8)  # bytes
    last = down if tiled else height - (high - 1) * down
    sizes = tuple(row * (down if (i + 1) % high else last) for i in range(needed))
    return Strips(tuple(offsets), tuple(counts), sizes, page.number(266, 1))


def _tiff_samples(page: Ifd, index: int, strips: Strips) -> NDArray[Any]:
    """Decode a page to (H, W, S), native byte order, values as stored."""
    data, lzw = page.block, page.number(259, 1) == _LZW
    if lzw:
        data, strips = unpacked(data, strips)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[index]
        if lzw:  # what is left of it: the predictor, the samples' order
            found.compression, found.fillorder, found.is_contiguous = 1, 1, False
            found.dataoffsets, found.databytecounts = strips.offsets, strips.counts
        # (planes, H, W, samples): one of the two is 1
        planes = found.asarray(squeeze=False, maxworkers=1)[:, 0]
    samples = np.moveaxis(planes[..., 0], 0, -1) if len(planes) > 1 else planes[0]
    return np.ascontiguousarray(samples, np.uint16 if samples.dtype.itemsize == 2 else np.uint8)


def _tiff_colour(
    samples: NDArray[Any], page: Ifd, icc: bytes | None
) -> tuple[NDArray[Any], bytes | None, tuple[str, ...]]:
    photometric, bits = _photometric(page), page.number(258, 1)
    if photometric == 3:
        table = np.array(page.numbers(320)).reshape(3, -1)
        if table.shape[1] != 1 << bits:
            raise ImageError("corrupt", f"a TIFF palette of {table.shape[1]} colours instead of {1 << bits}")
        eight = table if table.max() < 256 else table >> 8  # old writers hold 8 bits of the 16, as libtiff knows
        return eight.astype(np.uint8).T[samples[..., 0]], icc, ()
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
        rows = max(1, _BLOCK // (samples.shape[1] * samples.shape[2]))
        for y in range(0, len(samples), rows):
            part = samples[y : y + rows]
            alpha = np.maximum(part[..., colours:].astype(np.float64), 1)
            part[..., :colours] = np.minimum(np.rint(part[..., :colours] * float(most) / alpha), most)
        return samples, icc, ("premultiplied alpha divided out",)
    return samples, icc, ()


def _tiff_exif(page: Ifd, wanted: set[int], *, big: bool) -> bytes | None:
    if page.raw(_DESCRIPTION).lstrip().startswith((b"{", b"ImageJ=", b"<")):  # a program's notes on an array
        wanted = wanted - {_DESCRIPTION}
    kept = replace(page, fields={tag: entry for tag, entry in page.fields.items() if tag in wanted})
    fields = tree(kept, big=big)
    return exif_block(fields) if fields else None


def _tiff_dpi(page: Ifd) -> tuple[float, float] | None:
    per_inch = {2: 1.0, 3: 2.54}.get(page.number(296, 2))
    if not {282, 283} <= {tag for tag, field in page.fields.items() if field.type == RATIONAL}:
        return None
    across, down = (np.frombuffer(page.raw(tag)[:8], "<u4").tolist() for tag in (282, 283))
    if per_inch is None or len(across) < 2 or len(down) < 2 or 0 in (*across, *down):
        return None
    return across[0] / across[1] * per_inch, down[0] / down[1] * per_inch

"""Laws of image files: what goes in comes out, upright and with its metadata, or an ImageError says why."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import PIL.JpegImagePlugin
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, TiffImagePlugin

from raydenoise.core.image import (
    DEFAULT_EXTENSION,
    EXTENSIONS,
    Format,
    Image,
    ImageError,
    admit,
    decode,
    encode,
)
from tests.core.png import chunk, png

Array = NDArray[Any]
SIZE = HEIGHT, WIDTH = 13, 22
FORMATS: tuple[Format, ...] = ("jpeg", "png", "tiff", "webp", "bmp")


def noise(*channels: int, dtype: type = np.uint8, size: tuple[int, int] = SIZE, seed: int = 0) -> Array:
    """(H, W, ...) of evenly spread values."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (*size, *channels), dtype, endpoint=True)


def smooth(*channels: int) -> Array:
    """(H, W, ...) uint8 that JPEG alters little."""
    ramp = np.add.outer(np.arange(HEIGHT) * 9, np.arange(WIDTH) * 5)
    return np.stack([ramp + 7 * i for i in range(*channels)], axis=2).astype(np.uint8)


def pillow(array: Array | PIL.Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
    image.save(buffer, name, **options)
    return buffer.getvalue()


def tiff(array: Array, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def png_of(array: Array) -> bytes:
    return bytes(imagecodecs.png_encode(array))


def opened(data: bytes) -> Any:
    image = PIL.Image.open(io.BytesIO(data))
    image.load()
    return image


def together(image: Image) -> Array:
    """Pixels and alpha, grey without its axis."""
    samples = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    return samples[..., 0] if samples.shape[2] == 1 else samples


def insert(data: bytes, *chunks: bytes) -> bytes:
    """Put chunks behind the header of a PNG."""
    return data[:33] + b"".join(chunks) + data[33:]


def exif(orientation: int = 1, *, details: dict[int, Any] | None = None) -> bytes:
    """An EXIF block with its prefix."""
    block = PIL.Image.Exif()
    block.endian = "<"
    block[ExifTags.Base.Orientation] = orientation
    block[ExifTags.Base.Make] = "Maker"
    block[ExifTags.Base.Artist] = "A. Painter"
    block[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: "2020:02:03 04:05:06",
        ExifTags.Base.ISOSpeedRatings: 640,
        **(details or {}),
    }
    block[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (52.0, 31.0, 12.5),
    }
    return block.tobytes()


def check_exif(data: bytes) -> None:
    """The tags of `exif` are there, in Pillow's eyes, and the picture is upright."""
    found = opened(data).getexif()
    assert found.get(ExifTags.Base.Orientation, 1) == 1
    assert (found[ExifTags.Base.Make], found[ExifTags.Base.Artist]) == ("Maker", "A. Painter")
    assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2020:02:03 04:05:06"
    assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 640
    assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (52.0, 31.0, 12.5)


SRGB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


def cmyk_profile() -> bytes:
    """A CMYK profile whose lookup table knows one thing: L* = 100 x (1 - K), whatever C, M and Y are."""
    straight = bytes(range(256))
    nodes = b"".join(bytes([255 * (1 - (i & 1)), 128, 128]) for i in range(16))  # K is the fastest axis
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + straight * 4 + nodes + straight * 3
    header = bytearray(128)
    struct.pack_into(">I4sI", header, 0, 144 + len(table), b"lcms", 0x02400000)
    header[12:24] = b"prtrCMYKLab "
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, 63190, 65536, 54061)  # D50
    return bytes(header) + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def texts(value: object) -> str:
    """What test names show of their parameters."""
    return value if isinstance(value, str) else ""


# What decode gives


@pytest.mark.parametrize("format", FORMATS)
def test_the_bytes_tell_the_format(format: Format) -> None:
    image = decode(pillow(smooth(3), format.upper()))
    assert image.format == format
    assert (image.height, image.width, image.channels, image.bit_depth) == (HEIGHT, WIDTH, 3, 8)
    assert image.pixels.flags.c_contiguous
    assert (image.alpha, image.icc, image.exif, image.note) == (None, None, None, None)


def test_extensions_and_defaults_agree() -> None:
    assert {EXTENSIONS[extension] for extension in EXTENSIONS} == set(FORMATS)
    assert all(EXTENSIONS[extension] == format for format, extension in DEFAULT_EXTENSION.items())


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 2}],
)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_jpeg_decodes_as_pillow_does(options: dict[str, Any], channels: tuple[int, ...]) -> None:
    data = pillow(noise(*channels), "JPEG", **options)
    assert np.array_equal(together(decode(data)), np.asarray(opened(data)))


@pytest.mark.parametrize("quality", [1, 50, 100])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 17), (40, 30)])
def test_complete_jpeg_of_any_size_is_accepted(quality: int, size: tuple[int, int]) -> None:
    for seed in range(5):
        data = pillow(noise(3, size=size, seed=seed), "JPEG", quality=quality, optimize=bool(seed % 2))
        assert np.array_equal(decode(data).pixels, np.asarray(opened(data)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_keeps_every_bit(dtype: type, channels: tuple[int, ...], interlaced: bool) -> None:
    array = noise(*channels, dtype=dtype)
    colour = {(): 0, (2,): 4, (3,): 2, (4,): 6}[channels]
    image = decode(png(array, depth=8 * array.itemsize, colour=colour, interlaced=interlaced))
    assert image.pixels.dtype == dtype
    assert np.array_equal(together(image), array)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (9, 8)])
def test_small_interlaced_png(size: tuple[int, int]) -> None:
    array = noise(3, dtype=np.uint16, size=size)
    assert np.array_equal(decode(png(array, depth=16, colour=2, interlaced=True)).pixels, array)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_few_bits_of_grey_become_eight(depth: int, interlaced: bool) -> None:
    array = noise() >> (8 - depth)
    expected = array * (255 // (2**depth - 1))
    data = png(array, depth=depth, interlaced=interlaced)
    assert np.array_equal(together(decode(data)), expected)
    assert np.array_equal(np.asarray(opened(data).convert("L")), expected)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_few_bits_of_grey_in_tiff_become_eight(depth: int, photometric: str) -> None:
    array = noise() >> (8 - depth)
    stored = array.astype(bool) if depth == 1 else array
    most = 2**depth - 1
    expected = (most - array if photometric == "miniswhite" else array) * (255 // most)
    image = decode(tiff(stored, bitspersample=depth, photometric=photometric))
    assert np.array_equal(together(image), expected)


@pytest.mark.parametrize("compression", ["group3", "group4", "packbits", "raw"])
def test_bilevel_tiff_of_pillow(compression: str) -> None:
    data = pillow(PIL.Image.fromarray(noise() > 128), "TIFF", compression=compression)
    assert np.array_equal(together(decode(data)), np.asarray(opened(data)) * np.uint8(255))


TIFF_LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "LZW": {"compression": "lzw", "predictor": True},
    "LZW big-endian": {"compression": "lzw", "predictor": True, "byteorder": ">"},
    "deflate": {"compression": "zlib", "predictor": True, "rowsperstrip": 3},
    "old deflate": {"compression": 32946},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "tiles": {"tile": (16, 16)},
    "deflate tiles": {"tile": (16, 16), "compression": "zlib", "predictor": True},
}


@pytest.mark.parametrize("layout", TIFF_LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_keeps_every_bit(layout: str, dtype: type, channels: int) -> None:
    array = noise(channels, dtype=dtype)
    options: dict[str, Any] = {
        "photometric": "rgb" if channels >= 3 else "minisblack",
        "planarconfig": "contig",
    }
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    if channels == 1:
        array = array[..., 0]
        options = {"photometric": "minisblack"}
    image = decode(tiff(array, **options, **TIFF_LAYOUTS[layout]))
    assert image.pixels.dtype == dtype
    assert image.pixels.dtype.isnative
    assert np.array_equal(together(image), array)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_separate_planes_of_tiff(byteorder: str, compression: str | None) -> None:
    array = noise(3, dtype=np.uint16)
    planes = np.ascontiguousarray(np.moveaxis(array, 2, 0))
    options = {"photometric": "rgb", "planarconfig": "separate", "byteorder": byteorder}
    assert np.array_equal(decode(tiff(planes, compression=compression, **options)).pixels, array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_in_tiff(dtype: type) -> None:
    array = noise(dtype=dtype)
    image = decode(tiff(array, photometric="miniswhite"))
    assert np.array_equal(together(image), np.iinfo(dtype).max - array)


def test_tiff_of_jpeg_strips_becomes_rgb() -> None:
    data = pillow(smooth(3), "TIFF", compression="jpeg", quality=100)
    difference = decode(data).pixels.astype(int) - np.asarray(opened(data).convert("RGB"))
    assert abs(difference).max() <= 2  # two decoders round apart


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("colours", [2, 5, 200])
def test_palettes_become_rgb(name: str, colours: int) -> None:
    indexed = PIL.Image.fromarray(noise(3)).quantize(colours)
    assert np.array_equal(decode(pillow(indexed, name)).pixels, np.asarray(indexed.convert("RGB")))


def test_a_tiff_palette_of_8_bits_in_16_is_read_as_meant() -> None:
    table = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint16)
    indices = noise()[..., 0] if noise().ndim == 3 else noise()
    data = tiff(indices, photometric="palette", colormap=table)
    assert np.array_equal(decode(data).pixels, table.T.astype(np.uint8)[indices])


def test_palette_with_transparency_becomes_rgb_and_alpha() -> None:
    indexed = PIL.Image.fromarray(noise(3)).quantize(8)
    data = pillow(indexed, "PNG", transparency=bytes([0, 100, 255]))
    assert np.array_equal(together(decode(data)), np.asarray(opened(data).convert("RGBA")))


@pytest.mark.parametrize(("depth", "dtype"), [(8, np.uint8), (16, np.uint16)])
@pytest.mark.parametrize(("colour", "channels"), [(0, ()), (2, (3,))])
def test_transparent_colour_becomes_alpha(
    depth: int,
    dtype: type,
    colour: int,
    channels: tuple[int, ...],
) -> None:
    array = noise(*channels, dtype=dtype)
    array[3, 5] = array[0, 0]
    key = chunk(b"tRNS", struct.pack(f">{array[0, 0].size}H", *array[0, 0].flat))
    image = decode(png(array, depth=depth, colour=colour, extra=key))
    hit = array == array[0, 0]
    assert image.alpha is not None
    assert np.array_equal(image.alpha == 0, hit if not channels else hit.all(axis=2))
    assert np.array_equal(together(replace(image, alpha=None)), array)


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_without_profile_becomes_rgb(name: str) -> None:
    cmyk = PIL.Image.fromarray(smooth(3)).convert("CMYK")
    data = pillow(cmyk, name)
    image = decode(data)
    assert np.array_equal(image.pixels, np.asarray(opened(data).convert("RGB")))
    assert image.note == "CMYK converted to RGB without a profile"
    assert abs(image.pixels.astype(int) - smooth(3)).mean() < 6  # not inverted


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(name: str) -> None:
    ink = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    ink[..., 0], ink[: HEIGHT // 2, :, 3] = (
        255,
        255,
    )  # the profile says: black above, white below, cyan or not
    cmyk = PIL.Image.frombytes("CMYK", (WIDTH, HEIGHT), ink.tobytes())
    data = pillow(cmyk, name, icc_profile=cmyk_profile())
    image = decode(data)
    assert image.pixels[0, 0].max() < 10
    assert image.pixels[-1, -1].min() > 245
    assert image.icc is None
    assert image.note == "CMYK converted to sRGB by its ICC profile, which is not kept"


def test_cmyk_with_an_unusable_profile_is_converted_plainly() -> None:
    cmyk = PIL.Image.fromarray(smooth(3)).convert("CMYK")
    assert decode(pillow(cmyk, "TIFF", icc_profile=SRGB)).note == "CMYK converted to RGB without a profile"
    assert decode(pillow(cmyk, "JPEG", icc_profile=b"x" * 200)).icc is None


def test_premultiplied_alpha_is_divided_out() -> None:
    array = np.array([[[50, 100, 10, 100], [0, 0, 0, 0], [7, 8, 9, 255]]], np.uint8)
    image = decode(tiff(array, photometric="rgb", extrasamples=["assocalpha"]))
    assert together(image).tolist() == [[[128, 255, 26, 100], [0, 0, 0, 0], [7, 8, 9, 255]]]
    assert image.note == "premultiplied alpha divided out"


def test_unspecified_channel_of_tiff_is_dropped_with_a_note() -> None:
    array = noise(4)
    image = decode(tiff(array, photometric="rgb", extrasamples=["unspecified"]))
    assert np.array_equal(together(image), array[..., :3])
    assert image.note == "a fourth channel of unspecified meaning not kept"


# Orientation and metadata


def with_orientation(kind: str, array: Array, orientation: int) -> bytes:
    block = exif(orientation)
    if kind == "tiff16":
        return tiff(array, photometric="rgb", extratags=[("Orientation", 3, 1, orientation, True)])
    if kind == "png16":
        return insert(png_of(array), chunk(b"eXIf", block[6:]))
    return pillow(array, kind.upper(), exif=block, **({"lossless": True} if kind == "webp" else {}))


@pytest.mark.parametrize("kind", ["jpeg", "png", "png16", "tiff", "tiff16", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    array = noise(3 if kind == "jpeg" else 4, dtype=np.uint16 if kind.endswith("16") else np.uint8)
    data = with_orientation(kind, array, orientation)
    if kind.endswith("16"):  # Pillow would read 8 bits
        planes = [PIL.Image.fromarray(array[..., i].astype(np.int32)) for i in range(4)]
        for plane in planes:
            plane.getexif()[ExifTags.Base.Orientation] = orientation
        expected = np.dstack([np.asarray(PIL.ImageOps.exif_transpose(plane)) for plane in planes])
    else:
        expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
    image = decode(data)
    assert np.array_equal(together(image), expected)
    for format in ("png", "tiff"):
        assert np.array_equal(together(decode(encode(image, format=format))), expected)


@pytest.mark.parametrize("source", ["jpeg", "png", "png16", "tiff", "webp"])
@pytest.mark.parametrize("target", ["jpeg", "png", "tiff", "webp"])
def test_profile_and_exif_are_kept(source: str, target: Format) -> None:
    if source == "png16":
        block = chunk(b"eXIf", exif(6)[6:])
        profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(SRGB))
        data = insert(png_of(noise(3, dtype=np.uint16)), profile, block)
    else:
        data = pillow(noise(3), source.upper(), exif=exif(6), icc_profile=SRGB)
    image = decode(data)
    assert (image.height, image.width) == (WIDTH, HEIGHT)
    assert image.icc == SRGB
    written = encode(image, format=target)
    assert opened(written).info["icc_profile"] == SRGB
    check_exif(written)
    assert (decode(written).exif is None, decode(written).icc, decode(written).note) == (False, SRGB, None)


def test_sixteen_bit_tiff_keeps_profile_and_exif() -> None:
    image = decode(pillow(noise(3), "JPEG", exif=exif(), icc_profile=SRGB))
    deep = replace(image, pixels=noise(3, dtype=np.uint16))
    data = encode(deep, format="tiff")
    check_exif(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        assert np.array_equal(file.asarray(), deep.pixels)
        assert (tags["Make"].value, tags["Artist"].value) == ("Maker", "A. Painter")
        assert tags["InterColorProfile"].value == SRGB
        assert tags["ExifTag"].value["DateTimeOriginal"] == "2020:02:03 04:05:06"
        assert tags["GPSTag"].value["GPSLatitudeRef"] == "N"
    check_exif(encode(decode(data), format="tiff"))  # and through a second time


@pytest.mark.parametrize("prefix", [b"II", b"MM"])
def test_exif_of_either_byte_order_survives(prefix: bytes) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=prefix)
    directory[ExifTags.Base.Orientation] = 8
    directory[ExifTags.Base.Make] = "Maker"
    directory[ExifTags.Base.XResolution] = 300.0
    header = b"II*\0\x08\0\0\0" if prefix == b"II" else b"MM\0*\0\0\0\x08"
    image = decode(insert(png_of(noise(3)), chunk(b"eXIf", header + directory.tobytes(8))))
    assert (image.height, image.width) == (WIDTH, HEIGHT)
    for format in ("jpeg", "tiff"):
        found = opened(encode(image, format=format)).getexif()
        assert found[ExifTags.Base.Make] == "Maker"
        assert found[ExifTags.Base.XResolution] == 300
        assert found.get(ExifTags.Base.Orientation, 1) == 1


def test_thumbnail_is_dropped_and_sizes_turn() -> None:
    plain = exif(6, details={0xA002: WIDTH, 0xA003: HEIGHT})[6:]
    thumbnail = pillow(noise(3, size=(4, 5)), "JPEG")
    second = TiffImagePlugin.ImageFileDirectory_v2()
    second[0x201], second[0x202] = 0, len(thumbnail)
    second.tagtype[0x201] = second.tagtype[0x202] = 4
    at = len(plain) + len(plain) % 2
    second[0x201] = at + len(second.tobytes(at))
    count = struct.unpack_from("<H", plain, 8)[0]
    linked = bytearray(plain.ljust(at, b"\0"))
    struct.pack_into("<I", linked, 10 + 12 * count, at)
    linked += second.tobytes(at) + thumbnail
    assert PIL.Image.Exif.get_ifd(loaded(bytes(linked)), ExifTags.IFD.IFD1)[0x202] == len(thumbnail)

    image = decode(insert(png_of(noise(3)), chunk(b"eXIf", bytes(linked))))
    assert image.exif is not None
    assert thumbnail not in image.exif
    found = loaded(image.exif)
    assert found.get_ifd(ExifTags.IFD.IFD1) == {}
    details = found.get_ifd(ExifTags.IFD.Exif)
    assert (details[0xA002], details[0xA003]) == (HEIGHT, WIDTH)


def loaded(block: bytes) -> PIL.Image.Exif:
    found = PIL.Image.Exif()
    found.load(block)
    return found


def test_maker_note_stays_where_it_was() -> None:
    block = exif(3, details={ExifTags.Base.MakerNote: b"secret offsets inside"})
    before = block[6:]
    after = decode(pillow(noise(3), "JPEG", exif=block)).exif
    assert after is not None
    assert after.index(b"secret") == before.index(b"secret")
    assert len(after) == len(before)


@pytest.mark.parametrize(
    "block",
    [
        b"garbage",
        b"II*\0\x08\0\0\0",
        b"II*\0\xff\0\0\0\0\0",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 34665, 4, 1, 9999) + bytes(4),
    ],
)
def test_broken_exif_is_dropped_with_a_note(block: bytes) -> None:
    for data in (
        pillow(noise(3), "JPEG", exif=b"Exif\0\0" + block),
        insert(png_of(noise(3)), chunk(b"eXIf", block)),
        pillow(noise(3), "WEBP", exif=block),
    ):
        image = decode(data)
        assert image.exif is None
        assert image.note == "a broken EXIF block not kept"


def test_broken_exif_directory_costs_neither_orientation_nor_picture() -> None:
    array = noise(3)
    turned = ("Orientation", 3, 1, 6, True)
    for big in (False, True):
        tags = [turned, (54665, 16 if big else 4, 1, 2**64 - 9 if big else 99999, True)]
        data = tiff(array, photometric="rgb", extratags=tags, bigtiff=big)
        image = decode(data.replace(struct.pack("<H", 54665), struct.pack("<H", 34665)))
        assert image.note == "a broken EXIF directory not kept"
        assert np.array_equal(image.pixels, np.rot90(array, -1))
    entries = struct.pack("<HHIHH", 274, 3, 1, 6, 0) + struct.pack("<HHII", 34665, 4, 1, 0xFFFFFFFF)
    block = b"II*\0\x08\0\0\0\2\0" + entries + bytes(4)
    image = decode(insert(png_of(array), chunk(b"eXIf", block)))
    assert (image.exif, image.note) == (None, "a broken EXIF block not kept")
    assert np.array_equal(image.pixels, np.rot90(array, -1))


def test_broken_profile_is_dropped_with_a_note() -> None:
    base = png_of(noise(3))
    for body in (b"name\0\0garbage", b"name\0\0" + zlib.compress(SRGB)[:100]):
        assert decode(insert(base, chunk(b"iCCP", body))).note == "a damaged ICC profile not kept"
    part = b"ICC_PROFILE\0\1\2" + SRGB  # the first of two
    data = pillow(noise(3), "JPEG")
    data = data[:2] + b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part + data[2:]
    image = decode(data)
    assert (image.icc, image.note) == (None, "an incomplete ICC profile not kept")


def test_malformed_segments_of_jpeg_are_ignored() -> None:
    array = noise(3)
    data = pillow(array, "JPEG")
    for body in (b"JFIF\0", b"ICC_PROFILE\0", b"MPF\0junk", b"Exif\0\0"):
        code = {b"J": 0xE0, b"E": 0xE1}.get(body[:1], 0xE2)
        segment = struct.pack(">BBH", 0xFF, code, len(body) + 2) + body
        assert np.array_equal(decode(data[:2] + segment + data[2:]).pixels, decode(data).pixels)


def test_profile_that_is_too_long_is_dropped_with_a_note() -> None:
    image = decode(pillow(noise(3), "WEBP", icc_profile=bytes(17_000_000)))
    assert (image.icc, image.note) == (None, "an ICC profile of more than 16 MB not kept")


def test_long_profile_and_long_exif() -> None:
    image = replace(decode(pillow(noise(3), "PNG")), icc=bytes(range(256)) * 600)
    for format in ("jpeg", "png", "tiff", "webp"):
        assert decode(encode(image, format=format)).icc == image.icc
    block = exif(details={ExifTags.Base.MakerNote: bytes(70_000)})
    image = replace(image, exif=block[6:])
    assert decode(encode(image, format="png")).exif == image.exif
    assert decode(encode(image, format="jpeg")).exif is None


def test_colour_space_that_only_png_states_is_noted() -> None:
    base = png_of(noise(3))
    linear = chunk(b"gAMA", struct.pack(">I", 100_000))
    assert decode(insert(base, linear)).note == "the PNG file's gamma of 1 not kept"
    assert decode(insert(base, linear, chunk(b"sRGB", b"\0"))).note is None
    assert decode(insert(base, chunk(b"gAMA", struct.pack(">I", 45455)))).note is None
    wide = decode(insert(base, chunk(b"cICP", b"\x09\x10\0\1")))
    assert wide.note == "the PNG file's cICP colour space not kept"


@pytest.mark.parametrize("source", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("target", ["jpeg", "png", "tiff", "bmp"])
def test_resolution_is_kept(source: str, target: Format) -> None:
    image = decode(pillow(noise(3), source, dpi=(300, 150)))
    assert opened(encode(image, format=target)).info["dpi"] == pytest.approx((300, 150), abs=0.02)


def test_resolution_per_centimetre_and_turned() -> None:
    array = noise(3)
    turned = [("Orientation", 3, 1, 6, True)]
    data = tiff(array, photometric="rgb", resolution=(100, 50), resolutionunit="centimeter", extratags=turned)
    assert decode(data).dpi == pytest.approx((127, 254))
    nonsense = tiff(array, photometric="rgb", resolution=(4_000_000_000, 1), resolutionunit="inch")
    assert decode(nonsense).dpi is None


@pytest.mark.parametrize("kind", [1, 2, 3, 4])  # byte, ASCII, short, long
@pytest.mark.parametrize("tag", [282, 283])
def test_resolution_of_another_type_costs_the_resolution_alone(tag: int, kind: int) -> None:
    array = noise(3)
    data = tiff(array, photometric="rgb", resolution=(100, 50), resolutionunit="inch")
    entry = struct.pack("<HHI", tag, 5, 1)
    assert data.count(entry) == 1
    image = decode(data.replace(entry, struct.pack("<HHI", tag, kind, 1)))
    assert np.array_equal(image.pixels, array)
    assert image.dpi is None


def test_descriptions_of_arrays_are_not_kept() -> None:
    assert decode(tiff(noise(3), photometric="rgb", software=False, metadata={"axes": "YXS"})).exif is None
    kept = decode(tiff(noise(3), photometric="rgb", description="the cat", metadata=None, software="scan"))
    assert opened(encode(kept, format="tiff")).tag_v2[270] == "the cat"
    assert opened(encode(kept, format="jpeg")).getexif()[305] == "scan"


# Several pictures in one file


def mpo(pictures: int) -> bytes:
    frames = [PIL.Image.fromarray(noise(3, seed=i)) for i in range(pictures)]
    return pillow(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100)


def test_mpo_gives_its_primary_picture() -> None:
    image = decode(mpo(3))
    first = opened(mpo(3))
    first.seek(0)
    assert image.format == "jpeg"
    assert np.array_equal(image.pixels, np.asarray(first))
    rest = "of the MPO file (previews, depth or gain maps) not kept"
    assert image.note == f"2 secondary pictures {rest}"
    assert decode(mpo(2)).note == f"1 secondary picture {rest}"


def test_video_behind_a_jpeg_is_noted() -> None:
    data = pillow(noise(3), "JPEG")
    assert decode(data + bytes(600)).note is None
    note = "5,000 bytes behind the picture (a motion photo's video?) not kept"
    assert decode(data + bytes(5000)).note == note


def test_previews_and_masks_of_tiff_are_no_pages() -> None:
    buffer = io.BytesIO()
    array = noise(3, dtype=np.uint16)
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(noise(3, size=(4, 5)), photometric="rgb", subfiletype=1)
        writer.write(array, photometric="rgb", subifds=1)
        writer.write(noise(3, size=(6, 7)), photometric="rgb", subfiletype=1)
        writer.write(noise() > 128, photometric="mask", subfiletype=4)
    image = decode(buffer.getvalue())
    assert np.array_equal(image.pixels, array)
    assert image.note == "3 of the TIFF file's directories (previews, masks) not kept"


def imagej_stack() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, noise(dtype=np.uint16)[None].repeat(5, axis=0), imagej=True)
    return buffer.getvalue()


def frames(name: str) -> bytes:
    pictures = [PIL.Image.fromarray(noise(3, seed=i)) for i in range(3)]
    return pillow(pictures[0], name, save_all=True, append_images=pictures[1:])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (frames("TIFF"), "a TIFF file of 3 pages; allowed: one; split it first"),
        (frames("PNG"), "an animated PNG of 3 frames; allowed: one; split it first"),
        (frames("WEBP"), "an animated WebP of 3 frames; allowed: none; split it first"),
        (imagej_stack(), "a TIFF file of 5 pages; allowed: one; split it first"),
    ],
    ids=texts,
)
def test_several_pages_are_refused(data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        decode(data)
    assert caught.value.kind == "multi_page"


# Bad files


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            b"<!DOCTYPE html><html>",
            "it looks like an HTML or XML document; allowed: jpeg, png, tiff, webp, bmp",
        ),
        (b"\n  <?xml version='1.0'?><svg/>", "it looks like an HTML or XML document"),
        (b"GIF89a" + bytes(40), "it looks like a GIF picture"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "it looks like a HEIC picture"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "it looks like an AVIF picture"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), r"it looks like a camera raw file \(CR3\)"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "it looks like a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "it looks like an EPS or PostScript document"),
        (b"FUJIFILMCCD-RAW", r"it looks like a camera raw file \(RAF\)"),
        (b"BMW is a car, not a bitmap", r"it begins with b'BMW is a'"),
        (b"plain text", "no image file: it begins with b'plain te'"),
        (bytes(100), "no image file"),
    ],
    ids=texts,
)
def test_other_files_are_named(data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        decode(data)
    assert caught.value.kind == "not_an_image"


def test_empty_file() -> None:
    with pytest.raises(ImageError, match="the file is empty: 0 bytes") as caught:
        decode(b"")
    assert caught.value.kind == "empty"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_too_many_pixels(name: str) -> None:
    data = pillow(noise(3), name)
    assert decode(data, max_pixels=WIDTH * HEIGHT).width == WIDTH
    with pytest.raises(ImageError, match="22 x 13 = 286 pixels; allowed: 285; --max-pixels") as caught:
        decode(data, max_pixels=285)
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": exif()}])
def test_size_of_every_kind_of_webp_is_known(options: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="22 x 13 = 286 pixels"):
        decode(pillow(noise(3), "WEBP", **options), max_pixels=1)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_limit_of_pillow_does_not_interfere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pillow(noise(3), name)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(data).pixels.shape == (HEIGHT, WIDTH, 3)


def test_header_that_lies_about_its_size_is_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 14_000, 14_000, 16, 6, 0, 0, 0)
    data = png(noise())
    lie = data[:8] + chunk(b"IHDR", header) + data[33:]
    with pytest.raises(ImageError, match="too few for 1,568,014,000 of pixels") as caught:
        decode(lie)
    assert caught.value.kind == "corrupt"


def zero_sized() -> list[bytes]:
    jpeg = bytearray(pillow(noise(3), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 7] = bytes(2)
    bmp = bytearray(pillow(noise(3), "BMP"))
    bmp[18:22] = bytes(4)
    page = tiff(noise(3), photometric="rgb", metadata=None)
    entry = page.index(struct.pack("<H", 256))
    no_width = page[: entry + 8] + bytes(4) + page[entry + 12 :]
    return [bytes(jpeg), png(np.zeros((0, 4), np.uint8)), bytes(bmp), no_width]


@pytest.mark.parametrize("data", zero_sized(), ids=texts)
def test_zero_sized(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"declares \d+ x \d+ pixels; allowed: from 1 x 1") as caught:
        decode(data)
    assert caught.value.kind == "zero_sized"


SEEDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: pillow(noise(3), "JPEG", exif=exif(6), icc_profile=SRGB),
    "jpeg progressive": lambda: pillow(noise(3), "JPEG", progressive=True),
    "jpeg restarts": lambda: pillow(noise(), "JPEG", restart_marker_blocks=1),
    "png": lambda: pillow(noise(3), "PNG", exif=exif(6), icc_profile=SRGB),
    "png 16": lambda: png_of(noise(4, dtype=np.uint16)),
    "png palette": lambda: pillow(PIL.Image.fromarray(noise(3)).quantize(8), "PNG", transparency=2),
    "tiff": lambda: pillow(noise(3), "TIFF", exif=exif(6), icc_profile=SRGB),
    "tiff lzw": lambda: pillow(noise(3), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: pillow(noise(3), "TIFF", compression="jpeg"),
    "tiff 16": lambda: tiff(noise(3, dtype=np.uint16), compression="zlib", predictor=True, tile=(16, 16)),
    "tiff ours": lambda: encode(Image(noise(3, dtype=np.uint16), None, "tiff"), format="tiff"),
    "webp": lambda: pillow(noise(3), "WEBP", exif=exif(6), icc_profile=SRGB),
    "webp lossless": lambda: pillow(noise(4), "WEBP", lossless=True),
    "bmp": lambda: pillow(noise(3), "BMP"),
    "bmp palette": lambda: pillow(PIL.Image.fromarray(noise(3)).quantize(8), "BMP"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_cut_files_are_truncated(seed: str, part: float) -> None:
    data = SEEDS[seed]()
    with pytest.raises(ImageError, match=r"ends|truncated") as caught:
        decode(data[: int(part * len(data))])
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("seed", ["jpeg", "png", "tiff 16", "webp", "bmp"])
def test_no_shorter_file_is_accepted(seed: str) -> None:
    data = SEEDS[seed]()
    for length in range(1, len(data) - 2, 7):
        with pytest.raises(ImageError):
            decode(data[:length])


@pytest.mark.parametrize("part", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("tail", [b"\xff\xd9", bytes(3000)])
def test_jpeg_is_never_padded_with_grey(part: float, tail: bytes) -> None:
    data = pillow(noise(3, size=(64, 48)), "JPEG")
    cut = data[: int(part * len(data))].rstrip(b"\xff") + tail
    assert opened(cut).size == (48, 64)  # Pillow sees nothing wrong
    with pytest.raises(ImageError, match=r"truncated|ends after") as caught:
        decode(cut)
    assert caught.value.kind == "truncated"


def test_wrong_checksum_and_wrong_data_are_corrupt() -> None:
    data = bytearray(pillow(noise(3), "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageError, match=r"chunk b'IDAT' has a wrong checksum") as caught:
        decode(bytes(data))
    assert caught.value.kind == "corrupt"
    data = bytearray(tiff(noise(3), photometric="rgb", compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        data[file.pages.first.dataoffsets[0] + 20] ^= 1
    with pytest.raises(ImageError, match=r"the tiff file of [\d,]+ bytes cannot be decoded: ") as caught:
        decode(bytes(data))
    assert caught.value.kind == "corrupt"
    assert caught.value.__cause__ is not None


def test_damaged_text_does_not_cost_the_picture() -> None:
    array = noise(3)
    damaged = bytearray(chunk(b"tEXt", b"Title\0cat"))
    damaged[10] ^= 1
    assert np.array_equal(decode(insert(png_of(array), bytes(damaged))).pixels, array)


def bad_pngs() -> list[tuple[bytes, str]]:
    array = noise()
    data = png(array)
    short = data[:33] + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    cut = data[:33] + chunk(b"IDAT", zlib.compress(array.tobytes())[:-40]) + chunk(b"IEND", b"")
    return [
        (png(array, colour=3), "PNG palette of 0 bytes; allowed: 3 to 768"),
        (png(array, colour=5), "declares 8 bits of colour type 5"),
        (data[:8] + chunk(b"IDAT", b"") + data[8:], "does not begin with its header"),
        (short, "picture data are 100 bytes instead of 299"),
        (cut, "picture data end after"),
        (data[:33] + chunk(b"IEND", b""), "picture data end after 0 of 299 bytes"),
    ]


@pytest.mark.parametrize(("data", "match"), bad_pngs(), ids=texts)
def test_bad_png(data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        decode(data)


def test_surplus_png_data_are_ignored() -> None:
    array = noise()
    raw = b"".join(b"\0" + row.tobytes() for row in array) + bytes(50)
    data = png(array)[:33] + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert np.array_equal(together(decode(data)), array)


def test_bad_jpeg() -> None:
    with pytest.raises(ImageError, match="ends without picture data"):
        decode(b"\xff\xd8\xff\xd9")
    scan = pillow(noise(3), "JPEG")
    scan = scan[scan.index(b"\xff\xda") :]
    with pytest.raises(ImageError, match="picture data before its size"):
        decode(b"\xff\xd8" + scan)


def unsupported() -> list[tuple[bytes, str]]:
    grey = {"photometric": "minisblack"}
    lab = PIL.Image.frombytes("LAB", (WIDTH, HEIGHT), noise(3).tobytes())
    return [
        (
            tiff(noise().astype(np.float32), **grey),
            "32-bit floating point samples; allowed: unsigned 8- or 16-bit",
        ),
        (tiff(noise().astype(np.int16), **grey), "16-bit signed integer samples"),
        (tiff(noise().astype(np.uint32), **grey), "32-bit samples of photometric interpretation 1"),
        (tiff(noise(dtype=np.uint16), bitspersample=12, **grey), "12-bit samples"),
        (tiff(noise(6), planarconfig="contig", **grey), "6 samples per pixel"),
        (tiff(noise(4, dtype=np.uint16), photometric="separated"), "16/16/16/16-bit samples"),
        (tiff(noise(3), photometric="ycbcr"), "YCbCr samples without JPEG compression"),
        (tiff(noise(), compression="png"), "compression 34933"),
        (pillow(lab, "TIFF"), "a TIFF file of CIELAB"),
        (tiff(noise(3), photometric="rgb", subfiletype=1), "camera raw file or previews only"),
        (tiff(noise(dtype=np.uint16), photometric="cfa"), "a TIFF file of camera raw"),
        (bytes(imagecodecs.jpeg8_encode(noise(3), lossless=True)), "coding process 3; allowed: 8 bits"),
        (
            bytes(imagecodecs.jpeg8_encode(noise(dtype=np.uint16) >> 4, bitspersample=12)),
            "a JPEG file of 12 bits",
        ),
    ]


@pytest.mark.parametrize(("data", "match"), unsupported(), ids=texts)
def test_unsupported_samples_are_named(data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        decode(data)
    assert caught.value.kind == "unsupported"


def test_tiff_that_lies_about_its_strips() -> None:
    data = tiff(noise(3), photometric="rgb", rowsperstrip=4, compression="zlib", metadata=None)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        counts, rows = tags["StripByteCounts"], tags["RowsPerStrip"]
    at, size = counts.valueoffset, len(struct.pack("<4H" if counts.dtype == 3 else "<4I", *counts.value))
    with pytest.raises(ImageError, match="without 4 of its 4 strips or tiles") as caught:
        decode(data[:at] + bytes(size) + data[at + size :])
    assert caught.value.kind == "truncated"
    for value, match in ((0, "strips or tiles of 22 x 0 pixels"), (1, "without 9 of its 13 strips or tiles")):
        with pytest.raises(ImageError, match=match):
            decode(data[: rows.valueoffset] + struct.pack("<H", value) + data[rows.valueoffset + 2 :])


def test_overlapping_directories_of_tiff_are_corrupt() -> None:
    page = tiff(noise(3), photometric="rgb", metadata=None)
    link = 10 + 12 * struct.unpack_from("<H", page, 8)[0]
    heap = bytearray(4000)
    for start in range(0, 100, 4):  # directories of 300 entries, four bytes apart, each linking to the next
        heap[start : start + 2] = struct.pack("<H", 300)
        heap[start + 3602 : start + 3606] = struct.pack("<I", len(page) + start + 4)
    with pytest.raises(ImageError, match="directories overlap") as caught:
        decode(page[:link] + struct.pack("<I", len(page)) + page[link + 4 :] + heap)
    assert caught.value.kind == "corrupt"


def test_errors_survive_pickling() -> None:
    with pytest.raises(ImageError) as caught:
        decode(b"")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.kind, str(copy)) == (ImageError, "empty", str(caught.value))


def mutations(data: bytes, rng: np.random.Generator, *, count: int) -> list[bytes]:
    out = []
    for _ in range(count):
        copy = bytearray(data)
        at = int(rng.integers(len(copy)))
        match int(rng.integers(4)):
            case 0:
                del copy[at:]
            case 1:
                for position in rng.integers(len(copy), size=3):
                    copy[position] = int(rng.integers(256))
            case 2:
                copy[at:at] = rng.bytes(int(rng.integers(1, 20)))
            case _:
                del copy[at : at + int(rng.integers(1, 20))]
        out.append(bytes(copy))
    return out


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_files_give_an_image_or_an_image_error(seed: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(list(SEEDS).index(seed))
    for data in mutations(SEEDS[seed](), rng, count=60):
        try:
            outcome = str(decode(data, max_pixels=10_000_000).format)
        except ImageError as error:
            outcome = str(error)
        assert 0 < len(outcome) <= 300
        assert "\n" not in outcome
    assert capfd.readouterr() == ("", "")


# What encode gives


@st.composite
def images(draw: st.DrawFn, *, deep: bool = True, alpha: bool = True) -> Image:
    size = draw(st.tuples(st.integers(1, 30), st.integers(1, 40)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16])) if deep else np.uint8
    seed = draw(st.integers(0, 1000))
    pixels = noise(draw(st.sampled_from([1, 3])), dtype=dtype, size=size, seed=seed)
    if draw(st.booleans()):
        pixels //= 7  # something to compress
    transparency = noise(dtype=dtype, size=size, seed=seed + 1) if alpha and draw(st.booleans()) else None
    return Image(pixels, transparency, "png")


def check_round_trip(image: Image, format: Format, *, quality: int = 95) -> None:
    back = decode(encode(image, format=format, quality=quality))
    assert back.format == format
    assert back.pixels.dtype == image.pixels.dtype
    assert np.array_equal(together(back), together(image))


@settings(deadline=None, max_examples=60)
@given(images(), st.sampled_from(["png", "tiff"]))
def test_png_and_tiff_round_trip(image: Image, format: Format) -> None:
    check_round_trip(image, format)


@settings(deadline=None, max_examples=30)
@given(images(deep=False, alpha=False))
def test_bmp_round_trip(image: Image) -> None:
    check_round_trip(image, "bmp")


@settings(deadline=None, max_examples=30)
@given(images(deep=False))
def test_lossless_webp_round_trip(image: Image) -> None:
    colour = replace(image, pixels=np.broadcast_to(image.pixels, (*image.pixels.shape[:2], 3)))
    check_round_trip(colour, "webp", quality=100)


@settings(deadline=None, max_examples=40)
@given(images())
def test_other_readers_agree(image: Image) -> None:
    png_data, tiff_data = encode(image, format="png"), encode(image, format="tiff")
    assert np.array_equal(imagecodecs.png_decode(png_data), together(image))
    assert np.array_equal(tifffile.imread(io.BytesIO(tiff_data)), together(image))
    assert np.array_equal(imagecodecs.tiff_decode(tiff_data), together(image))
    if image.bit_depth == 8:
        assert np.array_equal(np.asarray(opened(png_data)), together(image))
        assert np.array_equal(np.asarray(opened(tiff_data)), together(image))


def test_tiff_of_many_strips() -> None:
    array = noise(3, dtype=np.uint16, size=(700, 300))
    data = encode(Image(array, None, "tiff"), format="tiff")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages.first.dataoffsets) > 3
        assert np.array_equal(file.asarray(), array)
    assert np.array_equal(decode(data).pixels, array)


@pytest.mark.parametrize("format", ["jpeg", "webp", "bmp"])
def test_sixteen_bits_are_rounded_to_eight(format: Format) -> None:
    levels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64, 1).repeat(3, axis=2)
    expected = np.rint(levels / 257).astype(np.uint8)
    back = decode(encode(Image(levels, None, "png"), format=format, quality=100))
    assert back.bit_depth == 8
    assert abs(back.pixels.astype(int) - expected).max() <= (1 if format == "jpeg" else 0)


def test_grey_stays_grey_except_in_webp() -> None:
    grey = Image(noise(1), None, "png")
    for format in FORMATS:
        image = decode(encode(grey, format=format, quality=100))
        assert image.channels == (3 if format == "webp" else 1)
    assert np.array_equal(decode(encode(grey, format="webp", quality=100)).pixels[..., 1:2], grey.pixels)


def test_grey_profile_does_not_go_with_colour() -> None:
    profile = bytes(16) + b"GRAY" + bytes(200)
    grey = Image(noise(1), None, "png", icc=profile)
    assert decode(encode(grey, format="webp")).icc is None
    assert decode(encode(grey, format="png")).icc == profile


def test_jpeg_has_full_colour_resolution_and_obeys_quality() -> None:
    image = Image(noise(3), None, "png")
    data = encode(image, format="jpeg")
    assert PIL.JpegImagePlugin.get_sampling(opened(data)) == 0
    for format in ("jpeg", "webp"):
        assert len(encode(image, format=format, quality=30)) < len(encode(image, format=format, quality=90))


@pytest.mark.parametrize("quality", [1, 50, 100])
def test_webp_keeps_alpha_at_any_quality(quality: int) -> None:
    alpha = noise(seed=1)
    back = decode(encode(Image(noise(3), alpha, "png"), format="webp", quality=quality))
    assert back.alpha is not None
    assert np.array_equal(back.alpha, alpha)


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_quality_out_of_range(quality: int) -> None:
    with pytest.raises(ValueError, match=rf"quality is {quality}; allowed: 1 to 100"):
        encode(Image(noise(3), None, "png"), format="jpeg", quality=quality)


@pytest.mark.parametrize("format", ["jpeg", "bmp"])
def test_alpha_that_cannot_be_kept_is_an_error(format: Format) -> None:
    image = Image(noise(3), noise(), "png")
    with pytest.raises(ImageError, match=f"{format} cannot hold alpha; --format png") as caught:
        encode(image, format=format)
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(("format", "allowed"), [("jpeg", 65500), ("webp", 16383)])
def test_side_that_is_too_long_is_an_error(format: Format, allowed: int) -> None:
    image = Image(noise(1, size=(1, allowed + 1)), None, "png")
    match = f"a side is {allowed + 1} pixels; {format} allows {allowed}"
    with pytest.raises(ImageError, match=match) as caught:
        encode(image, format=format)
    assert caught.value.kind == "unsupported"
    check_round_trip(image, "png")
    encode(Image(noise(1, size=(1, allowed)), None, "png"), format=format)


def test_block_that_is_no_exif_is_an_error() -> None:
    with pytest.raises(ValueError, match="exif is no TIFF-structured block"):
        encode(Image(noise(3), None, "png", exif=b"nonsense"), format="tiff")


@pytest.mark.parametrize(
    ("pixels", "alpha", "match"),
    [
        (
            noise(),
            None,
            r"pixels are uint8 \(13, 22\); allowed: uint8 or uint16 of shape \(H, W, 1 or 3\)",
        ),
        (noise(4), None, r"pixels are uint8 \(13, 22, 4\)"),
        (noise(3).astype(np.float32), None, "pixels are float32"),
        (np.zeros((0, 4, 3), np.uint8), None, r"uint8 \(0, 4, 3\)"),
        (noise(3), noise(1), r"alpha is uint8 \(13, 22, 1\); allowed: uint8 \(13, 22\)"),
        (noise(3), noise(dtype=np.uint16), "alpha is uint16"),
    ],
)
def test_image_of_other_arrays_is_an_error(pixels: Array, alpha: Array | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Image(pixels, alpha, "png")


@pytest.mark.parametrize(
    ("head", "size", "kind", "message"),
    [
        (b"\x00\x00\x00\x20ftypmp42", 10**9, "not_an_image", "no image file"),
        (b"\x89PNG\r\n\x1a\n", 10**9, "too_large", "the file has 1,000,000,000 bytes; allowed: 67,908,864"),
    ],
)
def test_a_file_that_cannot_be_a_picture_is_refused_unread(head: bytes, size: int, kind: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        admit(head, size, max_pixels=100_000)
    assert caught.value.kind == kind


def test_a_beginning_of_a_picture_is_admitted() -> None:
    admit(b"\x89PNG\r\n\x1a\n", 10**6, max_pixels=100_000)
    admit(b"", 0)  # decode says that it is empty

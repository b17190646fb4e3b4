"""Laws of damaged and hostile files: an Image or an ImageError, in little time and memory; no program is started."""

import io
import lzma
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

from raydenoise.core.codecs import tiff
from raydenoise.core.image import EXTENSIONS, ImageError, decode
from tests.core import mutations

FUZZED = 720  # files, 20 of each seed: half a second
ROOT = Path(__file__).parents[2]


def test_the_undamaged_files_are_pictures() -> None:
    several = {"tiff pages": "multi_page", "webp animated": "multi_page"}
    for name, data in mutations.seeds().items():
        assert mutations.outcome(data) == several.get(name, "ok"), name
    assert {name.split()[0] for name in mutations.seeds()} == set(EXTENSIONS.values())


def test_damaged_files_are_an_image_or_an_image_error(capfd: pytest.CaptureFixture[str]) -> None:
    kinds = Counter(mutations.outcome(mutations.mutated(index)[1]) for index in range(FUZZED))
    assert kinds.keys() >= {"ok", "corrupt", "truncated", "too_large", "zero_sized", "unsupported", "not_an_image"}
    assert capfd.readouterr() == ("", "")


def test_mutations_are_the_same_for_the_same_numbers() -> None:
    assert mutations.mutated(17, seed=3) == mutations.mutated(17, seed=3) != mutations.mutated(17, seed=4)


@pytest.mark.slow
def test_many_damaged_files_kill_no_process() -> None:
    command = [sys.executable, "-m", "tests.core.mutations", "--count", "20000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith('{"files": 20000, ') and done.stdout.count("\n") == 1, done.stdout  # noqa: PT018


# What fuzzing and reading found


def tiff_of(strips: list[bytes], *, compression: int, width: int = 16, height: int = 16, times: int = 1) -> bytes:
    """An 8-bit grey, or in JPEG colour, TIFF of given strips, the list of them named `times` times."""
    body = bytearray(b"II*\0\0\0\0\0")
    places = []
    for strip in strips:
        places.append((len(body), len(strip)))
        body += strip
    places *= times
    tables = [len(body), len(body) + 4 * len(places)]
    if len(places) == 1:
        tables = list(places[0])
    else:
        for column in zip(*places, strict=True):
            body += struct.pack(f"<{len(places)}I", *column)
    colours = (6, 3) if compression == 7 else (1, 1)
    bits = len(body) if colours[1] == 3 else 8
    body += struct.pack("<3H", 8, 8, 8)
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, colours[1], bits), (259, 3, 1, compression)]
    fields += [(262, 3, 1, colours[0]), (273, 4, len(places), tables[0]), (277, 3, 1, colours[1])]
    fields += [(278, 4, 1, -(-height // len(places))), (279, 4, len(places), tables[1])]
    struct.pack_into("<I", body, 4, len(body))
    entries = b"".join(struct.pack("<HHII", *entry) for entry in fields)
    return bytes(body) + struct.pack("<H", len(fields)) + entries + bytes(4)


def jpeg(*, claims: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    """A JPEG of 16 x 16 pixels whose header claims a width and a height."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(buffer, "JPEG", **options)
    data = bytearray(buffer.getvalue())
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[at + 5 : at + 9] = struct.pack(">HH", *claims[::-1])
    return bytes(data)


def refused(data: bytes, *, max_pixels: int = 200_000_000) -> str:
    """Decode a file that must be refused; returns kind and message."""
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=max_pixels)
    return f"{caught.value.kind}: {caught.value}"


def test_a_strip_of_tiff_cannot_claim_more_than_its_place() -> None:
    """Found by reading: 759 bytes took 1.1 GB and 3.3 s at 20,000 x 20,000, and 12 GB at 65,500 x 65,500."""
    message = "corrupt: a JPEG strip declares 20000 x 19999 pixels in a place of 16 x 16"
    assert refused(tiff_of([jpeg(claims=(20000, 19999))], compression=7)) == message
    assert decode(tiff_of([jpeg()], compression=7)).pixels.shape == (16, 16, 3)
    lossless = bytes(imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8), lossless=True))
    assert refused(tiff_of([lossless], compression=7)).startswith("unsupported: a TIFF file of JPEG strips of coding")


def test_strips_of_tiff_cannot_share_their_bytes_thousands_of_times() -> None:
    """Found by reading: 20 MB named by 3,000 strips took over 90 s."""
    strip = zlib.compress(bytes(range(100))) + bytes(10_000)
    data = tiff_of([strip], compression=8, width=100, height=300, times=300)
    assert "corrupt: the TIFF file's strips or tiles overlap: 3,0" in refused(data)
    strip = zlib.compress(bytes(range(100)))
    shared = decode(tiff_of([strip], compression=8, width=100, height=300, times=300))  # an honest saving
    assert (shared.pixels[..., 0] == np.arange(100)).all()


LZW_THAT_KILLED = bytes.fromhex("001d0340")  # found by fuzzing, 20,000 files of seed 3; CLEAR, then code 398


def test_imagecodecs_unpacks_no_lzw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 2026.3.6 reads a table that nobody filled: a crash, or another result with each state of the heap."""
    asked: list[object] = []
    monkeypatch.setattr(imagecodecs, "lzw_decode", lambda *values, **_: asked.append(values))
    for strip in (LZW_THAT_KILLED, LZW_THAT_KILLED * 50):
        assert refused(tiff_of([strip], compression=5)).startswith("corrupt: the tiff file of ")
    values = np.random.default_rng(0).integers(0, 9, (50, 70, 3), np.uint8)
    layouts = [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}, {"predictor": True}, {"byteorder": ">", "predictor": True}]
    for layout in layouts:
        for array in (values, values.astype(np.uint16) * 999):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, array, photometric="rgb", compression="lzw", **layout)
            assert np.array_equal(decode(buffer.getvalue()).pixels, array), layout
    for planes in (values, values[..., 0]):  # planes one behind the other; one bit
        buffer = io.BytesIO()
        if planes.ndim == 3:
            moved = np.ascontiguousarray(np.moveaxis(planes, 2, 0))
            tifffile.imwrite(
                buffer, moved, photometric="rgb", planarconfig="separate", compression="lzw", rowsperstrip=9
            )
            expected = planes
        else:
            PIL.Image.fromarray(planes > 4).save(buffer, "TIFF", compression="tiff_lzw")
            expected = (planes > 4)[..., None] * np.uint8(255)
        assert np.array_equal(decode(buffer.getvalue()).pixels, expected)
    assert asked == []


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """Each scan may be a few bytes and runs over all pixels."""
    data = jpeg(progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data).pixels.shape == (16, 16, 3)
    for many in (data[:-2] + last * 200 + b"\xff\xd9", tiff_of([data[:-2] + last * 200], compression=7)):
        assert refused(many) == "unsupported: a JPEG file of over 100 scans; allowed: 100; convert it"


def test_a_marker_without_a_length_hides_no_header() -> None:
    """libjpeg reads FF01 as two bytes; a reader that skips a segment there would see another picture."""
    data, other = jpeg(), jpeg(claims=(60000, 60000))
    hidden = other[2:]
    trap = b"\xff\xd8\xff\x01" + struct.pack(">H", len(hidden) + 2) + hidden + data[2:]
    assert "too_large: the file declares 60000 x 60000" in refused(trap)
    assert np.array_equal(decode(data[:2] + b"\xff\x01" + data[2:]).pixels, decode(data).pixels)


def test_every_size_that_a_webp_declares_counts() -> None:
    """Found by reading: libwebp took the first chunk of pixels, the check the header behind it."""
    picture = bytes(imagecodecs.webp_encode(np.zeros((300, 400, 3), np.uint8), lossless=True))
    header = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\x0f\0\0\x0f\0\0"
    body = b"WEBP" + picture[12:] + header
    assert "too_large: the file declares 400 x 300" in refused(
        b"RIFF" + struct.pack("<I", len(body)) + body, max_pixels=1000
    )


def test_directories_of_tiff_have_an_end() -> None:
    """A chain of empty directories, six bytes each: they took a hundred times their bytes of memory."""
    count = 65_537
    links = (8 + 6 * (number + 1) for number in range(count))
    data = b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HI", 0, link) for link in links)
    assert refused(data + bytes(6)).startswith("multi_page: a TIFF file of over 65,536 directories or entries")


def test_names_of_png_chunks_are_not_collected() -> None:
    data = mutations.seeds()["png"]
    names = [bytes([97 + i, 65 + j, 65, 97]) for i in range(26) for j in range(26)]
    extra = b"".join(struct.pack(">I4sI", 0, name, zlib.crc32(name)) for name in names)
    assert np.array_equal(decode(data[:33] + extra + data[33:]).pixels, decode(data).pixels)


def test_a_prefix_of_exif_may_come_often() -> None:
    data = mutations.seeds()["png"]
    at = data.index(b"eXIf")
    (length,) = struct.unpack_from(">I", data, at - 4)
    block = b"eXIf" + b"Exif\0\0" * 100_000 + data[at + 4 : at + 4 + length]
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    assert decode(data[: at - 4] + chunk + data[at + 8 + length :]).exif == decode(data).exif


def test_alpha_is_divided_out_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In floats at once, 200 megapixels would take 15 GB."""
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (13, 22, 4), np.uint8)
    tifffile.imwrite(buffer, values, photometric="rgb", extrasamples=["assocalpha"])
    whole = decode(buffer.getvalue())
    monkeypatch.setattr(tiff, "_BLOCK", 200)
    assert np.array_equal(decode(buffer.getvalue()).pixels, whole.pixels)


# Bombs


def png_claiming(width: int, height: int, packed: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def webp_claiming(width: int, height: int) -> bytes:
    data = mutations.seeds()["webp lossless"]
    at = data.index(b"VP8L") + 9  # behind name, length and signature: 14 bits each, less one
    (bits,) = struct.unpack_from("<I", data, at)
    return data[:at] + struct.pack("<I", bits >> 28 << 28 | (height - 1) << 14 | (width - 1)) + data[at + 4 :]


def bombs() -> dict[str, tuple[bytes, str]]:
    """Files that unpack to far more than they declare, or declare far more than they have, with what they become."""
    zeros = bytes(16 << 20)
    packed = zlib.compress(zeros)
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(buffer, "BMP")
    bmp = buffer.getvalue()
    return {
        "png of 50,000 x 50,000": (png_claiming(50_000, 50_000, packed), "too_large"),
        "png of more zeros than it declares": (png_claiming(100, 100, packed), "ok"),
        "png of fewer bytes than it declares": (png_claiming(14_000, 14_000, zlib.compress(b"")), "corrupt"),
        "jpeg of 65535 x 65535": (jpeg(claims=(65535, 65535)), "too_large"),
        "jpeg of 65500 x 3000": (jpeg(claims=(65500, 3000)), "truncated"),
        "webp of 16383 x 16383": (webp_claiming(16383, 16383), "too_large"),
        "webp of 16383 x 3000": (webp_claiming(16383, 3000), "corrupt"),
        "bmp of 2,147,483,647 pixels": (bmp[:18] + struct.pack("<ii", 2**31 - 1, 1) + bmp[26:], "too_large"),
        "bmp of 100 megapixels": (bmp[:18] + struct.pack("<ii", 10_000, 10_000) + bmp[26:], "truncated"),
        "tiff deflate": (tiff_of([packed], compression=8), "corrupt"),
        "tiff lzma": (tiff_of([lzma.compress(zeros)], compression=34925), "ok"),
        "tiff zstd": (tiff_of([bytes(imagecodecs.zstd_encode(zeros))], compression=50000), "corrupt"),
        "tiff zstd of a terabyte": (
            tiff_of([b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + bytes(40)], compression=50000),
            "corrupt",
        ),
        "tiff lzw": (tiff_of([bytes(imagecodecs.lzw_encode(zeros))], compression=5), "ok"),
        "tiff packbits": (tiff_of([b"\x81\0" * (1 << 19)], compression=32773), "corrupt"),
        "tiff of 40,000 x 40,000": (tiff_of([packed], compression=8, width=40_000, height=40_000), "too_large"),
    }


def test_bombs_do_not_go_off() -> None:
    for name, (data, expected) in bombs().items():
        try:
            found = decode(data).format and "ok"
        except ImageError as error:
            found = error.kind
        assert found == expected, name


BOMBS_IN_LITTLE_MEMORY = """
import resource
from pathlib import Path
from tests.core import test_hostile
test_hostile.mutations.outcome(test_hostile.mutations.mutated(0)[1])
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (3 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
test_hostile.test_bombs_do_not_go_off()
"""


@pytest.mark.slow
def test_bombs_fit_into_what_they_may_declare() -> None:
    """1.5 GiB: an array of the 196 megapixels that one of them rightly claims, and half as much again."""
    done = subprocess.run(
        [sys.executable, "-c", BOMBS_IN_LITTLE_MEMORY], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [(1, 1), (1, 65535), (65535, 1), (2, 16383)])
@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP", "JPEG", "WEBP"])
def test_the_longest_and_the_smallest_pictures(name: str, size: tuple[int, int]) -> None:
    longest = {"JPEG": 65500, "WEBP": 16383}.get(name, 65535)
    height, width = (min(side, longest) for side in size)
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (9, 9, 9)).save(buffer, name)
    assert decode(buffer.getvalue()).pixels.shape == (height, width, 3)


# Formats that are not ours, some of which start programs


def foreign_heads() -> dict[str, bytes]:
    """The beginning of what Pillow would hand to Ghostscript and other plug-ins."""
    return {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(marker) (w) file\n",
        "dos eps": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 100) + bytes(20) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "ps": b"%!PS\nshowpage\n",
        "pdf": b"%PDF-1.7\n",
        "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(40),
        "emf": struct.pack("<II", 1, 108) + bytes(32) + b" EMF" + bytes(60),
        "fits": b"SIMPLE  =                    T",
        "grib": b"GRIB\0\0\0\1",
        "hdf5": b"\x89HDF\r\n\x1a\n",
        "icns": b"icns" + bytes(20),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "psd": b"8BPS\0\1",
        "xpm": b"/* XPM */\n",
        "ico": b"\0\0\1\0\1\0",
        "fli": bytes(4) + b"\x11\xaf" + bytes(122),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "msp": b"DanM",
        "pcx": b"\x0a\5\1\x08",
        "ppm": b"P6\n1 1\n255\n\0\0\0",
        "im": b"Image type: RGB\r\n",
        "sgi": b"\x01\xda\1\1",
        "mpeg": b"\0\0\1\xb3",
        "gif": b"GIF89a\1\0\1\0",
        "avif": b"\0\0\0\x20ftypavif",
        "dds": b"DDS |\0\0\0",
        "blp": b"BLP2",
        "qoi": b"qoif",
        "pickle": b"\x80\4cos\nsystem\n(S'touch marker'\ntR.",
    }


@pytest.mark.parametrize("kind", foreign_heads())
def test_foreign_formats_are_refused_without_their_plug_in(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError("a plug-in was asked, or a program started")

    monkeypatch.setattr(PIL.Image, "open", reached)
    monkeypatch.setattr(subprocess, "Popen", reached)
    monkeypatch.setattr("os.system", reached)
    head = foreign_heads()[kind]
    for data in (head, head + bytes(1000)):
        assert refused(data).startswith("not_an_image: no image file: ")


def test_eps_behind_a_picture_or_inside_one_is_no_eps() -> None:
    """What follows a picture's end, or its text, is never looked at as a format of its own."""
    eps = foreign_heads()["eps"]
    for name in ("jpeg", "png", "webp lossless"):
        data = mutations.seeds()[name]
        assert np.array_equal(decode(data + eps).pixels, decode(data).pixels)
    for place in (0, 4):
        assert "not_an_image" in refused(bytes(place) + eps)


def test_the_preview_of_no_tiff_is_a_program() -> None:
    """A strip of EPS or of any other format stays bytes."""
    strip = foreign_heads()["eps"].ljust(256, b"\0")
    assert decode(tiff_of([strip[:256]], compression=1)).pixels.tobytes() == strip[:256]

"""Real small pictures of every format, and ways to damage them: the fuzz tests' material.

As a program it fuzzes at length, in a child process with limits, so that a crash of a decoder is seen:

    python -m tests.core.mutations --count 20000 [--seed 0]
"""

import argparse
import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageCms
import tifffile

from raydenoise.core.image import Image, ImageError, decode, encode
from tests.core.png import chunk, png

MAX_PIXELS = 4_000_000
MOST_SECONDS = 5.0  # of processor time; an honest picture of MAX_PIXELS takes 0.3 s
MOST_MEMORY = 1 << 30  # bytes beyond what an idle process has mapped; an honest picture takes a tenth
NUMBERS = (0, 1, 2, 7, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 50_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)


def _array(*channels: int, dtype: Any = np.uint8, height: int = 21, width: int = 34) -> np.ndarray:
    """A ramp under noise: neither flat nor incompressible."""
    rng = np.random.default_rng(len(channels) and channels[0])
    ramp = np.add.outer(np.arange(height) * 4, np.arange(width) * 3).reshape(height, width, *[1] * len(channels))
    values = ramp + rng.integers(0, 30, (height, width, *channels))
    return (values * (257 if dtype == np.uint16 else 1)).astype(dtype)


def _pillow(array: Any, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "rgb", **options})
    return buffer.getvalue()


def _exif() -> bytes:
    block = PIL.Image.Exif()
    block[274], block[271] = 6, "Maker"
    block[34665] = {36867: "2020:02:03 04:05:06", 37500: b"a maker's note"}
    block[34853] = {1: "N", 2: (52.0, 31.0, 12.5)}
    return block.tobytes()


def _seeds() -> dict[str, Callable[[], bytes]]:
    rgb, grey, rgba, deep = _array(3), _array(), _array(4), _array(3, dtype=np.uint16)
    palette = PIL.Image.fromarray(rgb).quantize(16)
    cmyk = PIL.Image.fromarray(rgb).convert("CMYK")
    icc = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    icc = icc[:24] + bytes(12) + icc[36:]  # not the time of its making: a number stands for the same file, always
    meta = {"exif": _exif(), "icc_profile": icc}

    def pages(name: str) -> bytes:
        return _pillow(rgb, name, save_all=True, append_images=[PIL.Image.fromarray(rgb[::-1])])

    return {
        "jpeg": lambda: _pillow(rgb, "JPEG"),
        "jpeg progressive": lambda: _pillow(rgb, "JPEG", progressive=True, **meta),
        "jpeg grey restarts": lambda: _pillow(grey, "JPEG", restart_marker_blocks=1),
        "jpeg cmyk": lambda: _pillow(cmyk, "JPEG", icc_profile=icc),
        "jpeg mpo": lambda: pages("MPO"),
        "jpeg optimised": lambda: bytes(imagecodecs.jpeg8_encode(rgb, optimize=True)),
        "png": lambda: _pillow(rgb, "PNG", **meta),
        "png 16": lambda: bytes(imagecodecs.png_encode(deep)),
        "png grey 16": lambda: encode(Image(deep[..., :1], deep[..., 1], "png"), format="png"),
        "png palette": lambda: _pillow(palette, "PNG", transparency=2),
        "png rgba": lambda: _pillow(rgba, "PNG"),
        "png bits": lambda: _pillow(PIL.Image.fromarray(grey > 60), "PNG"),
        "png interlaced": lambda: png(rgb, colour=2, interlaced=True),
        "tiff": lambda: _pillow(rgb, "TIFF", **meta),
        "tiff ours": lambda: encode(Image(deep, None, "tiff", icc=icc, exif=_exif()[6:]), format="tiff"),
        "tiff lzw": lambda: _tiff(rgb, compression="lzw", predictor=True, rowsperstrip=5),
        "tiff packbits": lambda: _tiff(grey, photometric="minisblack", compression="packbits"),
        "tiff deflate tiles": lambda: _tiff(deep, compression="zlib", predictor=True, tile=(16, 16)),
        "tiff lzma": lambda: _tiff(rgba, compression="lzma", extrasamples=["unassalpha"]),
        "tiff zstd": lambda: _tiff(deep, compression="zstd", byteorder=">"),
        "tiff jpeg": lambda: _pillow(rgb, "TIFF", compression="jpeg"),
        "tiff jpeg tiles": lambda: _tiff(rgb, compression="jpeg", tile=(16, 16)),
        "tiff fax": lambda: _pillow(PIL.Image.fromarray(grey > 60), "TIFF", compression="group4"),
        "tiff fax 3": lambda: _pillow(PIL.Image.fromarray(grey > 60), "TIFF", compression="group3"),
        "tiff palette": lambda: _pillow(palette, "TIFF"),
        "tiff cmyk": lambda: _pillow(cmyk, "TIFF", icc_profile=icc),
        "tiff big planar": lambda: _tiff(np.moveaxis(deep, 2, 0), planarconfig="separate", bigtiff=True),
        "tiff pages": lambda: pages("TIFF"),
        "webp": lambda: _pillow(rgb, "WEBP", **meta),
        "webp alpha": lambda: _pillow(rgba, "WEBP", quality=60),
        "webp lossless": lambda: _pillow(rgba, "WEBP", lossless=True),
        "webp animated": lambda: pages("WEBP"),
        "bmp": lambda: _pillow(rgb, "BMP"),
        "bmp palette": lambda: _pillow(palette, "BMP"),
        "bmp bits": lambda: _pillow(PIL.Image.fromarray(grey > 60), "BMP"),
        "bmp rle": lambda: _rle_bmp(grey),
    }


def _rle_bmp(grey: np.ndarray) -> bytes:
    """A run-length coded BMP of 8 bits (BI_RLE8): runs of one."""
    height, width = grey.shape
    body = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in grey[::-1]) + b"\0\1"
    table = b"".join(bytes([level, level, level, 0]) for level in range(256))
    start = 54 + len(table)
    head = b"BM" + struct.pack(
        "<IIIIiiHHIIiiII", start + len(body), 0, start, 40, width, height, 1, 8, 1, len(body), *[0] * 4
    )
    return head + table + body


@cache
def seeds() -> dict[str, bytes]:
    """The undamaged files, by name; the first word of a name is the format."""
    return {name: make() for name, make in _seeds().items()}


def mutated(index: int, *, seed: int = 0) -> tuple[str, bytes]:
    """The damaged file of a number, with its seed's name: the same for the same numbers."""
    names = list(seeds())
    name = names[index % len(names)]
    rng = np.random.default_rng([seed, index])
    data = seeds()[name]
    for _ in range(int(rng.integers(1, 4))):
        data = _damaged(name, data, rng)
    return name, data


def _damaged(name: str, data: bytes, rng: np.random.Generator) -> bytes:
    if len(data) < 20:
        return data
    informed = {"png": _damaged_png, "jpeg": _damaged_jpeg, "tiff": _damaged_tiff, "webp": _damaged_webp}
    special = informed.get(name.split()[0])
    if special and rng.random() < 0.5:
        try:
            return special(data, rng)
        except (struct.error, ValueError, IndexError, OverflowError, zlib.error):  # damaged before
            pass
    return _damaged_bytes(data, rng)


def _damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Knows nothing of the format."""
    out = bytearray(data)
    at, length = int(rng.integers(len(out))), int(rng.integers(1, 1 + min(64, len(out) - 1)))
    match int(rng.integers(8)):
        case 0:
            del out[at:]
        case 1:  # a few bits
            for position in rng.integers(len(out), size=int(rng.integers(1, 9))):
                out[position] ^= 1 << int(rng.integers(8))
        case 2:
            del out[at : at + length]
        case 3:  # a range twice
            out[at:at] = out[at : at + length]
        case 4:  # a range elsewhere
            there = int(rng.integers(len(out)))
            out[there : there + length] = out[at : at + length]
        case 5:  # the head of one file, the tail of another
            other = seeds()[list(seeds())[int(rng.integers(len(seeds())))]]
            return bytes(out[:at]) + other[int(rng.integers(len(other))) :]
        case 6:
            out[at : at + length] = bytes([int(rng.choice([0, 255]))]) * length
        case _:  # a number, near the head more often
            at = int(rng.integers(min(len(out), 80))) if rng.random() < 0.6 else at
            width = int(rng.choice([1, 2, 4]))
            order = "<" if rng.random() < 0.5 else ">"
            value = int(rng.choice(NUMBERS)) & ((1 << 8 * width) - 1)
            out[at : at + width] = value.to_bytes(width, "little" if order == "<" else "big")
    return bytes(out)


def _damaged_part(parts: list[bytes], rng: np.random.Generator) -> list[bytes]:
    """Damages, repeats, removes or moves one of a file's parts."""
    at = int(rng.integers(len(parts)))
    match int(rng.integers(6)):
        case 0:
            parts.insert(at, parts[at])
        case 1:
            del parts[at]
        case 2:
            parts.insert(int(rng.integers(len(parts))), parts.pop(at))
        case _:
            if parts[at]:
                parts[at] = _damaged_bytes(parts[at], rng)
    return parts


def _damaged_png(data: bytes, rng: np.random.Generator) -> bytes:
    """Chunks with right checksums; the picture's bytes under the compression too."""
    at, parts = 8, []
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at + 4 : end - 4])
        at = end
    if rng.random() < 0.3:
        packed = b"".join(part[4:] for part in parts if part[:4] == b"IDAT")
        raw = _damaged_bytes(zlib.decompress(packed), rng)
        parts = [part for part in parts if part[:4] not in (b"IDAT", b"IEND")]
        parts += [b"IDAT" + zlib.compress(raw), b"IEND"]
    else:
        parts = _damaged_part(parts, rng)
    return data[:8] + b"".join(chunk(part[:4], part[4:]) for part in parts)


def _damaged_jpeg(data: bytes, rng: np.random.Generator) -> bytes:
    """Segments with right lengths."""
    at, parts = 2, []
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at + 1 : at + 2] + data[at + 4 : end])
        at = end
    parts = _damaged_part(parts, rng)
    segments = [b"\xff" + part[:1] + struct.pack(">H", len(part) + 1) + part[1:] for part in parts if part]
    return data[:2] + b"".join(segments) + data[at:]


def _damaged_tiff(data: bytes, rng: np.random.Generator) -> bytes:
    """One field of an entry of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
    start = first + (8 if big else 2) + (20 if big else 12) * int(rng.integers(min(count, 40)))
    field = int(rng.integers(4))  # tag, type, count, value
    at, letter = [(0, "H"), (2, "H"), (4, "Q" if big else "I"), (12, "Q") if big else (8, "I")][field]
    out = bytearray(data)
    most = (1 << 8 * struct.calcsize(letter)) - 1
    value = int(rng.integers(1, 20)) if rng.random() < 0.5 else int(rng.choice(NUMBERS))
    if field == 0:
        value = int(rng.choice([256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 324, 330, 338, 347]))
    struct.pack_into(order + letter, out, start + at, value & most)
    return bytes(out)


def _damaged_webp(data: bytes, rng: np.random.Generator) -> bytes:
    """Chunks with right lengths, in a RIFF of the right length."""
    at, parts = 12, []
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(data[at : at + 4] + data[at + 8 : end])
        at = end + end % 2
    body = b"WEBP"
    for part in _damaged_part(parts, rng):
        body += part[:4].ljust(4) + struct.pack("<I", max(0, len(part) - 4)) + part[4:] + b"\0" * (len(part) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def outcome(data: bytes) -> str:
    """Decode and say what came out: "ok" or the kind of the ImageError; anything else is a finding and is raised."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            image = decode(data, max_pixels=MAX_PIXELS)
        except ImageError as error:
            result, message = error.kind, str(error)
        else:
            result, message = "ok", f"{image.height} x {image.width}"
            assert image.height * image.width <= MAX_PIXELS, message
    assert not warned, warned[0].message
    assert 0 < len(message) <= 300, message
    assert "\n" not in message, message
    return result


def _child(first: int, count: int, seed: int, report: Path) -> None:
    """Decode files one after the other; each is announced before, so that the parent knows which one killed this."""
    outcome(mutated(0, seed=seed)[1])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with report.open("a") as lines:
        for index in range(first, first + count):
            name, data = mutated(index, seed=seed)
            print(json.dumps({"index": index}), file=lines, flush=True)
            before = time.process_time()
            try:
                found, finding = outcome(data), None
            except BaseException as error:  # whatever it is, it is a finding
                found, finding = "finding", f"{type(error).__name__}: {error}"[:300]
            seconds = time.process_time() - before
            if seconds > MOST_SECONDS:
                finding = f"{finding or found}: {seconds:.1f} s"
            line = {"index": index, "name": name, "found": found, "finding": finding, "seconds": round(seconds, 3)}
            print(json.dumps(line), file=lines, flush=True)


def main() -> None:
    """Fuzz at length; prints one JSON line of counts, and one for each finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.report:
        _child(arguments.first, arguments.count, arguments.seed, arguments.report)
        return
    counts: Counter[str] = Counter()
    slowest, at, end = 0.0, arguments.first, arguments.first + arguments.count
    while at < end:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report"
            command = [sys.executable, "-m", "tests.core.mutations", "--seed", str(arguments.seed), "--first", str(at)]
            command += ["--count", str(min(1000, end - at)), "--report", str(report)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        if not lines:
            sys.exit(f"the child did not start: {done.stderr}")
        for line in lines:
            if "found" in line:
                counts[f"{line['name'].split()[0]} {line['found']}"] += 1
                slowest = max(slowest, line["seconds"])
                if line["finding"]:
                    print(json.dumps(line), flush=True)
        at = lines[-1]["index"] + 1
        if done.returncode:
            print(
                json.dumps(
                    {
                        "index": at - 1,
                        "name": mutated(at - 1, seed=arguments.seed)[0],
                        "finding": f"exit {done.returncode}",
                    }
                ),
                flush=True,
            )
        elif done.stderr or done.stdout:
            print(json.dumps({"chatter": (done.stdout + done.stderr)[:2000]}), flush=True)
    print(json.dumps({"files": arguments.count, "slowest_s": slowest, **dict(sorted(counts.items()))}))


if __name__ == "__main__":
    main()

"""Directories of TIFF files, EXIF blocks and MPO indices: bytes <-> fields."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

_TYPES = {1: (1, 2, 6, 7), 2: (3, 8), 4: (4, 9, 11, 13), 8: (5, 10, 12, 16, 17, 18)}  # TIFF types, by bytes
_TYPE_BYTES = {kind: size for size, kinds in _TYPES.items() for kind in kinds}
_MOST_ENTRIES = 65_535  # what TIFF can count; BigTIFF has room for more, but no more tags
RATIONAL = 5
_RATIONALS = (RATIONAL, 10)  # two 4-byte words each
_UNSIGNED = {1: "<u1", 3: "<u2", 4: "<u4", 13: "<u4", 16: "<u8", 18: "<u8"}
ORIENTATION, EXIF_IFD, GPS_IFD, INTEROP_IFD = 274, 34665, 34853, 40965
POINTERS: Mapping[int, Any] = {EXIF_IFD: {INTEROP_IFD: {}}, GPS_IFD: {}}
BROKEN = (struct.error, ValueError, KeyError, OverflowError)  # what walking a damaged directory raises

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
        if self.order == "<" or word == 1:
            return data
        return np.frombuffer(data, f"u{word}").byteswap().tobytes()

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
    if count > _MOST_ENTRIES:
        raise ValueError(f"a directory of {count:,} entries")
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


def tree(ifd: Ifd, pointers: Mapping[int, Any] = POINTERS, *, big: bool = False) -> Fields:
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


def block_ifd(block: bytes) -> Ifd:
    """Read the first directory of an EXIF block or MPO index; raises `BROKEN`."""
    order, big, first = read_header(block)
    if big:
        raise ValueError("a BigTIFF header")
    return read_ifd(block, first, order=order)


def exif_fields(exif: bytes) -> Fields:
    """Read an EXIF block; raises `BROKEN`."""
    return tree(block_ifd(exif))


def upright_exif(exif: bytes) -> tuple[bytes | None, int]:
    """Make an EXIF block fit the upright, denoised picture; return it with the orientation (1..8) it had.

    The block is edited in place, so that offsets inside maker notes stay valid: orientation 1, width and
    height swapped where the picture is turned, the thumbnail (of the noisy picture) unlinked and blanked.
    It is None where a directory lies outside the block.
    """
    prefix, start = b"Exif\0\0", 0
    while exif.startswith(prefix, start):
        start += len(prefix)
    block = exif[start:]
    try:
        ifd = block_ifd(block)
    except BROKEN:
        return None, 1
    orientation = ifd.number(ORIENTATION, 1)
    if not 1 <= orientation <= 8:
        orientation = 1
    try:
        fields = tree(ifd)
    except BROKEN:
        return None, orientation
    out = bytearray(block)
    if ORIENTATION in ifd.fields:
        kind, _, at = ifd.fields[ORIENTATION]
        size = _TYPE_BYTES[kind]
        out[at : at + size] = (1).to_bytes(size, "little" if ifd.order == "<" else "big")
    if orientation >= 5 and EXIF_IFD in fields:
        _swap(out, read_ifd(block, ifd.number(EXIF_IFD, 0), order=ifd.order), 0xA002, 0xA003)
    if ifd.next:
        out[ifd.next_at : ifd.next_at + 4] = bytes(4)
        _blank_thumbnail(out, block, ifd)
    return bytes(out), orientation


def _swap(out: bytearray, ifd: Ifd, one: int, other: int) -> None:
    """Exchange the values of two tags, such as PixelXDimension and PixelYDimension, if they are alike."""
    first, second = ifd.fields.get(one), ifd.fields.get(other)
    if first is None or second is None or first[:2] != second[:2]:
        return
    size = first.values * _TYPE_BYTES[first.type]
    out[first.at : first.at + size] = ifd.block[second.at : second.at + size]
    out[second.at : second.at + size] = ifd.block[first.at : first.at + size]


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

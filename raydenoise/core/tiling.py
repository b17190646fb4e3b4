"""Geometry of tiles: plan, cut, stitch. No network, no storage.

The law: a picture is mirrored at its bottom and right to a multiple of the alignment; the whole-image result is the
network on that padded picture, cropped. A tile's sides are min(tile, padded side); starts are multiples of the
alignment; the last tile ends on the padded edge; edges inside the picture drop a halo, the picture's own borders drop
nothing. Every pixel is written exactly once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """What a network asks of its tiles, in pixels.

    Attributes:
        tile: the window's side, halo included; a multiple of `alignment`, at least 2 x `halo` + `alignment`.
        halo: context that a tile's edge inside the picture drops; a multiple of `alignment`.
        alignment: tiles start and end on multiples of this.
        fixed: the network takes the full tile only; smaller pictures are mirrored up to it.
    """

    tile: int
    halo: int
    alignment: int
    fixed: bool = False

    def __post_init__(self) -> None:
        least = 2 * self.halo + self.alignment
        if self.tile % self.alignment or self.tile < least:
            raise ValueError(
                f"tile is {self.tile}; allowed for this model: a multiple of {self.alignment}, at least {least} pixels"
            )
        if self.halo % self.alignment:
            raise ValueError(f"halo is {self.halo}; allowed: a multiple of the alignment of {self.alignment} pixels")


@dataclass(frozen=True)
class Span:
    """One tile along one axis: pixels [read, read + side) of the padded picture give pixels [start, stop)."""

    read: int
    side: int
    start: int
    stop: int

    @property
    def crop(self) -> slice:
        """The part of the tile that is written."""
        return slice(self.start - self.read, self.stop - self.read)

    @property
    def write(self) -> slice:
        """Where it goes in the picture."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Tile:
    """One tile: a span down and a span across."""

    y: Span
    x: Span


def spans(extent: int, *, grid: Grid) -> list[Span]:
    """Plan one axis: spans of one length that write [0, extent) exactly once."""
    padded = -(-extent // grid.alignment) * grid.alignment
    if grid.fixed:
        padded = max(padded, grid.tile)
    side = min(grid.tile, padded)
    last = padded - side
    reads = [*range(0, last, side - 2 * grid.halo), last] if last else [0]
    edges = [0, *(read + side - grid.halo for read in reads[:-1]), extent]
    return [Span(read, side, start, stop) for read, start, stop in zip(reads, edges, edges[1:], strict=False)]


def plan(height: int, width: int, *, grid: Grid) -> list[Tile]:
    """Plan the tiles of a picture, row by row, all of one shape.

    Args:
        height: pixels, at least 1.
        width: pixels, at least 1.
        grid: what the network asks.
    """
    return [Tile(y, x) for y, x in product(spans(height, grid=grid), spans(width, grid=grid))]


def cut(image: NDArray[np.generic], tile: Tile) -> NDArray[np.generic]:
    """Read one tile of (H, W, C), mirrored past the bottom and right edge (numpy's "symmetric": down to one pixel)."""
    height, width = image.shape[:2]
    inside = tile.y.read + tile.y.side <= height and tile.x.read + tile.x.side <= width
    if inside:
        return image[tile.y.read : tile.y.read + tile.y.side, tile.x.read : tile.x.read + tile.x.side]
    return image[np.ix_(_mirrored(tile.y, height), _mirrored(tile.x, width))]


def _mirrored(span: Span, extent: int) -> NDArray[np.intp]:
    position = np.arange(span.read, span.read + span.side) % (2 * extent)
    return np.where(position < extent, position, 2 * extent - 1 - position)


@dataclass(frozen=True)
class View:
    """One of the eight ways to look at (N, h, w, C): quarter turns, then flips."""

    turns: int
    flips: tuple[int, ...]

    def of(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn and flip."""
        return np.flip(np.rot90(window, self.turns, axes=(1, 2)), self.flips)

    def undone(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Flip and turn back."""
        return np.rot90(np.flip(window, self.flips), -self.turns, axes=(1, 2))


VIEWS = tuple(View(turns, flips) for turns in (0, 1) for flips in ((), (2,), (1,), (1, 2)))
ENSEMBLES = (1, 2, 4, 8)  # the first so many views: as it is, left-right, both flips, all


def check_ensemble(tta: int) -> None:
    """Raise ValueError where a number of views is none that a self-ensemble takes."""
    if tta not in ENSEMBLES:
        raise ValueError(f"tta is {tta}; allowed: {', '.join(map(str, ENSEMBLES))}")


def stitch(image: NDArray[np.generic], tile: Tile, result: NDArray[np.generic]) -> None:
    """Write a tile's result, (side, side, C), to its place in `image`, (H, W, C)."""
    image[tile.y.write, tile.x.write] = result[tile.y.crop, tile.x.crop]


def batches(tiles: list[Tile], *, size: int) -> Iterator[list[Tile]]:
    """Group a picture's tiles by `size`; the last group may be smaller."""
    for first in range(0, len(tiles), size):
        yield tiles[first : first + size]

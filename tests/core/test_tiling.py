"""Laws of tiles: every pixel is written exactly once, from a tile that saw enough around it."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydenoise.core.tiling import Grid, Span, batches, cut, plan, spans, stitch

Array = NDArray[Any]


@st.composite
def grids(draw: st.DrawFn, *, cells: int = 40) -> Grid:
    """Any allowed grid whose tile is at most `cells` aligned cells larger than its halos."""
    alignment = draw(st.sampled_from((1, 2, 4, 8)))
    halo = alignment * draw(st.integers(0, 6))
    tile = 2 * halo + alignment * draw(st.integers(1, cells))
    return Grid(tile=tile, halo=halo, alignment=alignment, fixed=draw(st.booleans()))


def padded(extent: int, *, grid: Grid) -> int:
    """The extent mirrored up to the alignment, or up to the tile of a fixed grid."""
    whole = next(length for length in range(extent, extent + grid.alignment) if length % grid.alignment == 0)
    return max(whole, grid.tile) if grid.fixed else whole


def picture(height: int, width: int, *, channels: int = 3) -> Array:
    return np.random.default_rng(height * 1000 + width).random((height, width, channels), np.float32)


@given(extent=st.integers(1, 700), grid=grids())
@settings(deadline=None, max_examples=150)
def test_spans_write_every_pixel_once(extent: int, grid: Grid) -> None:
    count = np.zeros(extent, int)
    for span in spans(extent, grid=grid):
        assert 0 <= span.start < span.stop <= extent
        count[span.write] += 1
    assert (count == 1).all()


@given(extent=st.integers(1, 700), grid=grids())
@settings(deadline=None, max_examples=150)
def test_spans_lie_on_the_grid(extent: int, grid: Grid) -> None:
    found, whole = spans(extent, grid=grid), padded(extent, grid=grid)
    assert {span.side for span in found} == {min(grid.tile, whole)}
    assert all(span.read % grid.alignment == 0 and span.side % grid.alignment == 0 for span in found)
    assert all(span.read >= 0 and span.read + span.side <= whole for span in found)
    assert found[-1].read + found[-1].side == whole
    reads = [span.read for span in found]
    assert reads == sorted(set(reads))


@given(extent=st.integers(1, 700), grid=grids())
@settings(deadline=None, max_examples=150)
def test_edges_inside_drop_a_halo_and_borders_nothing(extent: int, grid: Grid) -> None:
    found = spans(extent, grid=grid)
    for span, crop in ((span, span.crop) for span in found):
        assert crop.stop - crop.start == span.stop - span.start
        assert span is found[0] or crop.start >= grid.halo
        assert span is found[-1] or span.side - crop.stop >= grid.halo
    assert found[0].crop.start == 0
    assert found[-1].read + found[-1].crop.stop == extent


@given(height=st.integers(1, 50), width=st.integers(1, 50), grid=grids(cells=6))
@settings(deadline=None, max_examples=60)
def test_tiles_write_every_pixel_once(height: int, width: int, grid: Grid) -> None:
    count = np.zeros((height, width), int)
    for tile in plan(height, width, grid=grid):
        count[tile.y.write, tile.x.write] += 1
    assert (count == 1).all()


@given(height=st.integers(1, 50), width=st.integers(1, 50), grid=grids(cells=6))
@settings(deadline=None, max_examples=60)
def test_stitch_undoes_cut(height: int, width: int, grid: Grid) -> None:
    image = picture(height, width)
    copy = np.full_like(image, np.nan)
    for tile in plan(height, width, grid=grid):
        stitch(copy, tile, cut(image, tile))
    assert np.array_equal(copy, image)


@given(height=st.integers(1, 50), width=st.integers(1, 50), channels=st.sampled_from((1, 3)), grid=grids(cells=6))
@settings(deadline=None, max_examples=60)
def test_cut_mirrors_as_numpy_does(height: int, width: int, channels: int, grid: Grid) -> None:
    image = picture(height, width, channels=channels)
    more = (padded(height, grid=grid) - height, padded(width, grid=grid) - width)
    whole = np.pad(image, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
    for tile in plan(height, width, grid=grid):
        expected = whole[tile.y.read : tile.y.read + tile.y.side, tile.x.read : tile.x.read + tile.x.side]
        assert np.array_equal(cut(image, tile), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (3, 2), (5, 64)])
def test_a_small_picture_is_mirrored_many_times(height: int, width: int) -> None:
    image = picture(height, width)
    (tile,) = plan(height, width, grid=Grid(tile=64, halo=8, alignment=4, fixed=True))
    expected = np.pad(image, ((0, 64 - height), (0, 64 - width), (0, 0)), mode="symmetric")
    assert np.array_equal(cut(image, tile), expected)


def test_a_fixed_grid_reads_its_full_tile() -> None:
    assert spans(5, grid=Grid(tile=64, halo=8, alignment=4, fixed=True)) == [Span(read=0, side=64, start=0, stop=5)]


def test_a_free_grid_reads_a_small_picture_aligned() -> None:
    assert spans(5, grid=Grid(tile=64, halo=8, alignment=4)) == [Span(read=0, side=8, start=0, stop=5)]


@pytest.mark.parametrize("halo", [1, 8, 56])
def test_a_picture_of_exactly_two_halos_is_one_tile(halo: int) -> None:
    grid = Grid(tile=4 * halo, halo=halo, alignment=1)
    assert spans(2 * halo, grid=grid) == [Span(read=0, side=2 * halo, start=0, stop=2 * halo)]


def test_a_plan_goes_row_by_row() -> None:
    tiles = plan(30, 50, grid=Grid(tile=16, halo=2, alignment=2))
    corners = [(tile.y.start, tile.x.start) for tile in tiles]
    assert corners == sorted(set(corners))
    assert (len({y for y, _ in corners}), len({x for _, x in corners})) == (3, 4)


@pytest.mark.parametrize(
    ("tile", "halo", "alignment", "message"),
    [
        (30, 8, 4, "tile is 30; allowed for this model: a multiple of 4, at least 20 pixels"),
        (16, 8, 4, "tile is 16; allowed for this model: a multiple of 4, at least 20 pixels"),
        (0, 0, 1, "tile is 0; allowed for this model: a multiple of 1, at least 1 pixels"),
        (-8, 0, 8, "tile is -8; allowed for this model: a multiple of 8, at least 8 pixels"),
        (32, 6, 4, "halo is 6; allowed: a multiple of the alignment of 4 pixels"),
    ],
)
def test_a_grid_refuses(tile: int, halo: int, alignment: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Grid(tile=tile, halo=halo, alignment=alignment)


@given(count=st.integers(1, 12), size=st.integers(1, 15))
@settings(deadline=None)
def test_batches_hold_all_tiles_in_order(count: int, size: int) -> None:
    tiles = plan(8, 8 * count, grid=Grid(tile=8, halo=0, alignment=8))
    groups = list(batches(tiles, size=size))
    assert [tile for group in groups for tile in group] == tiles
    assert all(len(group) == size for group in groups[:-1])
    assert 1 <= len(groups[-1]) <= size

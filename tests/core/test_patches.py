"""Laws of training patches: they lie inside their picture, and augmentation moves values without changing any."""

from collections import Counter
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydenoise.core.patches import augment, random_crop, shrink, to_grey

Array = NDArray[Any]


def addressed(height: int, width: int, *, number: int) -> Array:
    """(H, W, 3) uint8 whose pixels say (y, x, number)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, number)], axis=-1).astype(np.uint8)


@given(
    side=st.integers(1, 12),
    more=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_a_crop_is_a_window_of_one_picture(side: int, more: list[tuple[int, int]], seed: int) -> None:
    pictures = [addressed(side + down, side + across, number=i) for i, (down, across) in enumerate(more)]
    crop = random_crop(pictures, side=side, rng=np.random.default_rng(seed))
    y, x, number = (int(value) for value in crop[0, 0])
    assert crop.shape == (side, side, 3)
    assert np.array_equal(crop, pictures[number][y : y + side, x : x + side])
    assert np.shares_memory(crop, pictures[number])
    again = random_crop(pictures, side=side, rng=np.random.default_rng(seed))
    assert np.array_equal(crop, again)


def test_every_window_of_every_picture_comes() -> None:
    pictures = [addressed(5, 7, number=0), addressed(6, 5, number=1), addressed(9, 30, number=2)]
    rng = np.random.default_rng(0)
    crops = [random_crop(pictures, side=5, rng=rng)[0, 0] for _ in range(3000)]
    windows = {(y, x, 0) for y in range(1) for x in range(3)} | {(y, x, 1) for y in range(2) for x in range(1)}
    windows |= {(y, x, 2) for y in range(5) for x in range(26)}
    assert {tuple(map(int, crop)) for crop in crops} == windows
    counts = Counter(int(crop[2]) for crop in crops)
    # each picture as likely as any other, whatever its size: 26 is one standard error
    assert all(abs(counts[i] - 1000) < 130 for i in range(3))


@given(side=st.integers(1, 9), channels=st.sampled_from((1, 3)), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_augment_moves_whole_pixels_only(side: int, channels: int, seed: int) -> None:
    patch = np.random.default_rng(seed).integers(0, 256, (side, side, channels), np.uint8)
    found = augment(patch, rng=np.random.default_rng(seed))
    assert (found.shape, found.dtype) == (patch.shape, patch.dtype)
    pixels, moved = ([tuple(pixel) for pixel in array.reshape(-1, channels)] for array in (patch, found))
    assert sorted(pixels) == sorted(moved)
    assert np.array_equal(found, augment(patch, rng=np.random.default_rng(seed)))


def test_augment_reaches_all_8_orientations() -> None:
    patch = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    rng = np.random.default_rng(0)
    found = Counter(augment(patch, rng=rng).tobytes() for _ in range(1600))
    square = [np.rot90(side, turns) for side in (patch, patch.transpose(1, 0, 2)) for turns in range(4)]
    assert set(found) == {np.ascontiguousarray(array).tobytes() for array in square}
    assert all(abs(count - 200) < 70 for count in found.values())  # 13 is one standard error


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_grey_is_what_pillow_calls_l(name: str) -> None:
    picture = getattr(skimage.data, name)()
    grey = to_grey(picture / np.float32(255))
    expected = np.asarray(PIL.Image.fromarray(picture).convert("L"))
    assert (grey.shape, grey.dtype) == (picture.shape, np.float32)
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.abs(grey[..., 0] - expected / 255).max() < 1 / 255


def test_grey_keeps_black_white_and_grey() -> None:
    levels = np.linspace(0, 1, 15, dtype=np.float32).reshape(3, 5, 1).repeat(3, axis=2)
    assert np.abs(to_grey(levels) - levels).max() < 1e-6


@given(height=st.integers(1, 30), width=st.integers(1, 30), factor=st.floats(0.01, 1))
@settings(deadline=None)
def test_shrink_scales_both_sides(height: int, width: int, factor: float) -> None:
    flat = np.full((height, width, 3), (10, 100, 200), np.uint8)
    small = shrink(flat, factor=factor)
    assert small.shape == (max(1, round(height * factor)), max(1, round(width * factor)), 3)
    assert small.dtype == np.uint8
    assert (small == flat[0, 0]).all()


def test_shrink_by_1_changes_nothing() -> None:
    picture = skimage.data.chelsea()[:40, :61]
    assert np.array_equal(shrink(picture, factor=1), picture)


@pytest.mark.parametrize("factor", [0, -0.5, 1.01, float("nan")])
def test_shrink_refuses_a_factor(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"^factor is {factor}; allowed: above 0, at most 1$"):
        shrink(np.zeros((4, 6, 3), np.uint8), factor=factor)

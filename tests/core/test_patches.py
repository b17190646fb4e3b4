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

from raydenoise.core.patches import (
    Augmentation,
    Choice,
    augment,
    brightness,
    choose,
    cut,
    deviation,
    generator,
    random_crop,
    recolour,
    shrink,
    soften,
    to_grey,
)

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
    (found,) = augment([patch], ("flip", "turn"), rng=np.random.default_rng(seed))
    assert (found.shape, found.dtype) == (patch.shape, patch.dtype)
    pixels, moved = ([tuple(pixel) for pixel in array.reshape(-1, channels)] for array in (patch, found))
    assert sorted(pixels) == sorted(moved)
    (again,) = augment([patch], ("flip", "turn"), rng=np.random.default_rng(seed))
    assert np.array_equal(found, again)


def test_recolour_keeps_the_place_of_every_edge() -> None:
    patch = np.random.default_rng(0).uniform(0.3, 0.6, (7, 9, 3)).astype(np.float32)
    patch[:, 4:] = 0.5  # one colour there, one colour afterwards
    seen = [recolour(patch, rng=np.random.default_rng(seed)) for seed in range(50)]
    for found in seen:
        assert (found.shape, found.dtype) == (patch.shape, np.float32)
        assert (found[:, 4:] == found[0, 4]).all()
        assert found.min() >= 0
        assert found.max() <= 1
    spread = [float(np.std(found[:, :4], axis=-1).mean()) for found in seen]
    assert min(spread) < float(np.std(patch[:, :4], axis=-1).mean()) < max(spread)  # duller and more vivid ones
    assert np.array_equal(recolour(patch, rng=np.random.default_rng(3)), seen[3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_soften_enlarges_a_window_of_the_patch(dtype: type, channels: int) -> None:
    # Straight slopes: after enlarging by f a pixel's neighbour is 1/f away.
    y, x = np.mgrid[:64, :64] * (np.iinfo(dtype).max / 255)
    patch = np.stack([y, x, (x + y) / 2][:channels], axis=-1).astype(dtype)
    factors = []
    for seed in range(30):
        found = soften(patch, rng=np.random.default_rng(seed))
        assert (found.shape, found.dtype) == (patch.shape, dtype)
        values = found[8:-8, 8:-8, 0].astype(float) / (np.iinfo(dtype).max / 255)  # its border sees itself repeated
        factors.append(47 / (values[-1, 0] - values[0, 0]))
    assert 1.1 < min(factors) < 1.4
    assert 1.8 < max(factors) < 2.2
    assert np.array_equal(soften(patch, rng=np.random.default_rng(29)), found)


def test_augment_reaches_all_8_orientations() -> None:
    patch = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    rng = np.random.default_rng(0)
    found = Counter(augment([patch], ("flip", "turn"), rng=rng)[0].tobytes() for _ in range(1600))
    square = [np.rot90(side, turns) for side in (patch, patch.transpose(1, 0, 2)) for turns in range(4)]
    assert set(found) == {np.ascontiguousarray(array).tobytes() for array in square}
    assert all(abs(count - 200) < 70 for count in found.values())  # 13 is one standard error


def test_augment_does_what_it_is_asked_for_alone() -> None:
    patch = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    rng = np.random.default_rng(0)

    def reached(*names: Augmentation) -> int:
        return len({augment([patch], names, rng=rng)[0].tobytes() for _ in range(300)})

    assert (reached(), reached("flip"), reached("turn"), reached("channels")) == (1, 2, 4, 6)
    assert reached("flip", "turn", "channels") == 8 * 6


def test_patches_that_belong_together_move_together() -> None:
    one = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    for seed in range(10):
        names: tuple[Augmentation, ...] = ("flip", "turn", "channels")
        moved, other = augment([one, one + 1], names, rng=np.random.default_rng(seed))
        assert np.array_equal(moved + 1, other)


def test_brightness_darkens_to_a_half_at_most() -> None:
    rng = np.random.default_rng(0)
    factors = [float(brightness(("brightness",), rng=rng)) for _ in range(300)]
    assert 0.5 <= min(factors) < 0.52
    assert 0.98 < max(factors) <= 1
    assert brightness((), rng=rng) == 1


def test_the_generator_of_a_sample_depends_on_all_its_numbers() -> None:
    def draw(*numbers: int) -> float:
        seed, epoch, patch, purpose = numbers
        return float(generator(seed, epoch=epoch, patch=patch, purpose=purpose).random())

    assert draw(1, 2, 3, 0) == draw(1, 2, 3, 0)
    assert len({draw(*numbers) for numbers in ((1, 2, 3, 0), (2, 1, 3, 0), (1, 3, 2, 0), (1, 2, 3, 1))}) == 4


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


def test_a_grey_picture_shrinks_as_its_planes_would() -> None:
    picture = skimage.data.chelsea()[:41, :62]
    grey = picture[..., :1]
    assert np.array_equal(shrink(grey, factor=0.6)[..., 0], shrink(grey.repeat(3, axis=2), factor=0.6)[..., 2])
    assert shrink(grey, factor=0.6).shape == (25, 37, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_shrink_to_16_bits(channels: int) -> None:
    """Low bits stay meaningful: an 8-bit picture in the high byte shrinks to what 8 bits give, and to more."""
    eight = skimage.data.chelsea()[:90, :121, :channels]
    small = shrink(eight.astype(np.uint16) * 257, factor=0.55)
    assert (small.dtype, small.shape) == (np.uint16, shrink(eight, factor=0.55).shape)
    assert np.abs(small / 257 - shrink(eight, factor=0.55)).max() < 1.5  # Pillow rounds 8 bits after each direction
    assert len(np.unique(small)) > 2_000


def test_low_bits_survive_shrinking() -> None:
    y, x = np.mgrid[:80, :120]
    ramp = (30_000 + y + x).astype(np.uint16)[..., None]  # one 16-bit level a pixel
    small = shrink(ramp, factor=0.5)
    y, x = np.mgrid[:40, :60]
    assert np.abs(small[4:-4, 4:-4, 0].astype(float) - (30_001 + 2 * y + 2 * x)[4:-4, 4:-4]).max() <= 0.5


@pytest.mark.parametrize("level", [0, 65535])
def test_16_bits_do_not_wrap_around(level: int) -> None:
    """Lanczos overshoots beside an edge."""
    edge = np.full((40, 60, 1), 65535 - level, np.uint16)
    edge[:, 30:] = level
    small = shrink(edge, factor=0.6)
    assert np.abs(small[:, :15].astype(int) - (65535 - level)).max() < 3_000
    assert np.abs(small[:, -15:].astype(int) - level).max() < 3_000


@given(height=st.integers(1, 50), width=st.integers(1, 50), side=st.integers(1, 20), stride=st.integers(1, 25))
@settings(deadline=None)
def test_a_grid_holds_every_place_once_and_inside(height: int, width: int, side: int, stride: int) -> None:
    picture = addressed(height, width, number=0)
    choice = Choice(side, stride, None, 0)
    places = choose(picture, choice, rng=np.random.default_rng(0))
    assert len(places) == len(set(places))
    if min(height, width) < side:
        assert places == []
    else:
        assert len(places) == ((height - side) // stride + 1) * ((width - side) // stride + 1)
    for place in places:
        patch = cut(picture, place, choice)
        assert patch.shape == (side, side, 3)
        assert tuple(patch[0, 0, :2]) == place
        assert place[0] % stride == place[1] % stride == 0


def test_a_stride_of_a_patch_covers_no_pixel_twice() -> None:
    seen = np.zeros((64, 96, 1), np.uint16)
    choice = Choice(16, 16, None, 0)
    for place in choose(seen, choice, rng=np.random.default_rng(0)):
        cut(seen, place, choice)[...] += 1
    assert (seen == 1).all()


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    side=st.integers(1, 12),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_random_places_are_inside_and_never_twice(height: int, width: int, side: int, count: int, seed: int) -> None:
    picture = addressed(height, width, number=0)
    choice = Choice(side, side, count, 0)
    places = choose(picture, choice, rng=np.random.default_rng(seed))
    assert len(places) == len(set(places)) == min(count, max(0, height - side + 1) * max(0, width - side + 1))
    assert all(cut(picture, place, choice).shape == (side, side, 3) for place in places)
    assert places == choose(picture, choice, rng=np.random.default_rng(seed))


def test_random_places_are_everywhere() -> None:
    picture, rng = addressed(12, 17, number=0), np.random.default_rng(0)
    found = Counter(place for _ in range(2000) for place in choose(picture, Choice(8, 8, 5, 0), rng=rng))
    assert set(found) == {(y, x) for y in range(5) for x in range(10)}
    assert all(abs(count - 200) < 70 for count in found.values())  # 13 is one standard error


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_flat_patches_are_left_out(dtype: str) -> None:
    """The left half has a deviation of 3 grey levels, the right half is one colour, which is not grey."""
    picture = np.full((32, 64, 3), (10, 200, 90), dtype) * np.array(1 if dtype == "uint8" else 257, dtype)
    level = 3 if dtype == "uint8" else 3 * 257
    checks = np.indices((32, 32)).sum(axis=0) % 2
    picture[:, :32] += (checks * 2 * level).astype(dtype)[..., None]
    assert deviation(picture[:, :32]) == pytest.approx(3)
    assert deviation(picture[:, 32:]) == 0
    kept = {flat: choose(picture, Choice(16, 16, None, flat), rng=np.random.default_rng(0)) for flat in (0, 2.9, 3.1)}
    assert kept[0] == [(y, x) for y in (0, 16) for x in (0, 16, 32, 48)]
    assert kept[2.9] == [(y, x) for y in (0, 16) for x in (0, 16)]
    assert kept[3.1] == []


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_deviation_is_the_standard_deviation_within_the_channels(dtype: str) -> None:
    patch = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (31, 47, 3), dtype, endpoint=True)
    expected = np.sqrt((patch / np.iinfo(dtype).max * 255).var(axis=(0, 1)).mean())
    assert deviation(patch) == pytest.approx(expected, rel=1e-12)
    assert deviation(np.full((31, 47, 3), (65535, 1, 7), np.uint16)) == 0


def test_random_places_avoid_flat_ones_as_long_as_they_can() -> None:
    picture = np.zeros((32, 320, 1), np.uint8)
    picture[:, ::2] = 100
    picture[:, 160:] = 0
    choice = Choice(16, 16, 30, 1.0)
    places = choose(picture, choice, rng=np.random.default_rng(0))
    assert len(places) == 30
    assert all(deviation(cut(picture, place, choice)) >= 1 for place in places)


@pytest.mark.parametrize("factor", [0, -0.5, 1.01, float("nan")])
def test_shrink_refuses_a_factor(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"^factor is {factor}; allowed: above 0, at most 1$"):
        shrink(np.zeros((4, 6, 3), np.uint8), factor=factor)

"""Laws of the noise models, of 8-bit files and of the noise estimate."""

import warnings
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage.data
from numpy.typing import NDArray

from raydenoise.core.noise import add_awgn, add_poisson_gaussian, estimate_sigma, quantize
from raydenoise.core.patches import to_grey

HEIGHT, WIDTH = 200, 300
PHOTOS = ("astronaut", "coffee", "chelsea")

Array = NDArray[Any]


def photo(name: str) -> Array:
    """(H, W, 3) float32 in [0, 1]."""
    return getattr(skimage.data, name)() / np.float32(255)


def ramp() -> Array:
    """(HEIGHT, WIDTH, 3) over all of [0, 1]."""
    return np.linspace(0, 1, HEIGHT * WIDTH * 3, dtype=np.float32).reshape(HEIGHT, WIDTH, 3)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise_of(kind: str, seed: int) -> Array:
    if kind == "awgn":
        return add_awgn(ramp(), sigma=25, rng=generator(seed))
    return add_poisson_gaussian(ramp(), peak=50, sigma=5, rng=generator(seed))


@pytest.mark.parametrize("kind", ["awgn", "poisson"])
def test_same_seed_same_bytes(kind: str) -> None:
    assert noise_of(kind, 1).tobytes() == noise_of(kind, 1).tobytes()
    assert noise_of(kind, 1).tobytes() != noise_of(kind, 2).tobytes()


@pytest.mark.parametrize("kind", ["awgn", "poisson"])
def test_noise_is_float32_of_the_same_size(kind: str) -> None:
    noisy = noise_of(kind, 0)
    assert (noisy.shape, noisy.dtype) == ((HEIGHT, WIDTH, 3), np.float32)


@pytest.mark.parametrize("sigma", [0.5, 5, 25, 100])
def test_awgn_has_the_asked_level(sigma: float) -> None:
    clean = ramp()
    added = 255 * (add_awgn(clean, sigma=sigma, rng=generator()) - clean)
    assert added.std() == pytest.approx(sigma, rel=0.01)  # 180,000 samples: 0.17% is one standard error
    assert abs(added.mean()) < 0.015 * sigma
    assert np.array_equal(clean, ramp())


def test_awgn_is_white() -> None:
    added = add_awgn(np.zeros((HEIGHT, WIDTH, 3)), sigma=25, rng=generator())
    for first, second in (
        (added[1:], added[:-1]),
        (added[:, 1:], added[:, :-1]),
        (added[..., 1:], added[..., :-1]),
    ):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.015


def test_awgn_is_neither_clipped_nor_rounded() -> None:
    black = add_awgn(np.zeros((HEIGHT, WIDTH, 1)), sigma=25, rng=generator())
    white = add_awgn(np.ones((HEIGHT, WIDTH, 1)), sigma=25, rng=generator())
    assert (black < 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (white > 1).mean() == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(black)) > 0.9 * black.size


def test_no_noise_at_sigma_zero() -> None:
    assert np.array_equal(add_awgn(ramp(), sigma=0, rng=generator()), ramp())


@pytest.mark.parametrize("sigma", [-1, float("nan"), float("inf")])
def test_awgn_refuses_a_level(sigma: float) -> None:
    with pytest.raises(ValueError, match=rf"^sigma is {sigma}; allowed: 0 or more, in 8-bit grey levels$"):
        add_awgn(ramp(), sigma=sigma, rng=generator())


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("peak", "sigma"), [(20, 0), (50, 5), (400, 25)])
def test_poisson_gaussian_variance_follows_its_formula(value: float, peak: float, sigma: float) -> None:
    clean = np.full((HEIGHT, WIDTH, 1), value, np.float32)
    noisy = add_poisson_gaussian(clean, peak=peak, sigma=sigma, rng=generator()).astype(np.float64)
    variance = value / peak + (sigma / 255) ** 2
    assert noisy.mean() == pytest.approx(value, abs=5 * np.sqrt(variance / noisy.size) + 1e-7)
    # 60,000 samples: 0.7% is one standard error for few photons
    assert noisy.var() == pytest.approx(variance, rel=0.035, abs=1e-12)


@pytest.mark.parametrize("peak", [0, -3, float("nan"), float("inf")])
def test_poisson_refuses_a_peak(peak: float) -> None:
    with pytest.raises(ValueError, match=rf"^peak is {peak}; allowed: above 0, in photons at white$"):
        add_poisson_gaussian(ramp(), peak=peak, sigma=0, rng=generator())


def test_poisson_refuses_negative_light() -> None:
    with pytest.raises(ValueError, match=r"^clean has values down to -0\.25; allowed: \[0, 1\], photon counts"):
        add_poisson_gaussian(ramp() - 0.25, peak=50, sigma=0, rng=generator())


def test_poisson_refuses_a_level() -> None:
    with pytest.raises(ValueError, match=r"^sigma is -2; allowed: 0 or more"):
        add_poisson_gaussian(ramp(), peak=50, sigma=-2, rng=generator())


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_quantize_gives_the_levels_of_a_file(bits: int, dtype: type) -> None:
    noisy = add_awgn(ramp(), sigma=50, rng=generator())
    found = quantize(noisy, bits=bits)
    highest = 2**bits - 1
    levels = np.rint(found.astype(np.float64) * highest).astype(dtype)
    assert found.dtype == np.float32
    assert np.array_equal(found, levels.astype(np.float32) / np.float32(highest))
    assert np.abs(found - np.clip(noisy, 0, 1)).max() <= 0.5 / highest + 1e-6
    assert np.array_equal(quantize(found, bits=bits), found)


def test_quantize_keeps_all_256_levels() -> None:
    levels = np.arange(256, dtype=np.float32).reshape(8, 32, 1) / np.float32(255)
    assert np.array_equal(quantize(levels), levels)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_estimate_in_colour_is_within_3_percent(name: str, sigma: float) -> None:
    noisy = add_awgn(photo(name), sigma=sigma, rng=generator())
    assert estimate_sigma(noisy) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("name", PHOTOS)
def test_estimate_in_grey_is_within_12_percent(name: str) -> None:
    grey = to_grey(photo(name))[..., :1]
    assert estimate_sigma(add_awgn(grey, sigma=25, rng=generator())) == pytest.approx(25, rel=0.12)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("sigma", [25, 50])
def test_what_a_file_clips_is_counted_in(name: str, sigma: float) -> None:
    noisy = quantize(add_awgn(photo(name), sigma=sigma, rng=generator()))
    assert float(np.mean((noisy == 0) | (noisy == 1))) > 0.005
    assert estimate_sigma(noisy) == pytest.approx(sigma, rel=0.06)
    assert estimate_sigma((noisy * 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.06)


@pytest.mark.parametrize("channels", [1, 3])
def test_white_without_visible_noise_does_not_hide_the_rest(channels: int) -> None:
    half = np.full((240, 320, channels), 0.5, np.float32)
    half[:, 140:] = 1.5  # so bright that noise never shows
    noisy = quantize(add_awgn(half, sigma=20, rng=generator()))
    assert estimate_sigma(noisy) == pytest.approx(20, rel=0.1)


def test_fine_texture_beside_something_smooth_is_not_noise() -> None:
    texture = np.random.default_rng(1).uniform(0.2, 0.8, (160, 160, 1))
    half = np.concatenate([np.full((160, 160, 1), 0.5), texture], axis=1)
    assert estimate_sigma(add_awgn(half, sigma=5, rng=generator())) == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_one_colour_at_the_end_of_the_scale_has_no_noise(value: int) -> None:
    assert estimate_sigma(np.full((40, 60, 3), value, np.uint8)) == pytest.approx(0, abs=1e-3)


def test_estimate_of_a_clean_photo_is_small() -> None:
    assert estimate_sigma(photo("astronaut")) < 2  # 1.66: it was a JPEG once, with noise of its own


def test_grey_on_three_planes_is_grey() -> None:
    grey = add_awgn(to_grey(photo("chelsea"))[..., :1], sigma=25, rng=generator())
    assert estimate_sigma(np.repeat(grey, 3, axis=2)) == estimate_sigma(grey)


TONES = {
    "sepia": (1, 0.85, 0.65),
    "blue alone": (0, 0, 1),
    "red alone": (1, 0, 0),
}


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize("sigma", [2, 20])
def test_toned_grey_has_the_noise_of_its_strongest_plane(tone: str, sigma: float) -> None:
    grey = quantize(add_awgn(to_grey(photo("chelsea"))[..., :1], sigma=sigma, rng=generator()))
    toned = quantize(grey * np.float32(TONES[tone]))
    assert estimate_sigma(toned) == pytest.approx(estimate_sigma(grey), rel=0.05)


def test_grey_that_is_not_grey_everywhere_is_still_grey() -> None:
    grey = quantize(add_awgn(to_grey(photo("chelsea"))[..., :1], sigma=20, rng=generator()))
    planes = (np.repeat(grey, 3, axis=2) * 255).astype(np.uint8)
    planes[7, 9, 1] ^= 1
    tinted = np.clip(planes + np.array([2, 0, -2], np.int16), 0, 255).astype(np.uint8)
    stamped = planes.copy()
    stamped[20:30, 20:70] = 200, 0, 0
    for image in (planes, tinted, stamped):
        assert estimate_sigma(image) == pytest.approx(estimate_sigma(grey), rel=0.05)


def test_two_planes_of_three_tell_their_noise() -> None:
    noisy = add_awgn(photo("chelsea"), sigma=20, rng=generator())
    noisy[..., 2] = 0
    assert estimate_sigma(noisy) == pytest.approx(20, rel=0.12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, 16 / 255, 0.5, 1])
def test_a_frame_of_one_colour_has_no_say(channels: int, value: float) -> None:
    noisy = quantize(add_awgn(photo("chelsea")[:200, :200, :channels], sigma=20, rng=generator()))
    for rows, columns in ((60, 90), (0, 120)), ((0, 200), (0, 200)), ((200, 0), (0, 0)):
        framed = np.pad(noisy, (rows, columns, (0, 0)), constant_values=np.float32(value))
        assert estimate_sigma(framed) == pytest.approx(estimate_sigma(noisy), rel=0.02)


def test_a_coloured_drawing_on_a_plain_ground_is_no_grey_picture() -> None:
    y, x = np.mgrid[:300, :400]
    chart = np.full((300, 400, 3), 255, np.uint8)
    for slope, colour in ((0.3, (31, 119, 180)), (0.5, (255, 127, 14)), (0.7, (44, 160, 44))):
        chart[abs(y - slope * x) < 2] = colour
    assert estimate_sigma(chart) < 0.1
    smooth = PIL.Image.fromarray(chart).resize((200, 150), PIL.Image.Resampling.LANCZOS)
    assert estimate_sigma(np.asarray(smooth)) < 0.5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (2, 500), (7, 7)])
def test_a_tiny_picture_has_no_estimate(size: tuple[int, int], channels: int) -> None:
    noisy = add_awgn(np.full((*size, channels), 0.5), sigma=25, rng=generator())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_sigma(noisy) == 0.0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 31), (64, 80)])
def test_a_small_picture_has_a_rough_estimate(size: tuple[int, int], channels: int) -> None:
    noisy = add_awgn(np.full((*size, channels), 0.5), sigma=25, rng=generator())
    assert estimate_sigma(noisy) == pytest.approx(25, rel=0.2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_flat_picture_has_no_noise(channels: int) -> None:
    assert estimate_sigma(np.full((64, 80, channels), 0.3, np.float32)) == pytest.approx(0, abs=1e-3)

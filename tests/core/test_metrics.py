"""Laws of PSNR, SSIM and MSE."""

import math
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from raydenoise.core.metrics import Quality, as_float, quality
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.core.tiling import Grid, cut, plan, stitch

Array = NDArray[Any]


def pair(height: int, width: int, *, channels: int = 3) -> tuple[Array, Array]:
    """A picture and a noisy copy, (H, W, C) uint8."""
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
    noisy = np.rint(255 * quantize(add_awgn(as_float(clean), sigma=25, rng=rng))).astype(np.uint8)
    return clean, noisy


def test_mse_and_psnr_by_hand() -> None:
    reference = np.zeros((2, 3, 1), np.uint8)
    image = reference.copy()
    image[1, 2] = 51  # 0.2 of the range: squared 0.04, over six values
    found = quality(reference, image)
    assert found.mse == pytest.approx(0.04 / 6, rel=1e-6)
    assert found.psnr == pytest.approx(10 * math.log10(6 / 0.04), rel=1e-6)


def test_black_against_white_is_0_db() -> None:
    found = quality(np.zeros((3, 5, 3), np.uint16), np.full((3, 5, 3), 65535, np.uint16))
    assert (found.mse, found.psnr) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_equal_pictures_have_no_psnr(dtype: type) -> None:
    image = (np.arange(8 * 9 * 3).reshape(8, 9, 3) / 216).astype(dtype)
    assert quality(image, image.copy()) == Quality(psnr=None, ssim=1.0, mse=0.0)


@pytest.mark.parametrize("size", [(6, 9), (9, 6), (1, 1), (1, 40)])
def test_small_pictures_have_no_ssim(size: tuple[int, int]) -> None:
    found = quality(*pair(*size))
    assert found.ssim is None
    assert found.psnr is not None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(7, 7), (7, 9), (40, 31)])
def test_ssim_is_that_of_scikit_image(size: tuple[int, int], channels: int) -> None:
    clean, noisy = pair(*size, channels=channels)
    expected = structural_similarity(clean, noisy, channel_axis=-1)
    assert quality(clean, noisy).ssim == pytest.approx(expected, abs=1e-4)  # float32 against float64


def test_the_type_does_not_matter() -> None:
    clean, noisy = pair(20, 31)
    deep, deep_noisy = (image.astype(np.uint16) * 257 for image in (clean, noisy))
    expected = quality(clean, noisy)
    assert quality(deep, deep_noisy) == expected
    assert quality(deep, noisy) == expected
    assert quality(as_float(clean), as_float(deep_noisy)) == expected
    assert quality(clean, deep) == Quality(psnr=None, ssim=1.0, mse=0.0)


def test_every_8_bit_level_has_its_16_bit_twin() -> None:
    levels = np.arange(256).reshape(8, 32, 1)
    scaled = as_float(levels.astype(np.uint8))
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled, as_float((levels * 257).astype(np.uint16)))
    assert (scaled.min(), scaled.max()) == (0, 1)


def test_floats_pass() -> None:
    image = np.array([[[-0.5], [1.5]]], np.float32)
    assert as_float(image) is image


@pytest.mark.parametrize(
    ("reference", "image", "message"),
    [
        ((7, 9, 3), (9, 7, 3), "the reference is 9x7 with 3 channels, the picture is 7x9 with 3 channels"),
        ((7, 9, 1), (7, 9, 3), "the reference is 9x7 with 1 channels, the picture is 9x7 with 3 channels"),
    ],
)
def test_other_sizes_are_refused(reference: tuple[int, ...], image: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}; allowed: the same size and channels$"):
        quality(np.zeros(reference, np.uint8), np.zeros(image, np.uint8))


def test_an_identity_model_gains_0_db() -> None:
    clean = skimage.data.chelsea()[:100, :150]
    noisy = np.rint(255 * quantize(add_awgn(as_float(clean), sigma=25, rng=np.random.default_rng(0)))).astype(np.uint8)
    denoised = np.zeros(clean.shape, np.float32)
    for tile in plan(*clean.shape[:2], grid=Grid(tile=48, halo=8, alignment=4)):
        stitch(denoised, tile, cut(as_float(noisy), tile))
    published = np.rint(255 * denoised).astype(np.uint8)
    before, after = quality(clean, noisy), quality(clean, published)
    assert before.psnr is not None
    assert after.psnr is not None
    assert after.psnr - before.psnr == 0
    assert before.psnr == pytest.approx(20 * math.log10(255 / 25), abs=0.3)

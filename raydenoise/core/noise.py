"""Noise models drawn from an explicit generator, and the estimate of the noise level of a picture."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydenoise.core.metrics import as_float

FloatImage = NDArray[np.float32]

PATCHES = (8, 5, 3)  # sides of the estimator's patches, pixels: 8 as in Chen et al., smaller ones for small pictures
MAX_PATCHES = 16_384  # 85 per dimension of an 8x8x3 patch: more moves the estimate by under 0.1 grey level


def add_awgn(clean: NDArray[np.floating], *, sigma: float, rng: np.random.Generator) -> FloatImage:
    """Add white Gaussian noise, neither clipped nor rounded.

    Args:
        clean: (H, W, C) in [0, 1].
        sigma: standard deviation in 8-bit grey levels, at least 0.
        rng: the generator; the same generator state gives the same bytes.

    Returns:
        (H, W, C) float32, unbounded.

    Raises:
        ValueError: sigma is negative or not finite.
    """
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma is {sigma}; allowed: 0 or more, in 8-bit grey levels")
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    noise *= np.float32(sigma / 255)
    noise += clean
    return noise


def add_poisson_gaussian(
    clean: NDArray[np.floating], *, peak: float, sigma: float, rng: np.random.Generator
) -> FloatImage:
    """Add the noise of a photon-counting sensor: Poisson with `peak` photons at white, then AWGN.

    The variance is clean / peak + (sigma / 255)^2 (Foi et al., "Practical Poissonian-Gaussian noise
    modeling and fitting for single-image raw-data", 2008, eq. 1 with a = 1 / peak).

    Args:
        clean: (H, W, C) in [0, 1].
        peak: photons counted at value 1.0, above 0.
        sigma: read noise in 8-bit grey levels, at least 0.
        rng: the generator.

    Returns:
        (H, W, C) float32, unbounded.

    Raises:
        ValueError: peak is not above 0, sigma is negative, or clean has values below 0.
    """
    if not (np.isfinite(peak) and peak > 0):
        raise ValueError(f"peak is {peak}; allowed: above 0, in photons at white")
    if clean.size and float(np.min(clean)) < 0:
        raise ValueError(
            f"clean has values down to {np.min(clean):.3g}; allowed: [0, 1], photon counts are not negative"
        )
    counts = rng.poisson(np.asarray(clean, np.float64) * peak)
    return add_awgn(counts / peak, sigma=sigma, rng=rng)


def quantize(image: NDArray[np.floating], *, bits: int = 8) -> FloatImage:
    """Clip to [0, 1] and round to the levels of a file with `bits` bits: noise as files hold it."""
    levels = np.float32(2**bits - 1)
    rounded: FloatImage = np.rint(np.clip(image, 0, 1).astype(np.float32) * levels) / levels
    return rounded


def estimate_sigma(image: NDArray[Any]) -> float:
    """Estimate the level of white Gaussian noise from the weakest principal components of small patches.

    Texture lives in few components of the patches; the others hold noise alone, so that their variances scatter evenly
    around sigma^2. Chen, Zhu, Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015,
    algorithm 1: drop the largest eigenvalues until the mean of the rest equals their median.

    Args:
        image: (H, W, C) uint8, uint16, or floats in [0, 1] or beyond. Grey repeated on three planes counts as grey.

    Returns:
        Standard deviation in 8-bit grey levels, 0 for a picture too small to tell (below about 12x12).
    """
    grey = image.shape[-1] == 3 and np.array_equal(image[..., 0], image[..., 1])
    planes = image[..., :1] if grey else image
    side = next((side for side in PATCHES if _enough(planes, side)), None)
    if side is None:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(np.cov(_sample_patches(planes, side), rowvar=False))
    for count in range(len(eigenvalues), 0, -1):  # ascending: the first `count` are the smallest
        mean = eigenvalues[:count].mean()
        if np.median(eigenvalues[:count]) >= mean:
            break
    return float(255 * np.sqrt(max(mean, 0.0)))


def _enough(planes: NDArray[Any], side: int) -> bool:
    """Whether a picture has four patches for each of their dimensions, the least that a covariance needs."""
    height, width, channels = planes.shape
    return bool(min(height, width) >= side) and (height - side + 1) * (width - side + 1) >= 4 * side * side * channels


def _sample_patches(planes: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Take up to MAX_PATCHES patches on an even grid: (count, side * side * C)."""
    windows = np.lib.stride_tricks.sliding_window_view(planes, (side, side), axis=(0, 1))
    rows, columns = windows.shape[:2]
    step = max(1, int(np.ceil(np.sqrt(rows * columns / MAX_PATCHES))))
    chosen = windows[::step, ::step]
    return as_float(chosen.reshape(-1, chosen[0, 0].size))

"""Noise models drawn from an explicit generator, and the estimate of the noise level of a picture."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gamma, norm

from raydenoise.core.metrics import as_float

FloatImage = NDArray[np.float32]

PATCHES = (8, 5, 3)  # sides of the estimator's patches, pixels: 8 as in Chen et al., smaller ones for small pictures
MAX_PATCHES = 16_384  # 85 per dimension of an 8x8x3 patch: more moves the estimate by under 0.1 grey level
ROUNDS = 3  # of refinement on every THIN-th patch, before one on all of them
THIN = 4
CLIPPED_SHARE = 1e-4  # of the values at black or white, from which on clipping is looked at
KEPT = 0.77  # of the deviation: 0.6 of the variance. Patches that lose more are left out; 0.8 of it kept too few
NONE = 1e-4  # deviation, 0.03 grey levels: nothing to refine, and too near rounding for `_kept`
UNSEEN = 1e-3  # per grey level: what clipping within a patch still hides; 4 to 6% at sigma 50 on training photographs
LOOKED_AT = 1 << 18  # pixels, whether planes are one picture
FOLLOWING = 0.95  # share of the pixels from which on they are; of 667 photographs in colour at most 0.76
SPREAD = 1 / 32  # of 256 levels, the least that noise spreads over
ROUGHER = 1e-6  # share of pure noise that counts as texture; Liu et al.


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
    algorithm 1: drop the largest eigenvalues until the mean of the rest equals their median. Refinements:

    - A file clips its noise at black and white. Patches that lose much of their noise there are left out, the others
      scaled by what they lose, so that the estimate is the level before clipping.
    - One plane has few components, and fine texture reaches all of them: patches with more texture than noise would
      show are left out, as in Liu, Tanaka, Okutomi, "Single-Image Noise Level Estimation for Blind Denoising", 2013.
    - A frame of one colour is left out, and planes that are empty or follow another one (grey, toned grey, light of one
      colour): they have no noise of their own, and their components would hold rounding alone.

    Args:
        image: (H, W, C) uint8, uint16, or floats in [0, 1] or beyond.

    Returns:
        Standard deviation in 8-bit grey levels, 0 for a picture too small to tell (below about 12x12).
    """
    planes = _noisy_planes(_unframed(image))
    side = next((side for side in PATCHES if _enough(planes, side)), None)
    if side is None:
        return 0.0
    patches = _sample_patches(planes, side)
    clipped = _clipped(patches)
    if not clipped and patches.shape[1] > 1:
        return 255 * _level(patches)
    some = patches[::THIN] if len(patches) >= THIN * _least(patches) else patches
    level = _level(some)
    for part in (*[some] * ROUNDS, patches):
        level = _level(_telling(part, level, clipped=clipped)) if level > NONE else level
    estimate = 255 * level
    return estimate * (1 + UNSEEN * estimate) if clipped else estimate


def _unframed(image: NDArray[Any]) -> NDArray[Any]:
    """Cut off the rows and columns at the borders that have the upper left or the lower right corner's colour alone."""
    return _cut(_cut(image)[::-1, ::-1])[::-1, ::-1]


def _cut(image: NDArray[Any]) -> NDArray[Any]:
    inside = np.zeros(image.shape[:2], bool)
    for plane in np.moveaxis(image, 2, 0):
        inside |= plane != plane[0, 0]
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else image


def _noisy_planes(image: NDArray[Any]) -> NDArray[Any]:
    """The planes that have a noise of their own: those that are no function of one of more contrast."""
    if image.shape[-1] == 1:
        return image
    step = int(np.ceil(np.sqrt(image[..., 0].size / LOOKED_AT)))
    levels = np.rint(255 * as_float(image[::step, ::step]).clip(0, 1)).astype(np.intp)
    kept: list[int] = []
    for plane in np.argsort(-levels.var(axis=(0, 1)), kind="stable").tolist():
        if not any(_follows(levels[..., plane], levels[..., other]) for other in kept):
            kept.append(plane)
    return image if len(kept) == image.shape[-1] else image[..., sorted(kept)]


def _follows(plane: NDArray[np.intp], other: NDArray[np.intp]) -> bool:
    """Whether a plane is the other one through a curve: next to the same 8-bit level wherever the other has one.

    No level of the other counts for more than its share: a plain ground says nothing of the drawing on it. Where nearly
    all have few levels, it is a drawing without noise, whose planes may agree by chance.
    """
    if np.array_equal(plane, other):
        return True
    counts = np.bincount(256 * other.ravel() + plane.ravel(), minlength=256**2).reshape(256, 256)
    up_to = np.pad(counts, ((0, 0), (2, 1))).cumsum(axis=1)  # each level from -2 to 256
    total = up_to[:, -1]
    median = (2 * up_to < total[:, None]).sum(axis=1, keepdims=True)
    near = np.take_along_axis(up_to, median + 1, axis=1) - np.take_along_axis(up_to, median - 2, axis=1)
    weight = np.minimum(total, max(1, plane.size // 256))
    followed = (weight * near[:, 0] / np.maximum(total, 1)).sum()
    return bool(followed >= FOLLOWING * weight.sum() and weight.sum() >= SPREAD * plane.size)


def _enough(planes: NDArray[Any], side: int) -> bool:
    """Whether a picture has four patches for each of their dimensions, the least that a covariance needs."""
    height, width, channels = planes.shape
    return bool(min(height, width) >= side) and (height - side + 1) * (width - side + 1) >= 4 * side * side * channels


def _sample_patches(planes: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Take up to MAX_PATCHES patches on an even grid: (count, C, side, side)."""
    windows = np.lib.stride_tricks.sliding_window_view(planes, (side, side), axis=(0, 1))
    rows, columns = windows.shape[:2]
    step = max(1, int(np.ceil(np.sqrt(rows * columns / MAX_PATCHES))))
    chosen = windows[::step, ::step]
    return as_float(chosen.reshape(-1, *chosen.shape[2:]))


def _least(patches: FloatImage) -> int:
    return 4 * int(np.prod(patches.shape[1:]))  # as in `_enough`


def _level(patches: FloatImage) -> float:
    """Chen et al.'s estimate: the standard deviation of the noise of (count, C, side, side)."""
    eigenvalues = np.linalg.eigvalsh(np.cov(patches.reshape(len(patches), -1), rowvar=False))
    for count in range(len(eigenvalues), 0, -1):  # ascending: the first `count` are the smallest
        mean = eigenvalues[:count].mean()
        if np.median(eigenvalues[:count]) >= mean:
            break
    return float(np.sqrt(max(mean, 0.0)))


def _clipped(patches: FloatImage) -> bool:
    """Whether values end at 0 and 1 as those of a file do, and some are there."""
    if patches.min() < 0 or patches.max() > 1:
        return False
    return bool(np.mean((patches <= 0) | (patches >= 1)) > CLIPPED_SHARE)


def _telling(patches: FloatImage, level: float, *, clipped: bool) -> FloatImage:
    """The patches that tell the noise, if its standard deviation is about `level`; scaled where they are clipped."""
    least = _least(patches)
    kept = np.ones(patches.shape[:2], np.float32)  # share of the noise that clipping leaves to each plane
    chosen = np.ones(len(patches), bool)
    if clipped:
        kept = _kept(patches.mean(axis=(2, 3)), level)
        worst = kept.min(axis=1)
        chosen = worst >= min(KEPT, np.sort(worst)[-least])
    if patches.shape[1] == 1:
        roughness = sum(np.square(np.diff(patches, axis=axis)).sum(axis=(1, 2, 3)) for axis in (2, 3))
        smooth = chosen & (roughness <= _roughest(patches.shape[-1]) * np.square(kept[:, 0] * level))
        if smooth.sum() >= least:
            chosen = smooth
    middle = np.float32(0.5)  # any value: what all patches share is no component
    scaled: FloatImage = (patches[chosen] - middle) / kept[chosen][:, :, None, None]
    return scaled


def _kept(means: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """Standard deviation of noise of `level` that was clipped to [0, 1], over `level`, where the mean is `means`."""
    clean = np.linspace(0, 1, 129)
    low, high = -clean / level, (1 - clean) / level
    inside, white = norm.cdf(high) - norm.cdf(low), norm.sf(high)
    first = clean * inside + level * (norm.pdf(low) - norm.pdf(high)) + white
    second = (clean**2 + level**2) * inside + level * (clean * norm.pdf(low) - (clean + 1) * norm.pdf(high)) + white
    deviation = np.sqrt(np.maximum(second - first**2, 0)) / level
    shares: NDArray[np.float32] = np.interp(means, first, np.maximum(deviation, 0.1)).astype(np.float32)
    return shares


@cache
def _roughest(side: int) -> float:
    """The sum of squared differences between neighbours that noise of variance 1 hardly ever exceeds in a patch.

    It is a sum over n^T A n, which Liu et al. take for a gamma distribution of mean tr A and variance 2 tr A^2.
    """
    steps = np.diff(np.eye(side * side).reshape(side, side, -1), axis=0).reshape(-1, side * side)
    across = np.diff(np.eye(side * side).reshape(side, side, -1), axis=1).reshape(-1, side * side)
    form = steps.T @ steps + across.T @ across
    mean, variance = np.trace(form), 2 * np.trace(form @ form)
    return float(gamma.isf(ROUGHER, mean**2 / variance) * variance / mean)

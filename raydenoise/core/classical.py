"""Classical methods, as baselines: scikit-image does the arithmetic. Given (H, W, C) float32 and the noise level."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from skimage import filters, restoration

FloatImage = NDArray[np.float32]


def median(noisy: FloatImage, sigma: float) -> FloatImage:
    """The median of each plane, in a window that grows with the noise.

    Window: the best of 3, 5 and 7 pixels on five training photographs at sigma 15, 25 and 50 (29.1, 27.35 and 25.2 dB).
    """
    side = 3 if sigma <= 20 else 5 if sigma <= 35 else 7
    return cast(FloatImage, filters.median(noisy, np.ones((side, side, 1))))


def wavelet(noisy: FloatImage, sigma: float) -> FloatImage:
    """Soft thresholds of wavelet coefficients by BayesShrink, in YCbCr, the mean over four shifts.

    Chang, Yu, Vetterli, 2000, with the settings of scikit-image's gallery ("Wavelet denoising", "Shift-invariant
    wavelet denoising"); the shifts gained 0.7 to 1.1 dB on five training photographs.
    """
    options: dict[str, Any] = {"method": "BayesShrink", "mode": "soft", "rescale_sigma": True, "channel_axis": -1}
    options |= {"sigma": sigma / 255, "convert2ycbcr": noisy.shape[-1] == 3}
    spun = restoration.cycle_spin(noisy, restoration.denoise_wavelet, max_shifts=(1, 1, 0), func_kw=options, workers=1)
    return cast(FloatImage, spun)


def nlm(noisy: FloatImage, sigma: float) -> FloatImage:
    """Non-local means of 5x5 patches within 6 pixels, the fast variant.

    Buades, Coll, Morel, 2005, with the settings of scikit-image's gallery ("Non-local means denoising"); h = 0.6 sigma
    was 0.3 to 0.6 dB better than 0.8 sigma on five training photographs.
    """
    noise_std = sigma / 255
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": -1}
    denoised = restoration.denoise_nl_means(noisy, h=0.6 * noise_std, sigma=noise_std, **options)
    return cast(FloatImage, denoised.reshape(noisy.shape))  # it drops the axis of a single plane


def bm3d(noisy: FloatImage, sigma: float) -> FloatImage:
    """BM3D, CBM3D for colour: Dabov, Foi, Katkovnik, Egiazarian, 2007; the package bm3d of the authors' group."""
    from bm3d import bm3d, bm3d_rgb  # type: ignore[import-not-found]  # its licence keeps it out of what we install

    method = bm3d_rgb if noisy.shape[-1] == 3 else bm3d
    return np.asarray(method(noisy, sigma / 255), np.float32).reshape(noisy.shape)


CLASSICAL: dict[str, Callable[[FloatImage, float], FloatImage]] = {
    "median": median,
    "wavelet": wavelet,
    "nlm": nlm,
    "bm3d": bm3d,
}


def check_installed(name: str) -> None:
    """Raise ValueError where a classical method asks for a package that is not there."""
    if name == "bm3d" and find_spec("bm3d") is None:
        raise ValueError(
            "models names 'bm3d', and the package bm3d is not installed; allowed: install it where its licence (no "
            "commercial use) suits you, on every node, or leave it out"
        )

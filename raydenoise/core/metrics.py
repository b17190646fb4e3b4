"""PSNR, SSIM and MSE of published pixels; scikit-image does the arithmetic."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import metrics

SSIM_WINDOW = 7  # pixels, scikit-image's default; smaller pictures have no SSIM


@dataclass(frozen=True)
class Quality:
    """How near a picture is to its reference.

    Attributes:
        psnr: dB; None where the two are equal (it would be infinite).
        ssim: -1 to 1, mean over channels; None below 7x7 pixels.
        mse: at data range 1.
    """

    psnr: float | None
    ssim: float | None
    mse: float


def quality(reference: NDArray[np.generic], image: NDArray[np.generic]) -> Quality:
    """Compare two pictures at the full range of their type.

    Args:
        reference: (H, W, C) uint8, uint16 or float32 in [0, 1].
        image: the same shape; uint8 and uint16 may meet.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != image.shape:
        raise ValueError(
            f"the reference is {_size(reference)}, the picture is {_size(image)}; allowed: the same size and channels"
        )
    first, second = as_float(reference), as_float(image)
    mse = float(metrics.mean_squared_error(first, second))
    psnr = float(metrics.peak_signal_noise_ratio(first, second, data_range=1.0)) if mse > 0 else None
    ssim = None
    if min(first.shape[:2]) >= SSIM_WINDOW:
        ssim = float(metrics.structural_similarity(first, second, data_range=1.0, channel_axis=-1))
    return Quality(psnr=psnr, ssim=ssim, mse=mse)


def as_float(image: NDArray[Any]) -> NDArray[np.float32]:
    """Scale uint8 or uint16 to float32 in [0, 1]; floats pass."""
    if image.dtype in (np.uint8, np.uint16):
        scaled: NDArray[np.float32] = np.true_divide(image, np.iinfo(image.dtype).max, dtype=np.float32)
        return scaled
    return image.astype(np.float32, copy=False)


def _size(image: NDArray[np.generic]) -> str:
    height, width, channels = image.shape
    return f"{width}x{height} with {channels} channels"

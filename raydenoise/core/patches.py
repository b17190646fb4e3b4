"""Choosing and augmenting training patches."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

# ITU-R BT.601 luma, what Pillow's "L" conversion uses.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def random_crop(pictures: Sequence[NDArray[np.uint8]], *, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Crop one square from one picture, each picture as likely as any other.

    Args:
        pictures: (H, W, C) arrays, each at least `side` pixels high and wide.
        side: of the square, pixels.
        rng: the generator.

    Returns:
        (side, side, C) view.
    """
    picture = pictures[int(rng.integers(len(pictures)))]
    height, width = picture.shape[:2]
    y, x = (int(rng.integers(extent - side + 1)) for extent in (height, width))
    return picture[y : y + side, x : x + side]


def augment(patch: NDArray[np.uint8], *, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Flip and turn by quarters a square patch at random.

    Args:
        patch: (side, side, C).
        rng: the generator.

    Returns:
        (side, side, C) of the same values.
    """
    patch = np.rot90(patch, int(rng.integers(4)))
    return patch[:, ::-1] if rng.integers(2) else patch


def to_grey(patch: NDArray[np.floating]) -> NDArray[np.float32]:
    """Turn (H, W, 3) into its luma repeated on three planes (ITU-R BT.601)."""
    luma = np.asarray(patch, np.float32) @ LUMA
    return np.repeat(luma[..., None], 3, axis=-1)


def shrink(picture: NDArray[np.uint8], *, factor: float) -> NDArray[np.uint8]:
    """Shrink a picture by Lanczos resampling: removes most of the blocks and noise of a compressed one.

    Args:
        picture: (H, W, 3).
        factor: of both sides, above 0, at most 1.

    Raises:
        ValueError: the factor is not allowed.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor is {factor}; allowed: above 0, at most 1")
    height, width = (max(1, round(extent * factor)) for extent in picture.shape[:2])
    return np.asarray(PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.LANCZOS))

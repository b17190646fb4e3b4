"""Choosing and augmenting training patches."""

from collections.abc import Sequence

import numpy as np
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
    """Flip, turn by quarters and reorder the channels of a square patch at random.

    Args:
        patch: (side, side, C).
        rng: the generator.

    Returns:
        (side, side, C) of the same values.
    """
    patch = np.rot90(patch, int(rng.integers(4)))
    if rng.integers(2):
        patch = patch[:, ::-1]
    return patch[..., rng.permutation(patch.shape[-1])]


def to_grey(patch: NDArray[np.floating]) -> NDArray[np.float32]:
    """Turn (H, W, 3) into its luma repeated on three planes (ITU-R BT.601)."""
    luma = np.asarray(patch, np.float32) @ LUMA
    return np.repeat(luma[..., None], 3, axis=-1)

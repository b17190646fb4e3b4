"""Choosing and augmenting training patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import sqrt
from typing import Any, Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Augmentation = Literal["flip", "turn", "channels", "brightness"]

# ITU-R BT.601 luma, what Pillow's "L" conversion uses.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SATURATION = (0.5, 2.5)  # of `recolour`: from dull to that of dyed cloth and flowers
GAIN = (0.6, 1.2)  # of each plane, as under light of another colour
ENLARGED = (1.2, 2.0)  # of `soften`: from nearly sharp to two pixels where there was one
DRAWS = 4  # places tried for each random patch asked for, where flat ones are left out


def generator(seed: int, *, epoch: int, patch: int, purpose: int) -> np.random.Generator:
    """The random numbers of one sample of a training: 0 for where it is cropped, 1 for augmentation and noise."""
    return np.random.Generator(np.random.SFC64([seed, epoch, patch, purpose]))


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


def augment(
    patches: Sequence[NDArray[Any]], names: Sequence[Augmentation], *, rng: np.random.Generator
) -> list[NDArray[Any]]:
    """Move the pixels of square patches that belong together at random, all in the same way.

    Args:
        patches: (side, side, C) each.
        names: `flip` (left and right), `turn` (quarters), `channels` (their order); `brightness` moves nothing and is
            left to `brightness`.
        rng: the generator.

    Returns:
        (side, side, C) each, of the same values.
    """
    turns = int(rng.integers(4)) if "turn" in names else 0
    flip = -1 if "flip" in names and rng.integers(2) else 1
    order = rng.permutation(patches[0].shape[-1]) if "channels" in names else slice(None)
    return [np.rot90(patch, turns)[:, ::flip, order] for patch in patches]


def brightness(names: Sequence[Augmentation], *, rng: np.random.Generator) -> np.float32:
    """Draw the factor of the augmentation `brightness`: 0.5 to 1, so that nothing is clipped; 1 without it."""
    return np.float32(rng.uniform(0.5, 1.0) if "brightness" in names else 1.0)


def to_grey(patch: NDArray[np.floating]) -> NDArray[np.float32]:
    """Turn (H, W, 3) into its luma repeated on three planes (ITU-R BT.601)."""
    luma = np.asarray(patch, np.float32) @ LUMA
    return np.repeat(luma[..., None], 3, axis=-1)


def recolour(patch: NDArray[np.floating], *, rng: np.random.Generator) -> NDArray[np.float32]:
    """Give a patch other colours: another saturation, other gains of its planes, another order of them.

    Photographs of nature hold few vivid colours, so that a network learns to expect three planes that are nearly alike.

    Args:
        patch: (H, W, 3) in [0, 1].
        rng: the generator.

    Returns:
        (H, W, 3) float32, clipped to [0, 1].
    """
    grey = to_grey(patch)
    vivid = grey + np.float32(rng.uniform(*SATURATION)) * (np.asarray(patch, np.float32) - grey)
    vivid *= rng.uniform(*GAIN, size=3).astype(np.float32)
    return np.clip(vivid[..., rng.permutation(3)], 0, 1)


def soften(patch: NDArray[Any], *, rng: np.random.Generator) -> NDArray[Any]:
    """Enlarge a window of a square patch to all of it, by bicubic resampling.

    Cameras with many pixels, scans and enlargements are softer from pixel to pixel than the shrunk pictures of most
    training sets.

    Args:
        patch: (side, side, C) uint8 or uint16, C = 1 or 3.
        rng: draws the factor, 1.2 to 2, and the window.

    Returns:
        (side, side, C) of the same type.
    """
    side = patch.shape[0]
    window = max(1, round(side / rng.uniform(*ENLARGED)))
    part = random_crop([patch], side=window, rng=rng)
    return _resampled(part, side, side, PIL.Image.Resampling.BICUBIC)


def shrink(picture: NDArray[Any], *, factor: float) -> NDArray[Any]:
    """Shrink a picture by Lanczos resampling: removes most of the blocks and noise of a compressed one.

    Args:
        picture: (H, W, C) uint8 or uint16, C = 1 or 3; 16 bits are resampled as float32, which holds them all.
        factor: of both sides, above 0, at most 1.

    Raises:
        ValueError: the factor is not allowed.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor is {factor}; allowed: above 0, at most 1")
    height, width = (max(1, round(extent * factor)) for extent in picture.shape[:2])
    if (height, width) == picture.shape[:2]:
        return picture
    return _resampled(picture, height, width, PIL.Image.Resampling.LANCZOS)


def _resampled(picture: NDArray[Any], height: int, width: int, kernel: PIL.Image.Resampling) -> NDArray[Any]:
    """Bring (H, W, C) to another size; 16 bits as float32."""
    planes = [picture] if picture.dtype == np.uint8 and picture.shape[2] == 3 else np.moveaxis(picture, 2, 0)
    found = [_resampled_plane(plane, height, width, kernel) for plane in planes]
    return found[0] if found[0].ndim == 3 else np.stack(found, axis=2)


def _resampled_plane(plane: NDArray[Any], height: int, width: int, kernel: PIL.Image.Resampling) -> NDArray[Any]:
    """Bring (H, W) or (H, W, 3) to another size."""
    samples = plane if plane.dtype == np.uint8 else plane.astype(np.float32)  # Pillow's mode "F"
    found = np.asarray(PIL.Image.fromarray(samples).resize((width, height), kernel))
    if plane.dtype == np.uint8:
        return found
    rounded: NDArray[Any] = np.clip(np.rint(found), 0, np.iinfo(plane.dtype).max).astype(plane.dtype)
    return rounded


@dataclass(frozen=True)
class Choice:
    """Which patches of a picture to take.

    Attributes:
        side: of a patch, pixels.
        stride: between the starts of a grid from the top left corner; what is left at the other borders is not used.
        count: this many at random places instead, no place twice; fewer where the picture has no more.
        flat: patches whose pixels deviate less than this are left out, 8-bit grey levels.
    """

    side: int
    stride: int
    count: int | None
    flat: float


def choose(picture: NDArray[Any], choice: Choice, *, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Choose patches: (y, x) of each, none where the picture is smaller than one.

    Args:
        picture: (H, W, C) uint8 or uint16.
        choice: the rules.
        rng: for `count`.
    """
    down, across = (extent - choice.side for extent in picture.shape[:2])
    if down < 0 or across < 0:
        return []
    if choice.count is None:
        places = [(y, x) for y in range(0, down + 1, choice.stride) for x in range(0, across + 1, choice.stride)]
    else:
        all_places = (down + 1) * (across + 1)
        drawn = rng.choice(all_places, size=min(all_places, DRAWS * choice.count), replace=False)
        places = [divmod(int(place), across + 1) for place in drawn]
    textured = (place for place in places if not choice.flat or deviation(cut(picture, place, choice)) >= choice.flat)
    return list(islice(textured, choice.count))


def cut(picture: NDArray[Any], place: tuple[int, int], choice: Choice) -> NDArray[Any]:
    """Cut one patch: a view."""
    y, x = place
    return picture[y : y + choice.side, x : x + choice.side]


def deviation(patch: NDArray[Any]) -> float:
    """Measure how far the pixels of (H, W, C) uint8 or uint16 lie from being one colour, in 8-bit grey levels.

    The root of the mean over the channels of their variances.
    """
    count, channels = patch.shape[0] * patch.shape[1], patch.shape[2]
    samples = patch.reshape(count, channels).astype(np.float64)
    # Whole numbers below 2^53: exact on any machine, in any order. 20 times as fast as `var`.
    squares = int(np.vdot(samples, samples))
    variance = (squares * count - sum(int(total) ** 2 for total in np.ones(count) @ samples)) / count**2 / channels
    return sqrt(max(0.0, variance)) * 255 / float(np.iinfo(patch.dtype).max)

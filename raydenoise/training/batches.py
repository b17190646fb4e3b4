"""Pictures -> augmented, noised batches. Every sample is a function of (seed, epoch, index) alone."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from raydenoise.core.metrics import as_float
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.core.patches import augment, random_crop, to_grey
from raydenoise.training.recipe import Recipe

Picture = NDArray[np.uint8]
Batch = tuple[NDArray[np.float32], NDArray[np.float32]]

VALIDATION_SIGMAS = (15.0, 25.0, 50.0)  # the levels of the published tables
VALIDATION_SIDE = 192  # pixels: more than three times the default network's receptive radius


def training_pair(patch: Picture, *, recipe: Recipe, noise_map: bool, rng: np.random.Generator) -> Batch:
    """Augment and noise one patch.

    Args:
        patch: (side, side, 3) uint8.
        recipe: sigma range, shares of grey and of quantized samples.
        noise_map: append the plane sigma / 255 to the noisy input.
        rng: the sample's own generator.

    Returns:
        noisy (side, side, 3 or 4) and clean (side, side, 3), float32.
    """
    clean = as_float(augment(patch, rng=rng))
    sigma = rng.uniform(*recipe.sigma_range)
    if rng.random() < recipe.grey_share:
        clean = to_grey(clean)
        noisy = np.repeat(add_awgn(clean[..., :1], sigma=sigma, rng=rng), 3, axis=-1)
    else:
        noisy = add_awgn(clean, sigma=sigma, rng=rng)
    if rng.random() < recipe.quantized_share:
        noisy = quantize(noisy)
    return (with_sigma_plane(noisy, sigma) if noise_map else noisy), clean


def with_sigma_plane(noisy: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Append the plane sigma / 255 to (H, W, C)."""
    plane = np.full((*noisy.shape[:2], 1), sigma / 255, np.float32)
    return np.concatenate([noisy, plane], axis=-1)


class TrainingBatches(keras.utils.PyDataset):  # type: ignore[misc]  # keras has no type stubs
    """The batches of one epoch after another, for `model.fit`.

    A `PyDataset` is how Keras takes batches on every backend; it is the only class of theirs that we extend here.
    """

    def __init__(self, pictures: Sequence[Picture], *, recipe: Recipe, noise_map: bool, epoch: int = 0) -> None:
        super().__init__(workers=1, max_queue_size=8)
        self.pictures, self.recipe, self.noise_map, self.epoch = pictures, recipe, noise_map, epoch

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return self.recipe.steps_per_epoch

    def on_epoch_end(self) -> None:
        """Go on to the next epoch's samples."""
        self.epoch += 1

    def __getitem__(self, index: int) -> Batch:
        first = index * self.recipe.batch_size
        pairs = [self._sample(first + offset) for offset in range(self.recipe.batch_size)]
        return np.stack([noisy for noisy, _ in pairs]), np.stack([clean for _, clean in pairs])

    def _sample(self, index: int) -> Batch:
        rng = np.random.Generator(np.random.SFC64([self.recipe.seed, self.epoch, index]))
        patch = random_crop(self.pictures, side=self.recipe.patch, rng=rng)
        return training_pair(patch, recipe=self.recipe, noise_map=self.noise_map, rng=rng)


def validation_set(pictures: Sequence[Picture], *, noise_map: bool, side: int = VALIDATION_SIDE) -> Batch:
    """Noise the centre of each picture at every validation sigma, from a fixed seed.

    Args:
        pictures: (H, W, 3) uint8; those smaller than `side` are left out.
        noise_map: append the sigma plane.
        side: of the centre crop, pixels.

    Returns:
        noisy (N, side, side, 3 or 4) and clean (N, side, side, 3), float32.

    Raises:
        ValueError: no picture is large enough.
    """
    large = [picture for picture in pictures if min(picture.shape[:2]) >= side]
    if not large:
        raise ValueError(f"none of the {len(pictures)} validation pictures is {side} pixels high and wide")
    rng = np.random.default_rng(0)
    noisy, clean = [], []
    for sigma in VALIDATION_SIGMAS:
        for picture in large:
            y, x = ((extent - side) // 2 for extent in picture.shape[:2])
            target = as_float(picture[y : y + side, x : x + side])
            sample = add_awgn(target, sigma=sigma, rng=rng)
            noisy.append(with_sigma_plane(sample, sigma) if noise_map else sample)
            clean.append(target)
    return np.stack(noisy), np.stack(clean)


def mean_psnr(clean: Any, denoised: Any) -> Any:
    """PSNR of each picture of a batch in dB at data range 1, output clipped to [0, 1]: (N,)."""
    error = keras.ops.square(keras.ops.clip(denoised, 0.0, 1.0) - clean)
    mse = keras.ops.mean(error, axis=(1, 2, 3))
    return -10.0 * keras.ops.log(keras.ops.maximum(mse, 1e-10)) / np.float32(np.log(10.0))

"""Patches -> augmented, noised batches. Every sample is a function of the seed, the epoch and the patch alone."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raydenoise.core.metrics import as_float
from raydenoise.core.noise import add_awgn, add_poisson_gaussian, quantize
from raydenoise.core.patches import augment, brightness, generator, recolour, soften, to_grey
from raydenoise.training.recipe import Recipe

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
FloatPixels = NDArray[np.float32]
Batch = tuple[FloatPixels, FloatPixels]
Item = TypeVar("Item")

VALIDATION_SIGMAS = (15.0, 25.0, 50.0)  # the levels of the published tables
QUEUED = 4  # batches made ahead: hides the jitter of their making, not a lack of processor


@dataclass(frozen=True)
class Sample:
    """A patch on its way into a batch.

    Attributes:
        clean: (side, side, 1 or 3).
        noisy: of the same shape, where the patches are pairs.
        sigma: estimated level of `noisy`, 8-bit grey levels.
        epoch: of the sample.
        patch: its number among all patches.
    """

    clean: Pixels
    epoch: int
    patch: int
    noisy: Pixels | None = None
    sigma: float = 0.0


def training_batch(samples: Sequence[Sample], *, recipe: Recipe, inputs: int, channels: int) -> Batch:
    """Augment and noise patches of one size.

    Args:
        samples: the patches.
        recipe: augmentation, noise, shares of grey and of quantized samples.
        inputs: planes that the network takes; one more than `channels` with a noise map.
        channels: colour planes of the network, 1 or 3. A grey patch is repeated, a coloured one turned grey; of a pair
            one plane is taken, as `Denoiser` feeds them.

    Returns:
        noisy (N, side, side, inputs) and clean (N, side, side, channels), float32.
    """
    shape = (len(samples), *samples[0].clean.shape[:2])
    noisy, clean = np.empty((*shape, inputs), np.float32), np.empty((*shape, channels), np.float32)
    for index, sample in enumerate(samples):
        noisy[index, ..., :channels], clean[index], sigma = _drawn(sample, recipe, channels)
        noisy[index, ..., channels:] = sigma / 255  # the noise map, where the network takes one
    return noisy, clean


def _drawn(sample: Sample, recipe: Recipe, channels: int) -> tuple[FloatPixels, FloatPixels, float]:
    """Draw one sample: noisy and clean (side, side, channels), and the level, 8-bit grey levels."""
    rng = generator(recipe.seed, epoch=sample.epoch, patch=sample.patch, purpose=1)
    if sample.noisy is not None:
        moved = augment([sample.clean, sample.noisy], recipe.augment, rng=rng)
        factor = brightness(recipe.augment, rng=rng)
        plane = int(rng.integers(sample.clean.shape[-1]))
        clean, noisy = (_pair_planes(as_float(pixels), channels, plane) * factor for pixels in moved)
        return noisy, clean, sample.sigma * float(factor)
    softer = recipe.soft_share and rng.random() < recipe.soft_share
    pixels = soften(sample.clean, rng=rng) if softer else sample.clean
    (pixels,) = augment([pixels], recipe.augment, rng=rng)
    clean = _planes(as_float(pixels), channels) * brightness(recipe.augment, rng=rng)
    if channels == sample.clean.shape[-1] == 3 and recipe.colour_share and rng.random() < recipe.colour_share:
        clean = recolour(clean, rng=rng)
    grey = channels == 3 and (rng.random() < recipe.grey_share or sample.clean.shape[-1] == 1)
    if grey:
        clean = to_grey(clean)
    noisy, sigma = _noised(clean[..., :1] if grey else clean, recipe=recipe, rng=rng)
    if grey:
        noisy = np.repeat(noisy, 3, axis=-1)
    if rng.random() < recipe.quantized_share:
        noisy = quantize(noisy)
    return noisy, clean, sigma


def _planes(pixels: FloatPixels, channels: int) -> FloatPixels:
    if pixels.shape[-1] == channels:
        return pixels
    return np.repeat(pixels, 3, axis=-1) if channels == 3 else to_grey(pixels)[..., :1]


def _pair_planes(pixels: FloatPixels, channels: int, plane: int) -> FloatPixels:
    """As `_planes`, but one plane of a coloured patch, not its luma: noise of the level that was estimated on all."""
    return pixels[..., plane : plane + 1] if channels < pixels.shape[-1] else _planes(pixels, channels)


def _noised(clean: FloatPixels, *, recipe: Recipe, rng: np.random.Generator) -> tuple[FloatPixels, float]:
    """Add the recipe's noise; returns its level too: the root of the mean variance, 8-bit grey levels."""
    low, high = recipe.sigma_range
    sigma = float(low + (high - low) * rng.random() ** recipe.sigma_power)
    if recipe.noise == "awgn":
        return add_awgn(clean, sigma=sigma, rng=rng), sigma
    peak = float(np.exp(rng.uniform(*np.log(recipe.peak_range))))
    noisy = add_poisson_gaussian(clean, peak=peak, sigma=sigma, rng=rng)
    return noisy, float(np.sqrt(255**2 * clean.mean() / peak + sigma**2))


def with_sigma_plane(noisy: FloatPixels, sigma: float) -> FloatPixels:
    """Append the plane sigma / 255 to (H, W, C)."""
    plane = np.full((*noisy.shape[:2], 1), sigma / 255, np.float32)
    return np.concatenate([noisy, plane], axis=-1)


def stacked(pairs: Iterable[Batch]) -> Batch:
    """Make a batch of samples: (N, side, side, inputs) and (N, side, side, channels)."""
    noisy, clean = zip(*pairs, strict=True)
    return np.stack(noisy), np.stack(clean)


def validation_pairs(sample: Sample, *, inputs: int, channels: int) -> list[Batch]:
    """Noise a patch at every validation sigma, always in the same way; a pair stays as it is.

    Returns:
        noisy (H, W, inputs) and clean (H, W, channels) at each of `VALIDATION_SIGMAS`, or once for a pair.
    """
    if sample.noisy is not None:
        middle = sample.clean.shape[-1] // 2
        clean, noisy = (_pair_planes(as_float(pixels), channels, middle) for pixels in (sample.clean, sample.noisy))
        levels = [(noisy, sample.sigma)]
    else:
        clean = _planes(as_float(sample.clean), channels)
        plain = clean[..., :1] if sample.clean.shape[-1] == 1 else clean  # grey has one noise
        rngs = [np.random.default_rng([sample.patch, int(sigma)]) for sigma in VALIDATION_SIGMAS]
        levels = [
            (_planes(add_awgn(plain, sigma=sigma, rng=rng), channels), sigma)
            for sigma, rng in zip(VALIDATION_SIGMAS, rngs, strict=True)
        ]
    return [(with_sigma_plane(noisy, sigma) if inputs > channels else noisy, clean) for noisy, sigma in levels]


def prefetched(items: Callable[[], Iterator[Item]], *, depth: int = QUEUED) -> Iterator[Item]:
    """Run an iterator in a thread of its own, up to `depth` items ahead; its errors come out here."""
    line: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                line.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items():
                put(("item", item))
                if stop.is_set():
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    thread = threading.Thread(target=produce, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            kind, content = line.get()
            if kind == "error":
                raise content
            if kind == "end":
                return
            yield content
    finally:
        stop.set()
        thread.join()


def mean_psnr(clean: FloatPixels, denoised: FloatPixels) -> float:
    """Mean over pictures of the PSNR in dB at data range 1, output clipped to [0, 1]: of (N, H, W, C)."""
    mse = np.mean(np.square(np.clip(denoised, 0, 1) - clean, dtype=np.float64), axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(mse, 1e-10))))


def chunked(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a sequence into parts of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]

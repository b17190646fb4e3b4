"""Denoiser: a bundle, tiles, batches of one shape. Arrays in, arrays out; usable without Ray."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from raydenoise.core import tiling
from raydenoise.core.metrics import as_float
from raydenoise.core.noise import estimate_sigma
from raydenoise.model.bundle import Bundle, load
from raydenoise.model.card import DEFAULT, Card, check_sigma
from raydenoise.model.precision import Precision, rebuilt, resolve

BATCH_TILES = 4  # of 512x512: 0.5 GB of activations; larger batches are no faster on a CPU


@dataclass(frozen=True)
class Denoised:
    """A result with what was done.

    Attributes:
        image: the shape and type of the input.
        sigma: the level given to the network, 8-bit grey levels; None for a network that takes none.
        tiles: how many windows it took; a self-ensemble runs the network several times on each.
    """

    image: NDArray[np.generic]
    sigma: float | None
    tiles: int


class Denoiser:
    """Denoises one picture at a time.

    >>> denoiser = Denoiser.load()
    >>> clean = denoiser(image)  # (H, W, C) uint8, uint16 or float32 in [0, 1]
    """

    def __init__(
        self, bundle: Bundle, *, tile: int | None = None, precision: str = "auto", batch_tiles: int = BATCH_TILES
    ) -> None:
        if batch_tiles < 1:
            raise ValueError(f"batch_tiles is {batch_tiles}; allowed: 1 or more")
        self.card: Card = bundle.card
        self.grid = self.card.grid(tile)
        self.precision: Precision = resolve(precision)
        self.batch_tiles = batch_tiles
        self._predict = _compiled(rebuilt(bundle.model, precision=self.precision))

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = DEFAULT,
        *,
        tile: int | None = None,
        precision: str = "auto",
        batch_tiles: int = BATCH_TILES,
    ) -> "Denoiser":
        """Load a model by shipped name, bundle path, or bare `.keras` / `.h5` file.

        Args:
            name_or_path: see `raydenoise.model.bundle`.
            tile: the window's side in pixels, halo included: a multiple of the model's alignment, at least
                2 x halo + alignment. None: 512, or more where the halo asks for it.
            precision: "float32", "bfloat16", "float16", or "auto" (see `model.precision`).
            batch_tiles: windows per batch, at least 1.

        Raises:
            ValueError: an argument is not allowed, or the model cannot be loaded.
        """
        return cls(load(name_or_path), tile=tile, precision=precision, batch_tiles=batch_tiles)

    def __call__(
        self, image: NDArray[Any], sigma: float | Literal["auto"] = "auto", strength: float = 1.0, *, tta: int = 1
    ) -> NDArray[Any]:
        """Denoise one picture.

        Args:
            image: (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; uint8, uint16, or float32 in
                [0, 1] (values outside are taken as they are). Alpha passes untouched.
            sigma: noise level in 8-bit grey levels, or "auto" to estimate it.
            strength: s gives noisy + s x (denoised - noisy), 0 to 1.
            tta: self-ensemble: the mean over so many flips and quarter turns of the picture, turned back; 1, 2
                (left-right), 4 (both flips) or 8 (with a quarter turn). It takes that many times as long.

        Returns:
            The shape and type of `image`, colour clipped to [0, 1].

        Raises:
            ValueError: a wrong shape or type, a sigma beyond the model's range, a strength outside [0, 1], another tta.
        """
        return self.denoise(image, sigma=sigma, strength=strength, tta=tta).image

    def denoise(
        self, image: NDArray[Any], *, sigma: float | Literal["auto"] = "auto", strength: float = 1.0, tta: int = 1
    ) -> Denoised:
        """Denoise one picture and say what was done; arguments and errors as for a call."""
        check_image(image)
        check_strength(strength)
        tiling.check_ensemble(tta)
        colours = image.shape[-1] - 1 + image.shape[-1] % 2  # 1 and 2 -> 1, 3 and 4 -> 3
        noisy = image[..., :colours]
        level = self.level(noisy, sigma)
        denoised = np.empty_like(image)
        denoised[..., colours:] = image[..., colours:]
        tiles = tiling.plan(*image.shape[:2], grid=self.grid)
        for group in tiling.batches(tiles, size=self.batch_tiles):
            window = np.stack([as_float(tiling.cut(noisy, tile)) for tile in group])
            result = window + np.float32(strength) * (self._ensemble(window, level, tta) - window)
            for tile, values in zip(group, result, strict=True):
                tiling.stitch(denoised[..., :colours], tile, _like(values, image.dtype))
        return Denoised(image=denoised, sigma=level, tiles=len(tiles))

    def level(self, noisy: NDArray[Any], sigma: float | Literal["auto"]) -> float | None:
        """The level that the network is told: a given one is checked, an estimated one limited to the card's range."""
        if self.card.sigma_range is None:
            return None
        if sigma == "auto":
            return self.card.limited(estimate_sigma(noisy))
        check_sigma(sigma, card=self.card)
        return float(sigma)

    def _ensemble(self, window: NDArray[np.float32], level: float | None, count: int) -> NDArray[np.float32]:
        """The mean over views of the window, turned back: Lim et al., "Enhanced Deep Residual Networks", 2017, 3.4.

        It is a network as well, of the same alignment and radius, since those are the same in all directions: so the
        tiling law holds for it, and tiled equals whole.
        """
        if count == 1:
            return self._network(window, level)
        total = np.zeros_like(window)
        for view in tiling.VIEWS[:count]:
            total += view.undone(self._network(np.ascontiguousarray(view.of(window)), level))
        return total / np.float32(count)

    def _network(self, window: NDArray[np.float32], level: float | None) -> NDArray[np.float32]:
        """Run (N, h, w, c) float32 through the network, whatever planes it takes."""
        count, height, width, colours = window.shape
        planes = window
        if self.card.channels > colours:
            planes = np.repeat(window, self.card.channels, axis=-1)
        elif self.card.channels < colours:  # each plane by itself
            planes = np.moveaxis(window, -1, 1).reshape(count * colours, height, width, 1)
        if level is not None:
            plane = np.full((*planes.shape[:3], 1), level / 255, np.float32)
            planes = np.concatenate([planes, plane], axis=-1)
        result = np.asarray(keras.ops.convert_to_numpy(self._predict(planes)), np.float32)
        if self.card.channels > colours:
            return np.asarray(result.mean(axis=-1, keepdims=True), np.float32)
        if self.card.channels < colours:
            return np.moveaxis(result.reshape(count, colours, height, width), 1, -1)
        return result


def _compiled(model: keras.Model) -> Callable[[NDArray[np.float32]], Any]:
    """Compile the forward pass once for every size where the backend can (TensorFlow), else per size."""
    if keras.backend.backend() != "tensorflow":
        return lambda planes: model.predict_on_batch(planes)
    archive = keras.export.ExportArchive()  # Keras' public way to a function with a signature
    archive.track(model)
    signature = keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="float32")
    compiled: Callable[[NDArray[np.float32]], Any] = archive.add_endpoint(
        "denoise", lambda planes: model(planes, training=False), [signature]
    )
    return compiled


def _like(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """Clip to [0, 1] and turn into the input's type, rounding to the nearest level."""
    clipped = np.clip(values, 0, 1)
    if dtype == np.float32:
        return clipped
    return np.rint(clipped * np.iinfo(dtype).max).astype(dtype)


def check_image(image: NDArray[Any]) -> None:
    """Raise ValueError where an array is no picture that a Denoiser takes."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[-1] not in (1, 2, 3, 4) or 0 in image.shape:
        came = f"an array of shape {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise ValueError(f"the image is {came}; allowed: (H, W, C) with 1 to 4 channels, at least one pixel")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"the image is {image.dtype}; allowed: uint8, uint16, or float32 in [0, 1]")
    if image.dtype == np.float32 and not np.isfinite(image).all():
        raise ValueError("the image holds NaN or infinite values; allowed: finite ones")


def check_strength(strength: float) -> None:
    """Raise ValueError where a strength is outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; allowed: 0 to 1")

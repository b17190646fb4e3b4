"""What `evaluate` does with one picture; without Ray.

Every method gets the very same noisy picture: its noise is a function of (seed, key, sigma). One clean picture, one
noisy one and one result are in memory at a time, whatever the number of methods.
"""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from raydenoise.config import EvaluateConfig
from raydenoise.core.classical import CLASSICAL
from raydenoise.core.image import decode
from raydenoise.core.metrics import as_float, quality
from raydenoise.core.noise import add_awgn, estimate_sigma
from raydenoise.data.layout import generator
from raydenoise.data.manifest import utc_now
from raydenoise.data.shards import read_patch
from raydenoise.data.storage import read_picture
from raydenoise.pipelines.cutter import UnusableError
from raydenoise.pipelines.stages import described

if TYPE_CHECKING:
    from raydenoise.model.denoiser import Denoiser

FloatImage = NDArray[np.float32]
NOISY = "noisy"  # the method that does nothing: the baseline
CROP = 256  # pixels, side of what the sheet shows


@dataclass(frozen=True)
class Method:
    """A way to denoise.

    Attributes:
        name: in the tables.
        sha256: of a network's file.
        precision: that a network computes in.
        takes_sigma: it wants to be told the noise level.
        limit: brings an estimate into the range of levels that it was made for.
        run: (H, W, C) float32 and the level, None for a method that takes none -> the same shape.
    """

    name: str
    takes_sigma: bool
    run: Callable[[FloatImage, float | None], FloatImage]
    limit: Callable[[float], float] = float
    sha256: str | None = None
    precision: str | None = None


def classical(name: str, *, strength: float) -> Method:
    """Make a classical method."""

    def run(noisy: FloatImage, level: float | None) -> FloatImage:
        assert level is not None, "classical methods take a level"
        denoised = CLASSICAL[name](noisy, level)
        return (noisy + np.float32(strength) * (denoised - noisy)).astype(np.float32, copy=False)

    return Method(name, takes_sigma=True, run=run)


def network(name: str, denoiser: "Denoiser", *, strength: float, tta: int) -> Method:
    """Make a method of a network; runs it once, since a first run takes longer."""

    def run(noisy: FloatImage, level: float | None) -> FloatImage:
        sigma = 0.0 if level is None else level  # ignored by a network that takes none
        return cast(FloatImage, denoiser.denoise(noisy, sigma=sigma, strength=strength, tta=tta).image)

    card = denoiser.card
    run(np.zeros((16, 16, card.channels), np.float32), card.limited(0.0))
    takes = card.sigma_range is not None
    return Method(name, takes, run, card.limited, card.sha256, denoiser.precision)


@dataclass(frozen=True)
class Task:
    """What evaluators need to know; small.

    Attributes:
        config: of the command.
        sigmas: of the noise that is added; none for pairs.
        sources: of the level that a method is told, of "known" and "auto".
        shown: the level whose results the sheet shows; None for pairs.
    """

    config: EvaluateConfig
    sigmas: tuple[float, ...]
    sources: tuple[str, ...]
    shown: float | None


@dataclass(frozen=True)
class Pair:
    """A clean picture, and its noisy one where that is given: (H, W, 1 or 3) float32 in [0, 1]."""

    clean: FloatImage
    noisy: FloatImage | None


class Evaluator:
    """Runs all methods on a picture and measures what comes out."""

    def __init__(self, task: Task, methods: Sequence[Method], *, worker: str) -> None:
        self._task, self._methods, self._worker = task, methods, worker

    def __call__(self, source: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Evaluate one picture: a row of `schema.EVALUATION_SOURCES` becomes rows of `schema.EVALUATED`.

        A picture that cannot be used becomes one error row, without a method; a method that fails on it one of its own.
        """
        row = self._begun(source)
        try:
            pair = self._read(source, row)
        except Exception as error:  # one picture never takes the job along
            yield row | self.failed(source, described(error))
            return
        for sigma in self._task.sigmas or (None,):
            noisy = noised(pair, seed=self._task.config.seed, key=source["key"], sigma=sigma)
            shown = source["shown"] and sigma == self._task.shown
            yield from self._level(pair.clean, noisy, {**row, "sigma": sigma}, shown=shown)

    def failed(self, source: dict[str, Any], error: dict[str, str]) -> dict[str, Any]:
        """The row of a picture that was given up, without a method; `error` are the columns that say why."""
        return {**self._begun(source), "status": "error", **error, "finished_at": utc_now()}

    def _begun(self, source: dict[str, Any]) -> dict[str, Any]:
        return {**{name: source[name] for name in ("uri", "key", "noisy_uri")}, "worker": self._worker}

    def _level(
        self, clean: FloatImage, noisy: FloatImage, row: dict[str, Any], *, shown: bool
    ) -> Iterator[dict[str, Any]]:
        """One noisy picture: the baseline's row, then a row for each method and source of its level."""
        before = quality(clean, np.clip(noisy, 0, 1))
        row["psnr_noisy"] = before.psnr
        crops = {"crop": png(noisy), "clean_crop": png(clean)} if shown else {}
        yield {**row, **vars(before), **crops, "status": "ok", "method": NOISY, "finished_at": utc_now()}
        estimate = estimate_sigma(noisy) if "auto" in self._task.sources else None
        for method in self._methods:
            for source in self._task.sources if method.takes_sigma else (None,):
                level = row["sigma"] if source == "known" else None
                if source == "auto" and estimate is not None:
                    level = method.limit(estimate)
                facts = {"method": method.name, "model_sha256": method.sha256, "precision": method.precision}
                told = {"sigma_source": source, "sigma_given": level}
                show = shown and source in (None, self._task.sources[0])
                yield {**row, **facts, **told, **_measured(method, clean, noisy, level, show), "finished_at": utc_now()}

    def _read(self, source: dict[str, Any], row: dict[str, Any]) -> Pair:
        if source["shard"] is not None:
            patch = read_patch(source["shard"], group=source["group"], row=source["row"])
            arrays = [patch.clean, *([] if patch.noisy is None else [patch.noisy])]
        else:
            arrays = self._decoded(source)
        clean = arrays[0]
        row.update(zip(("height", "width", "channels"), clean.shape, strict=True))
        row["bit_depth"] = 8 * clean.itemsize
        return Pair(as_float(clean), as_float(arrays[1]) if len(arrays) > 1 else None)

    def _decoded(self, source: dict[str, Any]) -> list[NDArray[Any]]:
        """The clean picture's colours, then the noisy one's where pairs are given."""
        limit, folder = self._task.config.max_pixels, self._task.config.noisy
        if folder is not None and source["noisy_uri"] is None:
            raise UnusableError("unpaired", f"no picture of this path below {folder}")
        uris = [source[name] for name in ("uri", "noisy_uri") if source[name] is not None]
        arrays = [decode(read_picture(uri, max_pixels=limit), max_pixels=limit).pixels for uri in uris]
        arrays = [array[..., : array.shape[-1] - 1 + array.shape[-1] % 2] for array in arrays]  # without alpha
        if len({array.shape for array in arrays}) > 1:
            clean, noisy = (f"{array.shape[1]}x{array.shape[0]}x{array.shape[2]}" for array in arrays)
            raise UnusableError(
                "unlike_pair", f"the clean picture is {clean}, the noisy one {noisy}; allowed: the same"
            )
        return arrays


def noised(pair: Pair, *, seed: int, key: str, sigma: float | None) -> FloatImage:
    """The noisy picture of a pair, or the clean one with noise: neither clipped nor rounded."""
    if sigma is None:
        assert pair.noisy is not None, "without a level there are pairs"
        return pair.noisy
    return add_awgn(pair.clean, sigma=sigma, rng=generator(seed, "noise", key, repr(float(sigma))))


def _measured(method: Method, clean: FloatImage, noisy: FloatImage, level: float | None, show: bool) -> dict[str, Any]:
    """Run one method: the columns that say how long it took and how good it is, or what went wrong."""
    started = time.perf_counter()
    try:
        result = method.run(noisy, level)
        seconds = time.perf_counter() - started
        measured = vars(quality(clean, np.clip(result, 0, 1)))
    except Exception as error:  # one method never takes the others along
        return {"status": "error", **described(error)}
    return {"status": "ok", "seconds": seconds, **measured, **({"crop": png(result)} if show else {})}


def png(image: FloatImage) -> bytes:
    """The middle of a picture as a PNG file of 8 bits, at most `CROP` pixels a side."""
    top, left = (max(0, (extent - CROP) // 2) for extent in image.shape[:2])
    part = np.rint(np.clip(image[top : top + CROP, left : left + CROP], 0, 1) * 255).astype(np.uint8)
    sink = io.BytesIO()
    PIL.Image.fromarray(part[..., 0] if part.shape[-1] == 1 else part).save(sink, "PNG")
    return sink.getvalue()

"""What a model does to noise and pictures that it was not trained for, beside what it was.

    python tests/benchmarks/weak.py [--model default]

Photographs that ship with scikit-image, and its scanned text and page, as 8-bit files. One JSON line a case: the mean
PSNR in dB of the noisy pictures, denoised with `--sigma auto`, and with the level of the white noise that went in.
"""

import argparse
import io
import json
from collections.abc import Callable

import numpy as np
import PIL.Image
import skimage.data
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from raydenoise import Denoiser
from raydenoise.core.metrics import quality
from raydenoise.core.noise import add_awgn, add_poisson_gaussian, quantize

SIGMA = 25.0  # 8-bit grey levels
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
WRITING = ("text", "page")
BLUR = 0.7  # pixels: neighbours share about a third of their noise, as after demosaicing
PEAK = 60.0  # photons at white: noise of about sigma 23 in the middle of the scale
JPEG_QUALITY = 85

Picture = NDArray[np.float32]
Noise = Callable[[Picture, np.random.Generator], Picture]


def white(clean: Picture, rng: np.random.Generator) -> Picture:
    """What the models are trained for."""
    return add_awgn(clean, sigma=SIGMA, rng=rng)


def jpeg(clean: Picture, rng: np.random.Generator) -> Picture:
    """White noise that went through a JPEG file."""
    pixels = (quantize(white(clean, rng)) * 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(PIL.Image.open(file), np.float32).reshape(clean.shape) / 255


def shared(clean: Picture, rng: np.random.Generator) -> Picture:
    """Noise of the same size that neighbours share."""
    noise = gaussian_filter(white(np.zeros_like(clean), rng), (BLUR, BLUR, 0))
    return clean + noise * np.float32(SIGMA / 255 / noise.std())


def photons(clean: Picture, rng: np.random.Generator) -> Picture:
    """Noise that grows with the light."""
    return add_poisson_gaussian(clean, peak=PEAK, sigma=5, rng=rng)


CASES: dict[str, tuple[tuple[str, ...], Noise]] = {
    "photographs, white noise": (PHOTOGRAPHS, white),
    "photographs, white noise through JPEG": (PHOTOGRAPHS, jpeg),
    "photographs, noise that neighbours share": (PHOTOGRAPHS, shared),
    "photographs, photon noise": (PHOTOGRAPHS, photons),
    "writing, white noise": (WRITING, white),
}


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    denoiser = Denoiser.load(parser.parse_args().model)
    for name, (pictures, noise) in CASES.items():
        rows = [figures(denoiser, load(picture), noise) for picture in pictures]
        noisy, auto, given, level = np.mean(rows, axis=0).round(2).tolist()
        line = {"case": name, "psnr_db_noisy": noisy, "psnr_db_auto": auto, f"psnr_db_at_{SIGMA:g}": given}
        print(json.dumps({**line, "estimated_sigma": level, "images": len(rows)}), flush=True)


def load(name: str) -> Picture:
    """Read a picture of scikit-image's as (H, W, C) in [0, 1]."""
    pixels = np.atleast_3d(getattr(skimage.data, name)())
    return np.asarray(pixels, np.float32) / 255


def figures(denoiser: Denoiser, clean: Picture, noise: Noise) -> tuple[float, float, float, float]:
    """PSNR in dB: noisy, denoised at the estimated and at the given level; and the estimated level."""
    noisy = quantize(noise(clean, np.random.default_rng(0)))
    auto = denoiser.denoise(noisy)
    values = [quality(clean, image).psnr for image in (noisy, auto.image, denoiser(noisy, sigma=SIGMA))]
    assert None not in values
    return (*values, auto.sigma)


if __name__ == "__main__":
    main()

"""What `--sigma auto` costs against the true level, and what it leaves of a clean picture, on public test sets.

    python tests/benchmarks/sigma.py --cbsd68 $CBSD68 --mcmaster $MCMASTER [--model default] [--limit N]

Noise and PSNR as in `psnr.py`; "8-bit" is clipped and rounded as files hold it. One JSON line a set and level: the
means over the pictures of the PSNR with the level given and with the estimated one, the mean and the largest loss, and
the share of pictures that lose at most 0.5 dB. At sigma 0 both are against the picture itself.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from psnr import load

from raydenoise import Denoiser
from raydenoise.core.metrics import quality
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.core.patches import to_grey

SIGMAS = (0, 5, 15, 25, 50)
TOLERATED = 0.5  # dB

Picture = NDArray[np.float32]


def main() -> None:
    """Print one JSON line a set and level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cbsd68", required=True)
    parser.add_argument("--mcmaster", required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--limit", type=int, help="only the first N pictures of a set")
    arguments = parser.parse_args()
    denoiser = Denoiser.load(arguments.model, precision=arguments.precision)
    cbsd68, mcmaster = (load(folder)[: arguments.limit] for folder in (arguments.cbsd68, arguments.mcmaster))
    sets = {"CBSD68": cbsd68, "McMaster": mcmaster, "CBSD68 grey": [to_grey(picture)[..., :1] for picture in cbsd68]}
    for name, pictures in sets.items():
        for files in (False, True):
            for sigma in SIGMAS:
                told = {"set": f"{name}, 8-bit" if files else name, "sigma": sigma, "images": len(pictures)}
                print(json.dumps({**told, **figures(denoiser, pictures, sigma=sigma, files=files)}), flush=True)


def figures(denoiser: Denoiser, pictures: list[Picture], *, sigma: float, files: bool) -> dict[str, float]:
    """Compare the two levels on one set."""
    known, auto, level = (np.array(column) for column in zip(*_pairs(denoiser, pictures, sigma, files), strict=True))
    loss = known - auto
    return {
        "psnr_db_known": round(float(known.mean()), 3),
        "psnr_db_auto": round(float(auto.mean()), 3),
        "mean_loss_db": round(float(loss.mean()), 3),
        "largest_loss_db": round(float(loss.max()), 3),
        f"share_within_{TOLERATED}_db": round(float((np.abs(loss) <= TOLERATED).mean()), 3),
        "mean_level": round(float(level.mean()), 2),
    }


def _pairs(
    denoiser: Denoiser, pictures: list[Picture], sigma: float, files: bool
) -> Iterator[tuple[float, float, float]]:
    """PSNR in dB with the level given and estimated, and the estimated one, of each picture."""
    for index, clean in enumerate(pictures):
        noisy = add_awgn(clean, sigma=sigma, rng=np.random.default_rng([int(sigma), index]))
        seen = quantize(noisy) if files else noisy
        found = denoiser.level(seen, "auto")
        assert found is not None
        values = []
        for level in (sigma, found):
            psnr = quality(clean, denoiser(seen, sigma=level)).psnr
            assert psnr is not None
            values.append(psnr)
        yield values[0], values[1], found


if __name__ == "__main__":
    main()

"""PSNR of a bundle on public test sets by the protocol of the published tables.

    python tests/benchmarks/psnr.py --cbsd68 $CBSD68 --mcmaster $MCMASTER [--model default] [--card]

clean 8-bit RGB / 255, plus N(0, (sigma/255)^2) from a seeded generator, neither clipped nor rounded ("float"), or
clipped and rounded as 8-bit files hold it ("8-bit"); the output clipped to [0, 1]; PSNR over all pixels and channels at
data range 1; the mean of the per-image values. Grey: the luma of CBSD68, one plane. Sigma is given to the network.
"""

import argparse
import json

import numpy as np
from numpy.typing import NDArray

from raydenoise import Denoiser
from raydenoise.core.image import decode
from raydenoise.core.metrics import as_float, quality
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.core.patches import to_grey
from raydenoise.data.inputs import list_sources
from raydenoise.data.storage import read
from raydenoise.model.card import file_sha256, locate, read_card, write_card

SIGMAS = (15, 25, 50)
COMMAND = "python tests/benchmarks/psnr.py --cbsd68 $CBSD68 --mcmaster $MCMASTER --card"


def main() -> None:
    """Print one JSON line a row; with --card, write them into the model's card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cbsd68", required=True)
    parser.add_argument("--mcmaster", required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--limit", type=int, help="only the first N pictures of a set: for a look, not for the card")
    parser.add_argument("--card", action="store_true", help="write the scores into the bundle's card.json")
    arguments = parser.parse_args()
    denoiser = Denoiser.load(arguments.model, precision=arguments.precision)
    cbsd68, mcmaster = (load(folder)[: arguments.limit] for folder in (arguments.cbsd68, arguments.mcmaster))
    grey = [to_grey(picture)[..., :1] for picture in cbsd68]
    rows = {}
    for name, pictures in {"CBSD68": cbsd68, "McMaster": mcmaster, "CBSD68 grey": grey}.items():
        for files in (False, True):
            label = f"{name}, 8-bit" if files else name
            rows[label] = {
                str(sigma): round(score(denoiser, pictures, sigma=sigma, files=files), 2) for sigma in SIGMAS
            }
            print(json.dumps({"set": label, "psnr_db_by_sigma": rows[label], "images": len(pictures)}), flush=True)
    if arguments.card and arguments.limit is None:
        folder = locate(arguments.model)
        card = read_card(folder)
        assert card.sha256 == file_sha256(folder / "model.keras")
        scores = {"command": COMMAND, "unit": "PSNR in dB by sigma", "precision": arguments.precision, "rows": rows}
        write_card(type(card)(**{**vars(card), "scores": scores}), folder)


def load(folder: str) -> list[NDArray[np.float32]]:
    """Read a set as (H, W, 3) in [0, 1]."""
    return [as_float(decode(read(source.uri)).pixels) for source in list_sources(folder)]


def score(denoiser: Denoiser, pictures: list[NDArray[np.float32]], *, sigma: float, files: bool) -> float:
    """Mean PSNR in dB over a set, one seeded generator per picture."""
    values = []
    for index, clean in enumerate(pictures):
        noisy = add_awgn(clean, sigma=sigma, rng=np.random.default_rng([int(sigma), index]))
        denoised = denoiser(quantize(noisy) if files else noisy, sigma=sigma)
        psnr = quality(clean, quantize(denoised) if files else denoised).psnr
        assert psnr is not None
        values.append(psnr)
    return float(np.mean(values))


if __name__ == "__main__":
    main()

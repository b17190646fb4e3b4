"""Race settings of the training recipe: short trainings of one length, several seeds each, on held-out pictures.

    python tests/benchmarks/race.py --pictures $BSD432 --shrunk $IMAGENET1000 --vary ema=0,0.99,0.999 [--seeds 0,1,2]

The base is the recipe of the small network as docs/models.md trains it, without its average; `--set` changes it,
`--vary` names one field and the values that race. A training begins with random weights of its seed. Every 20th picture
by name is held out; from the middle 192x192 pixels of each, the mean PSNR in dB at sigma 15, 25 and 50, given to the
network: "white" noise, neither clipped nor rounded; "8-bit", clipped and rounded as files hold it, and the result too;
"grey" pictures, with one noise for the three planes. One JSON line a value: the mean over the seeds, and the largest
less the smallest.
"""

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from raydenoise.core.metrics import as_float
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.core.patches import to_grey
from raydenoise.pipelines.single import centres, collect, fit
from raydenoise.training.batches import VALIDATION_SIGMAS, chunked, mean_psnr, with_sigma_plane
from raydenoise.training.loop import PREDICTED
from raydenoise.training.recipe import Recipe

BASE = Recipe(
    arguments={"filters": (32, 80), "depth": 1},
    steps=600,
    batch_size=8,
    patch=128,
    precision="bfloat16",
    learning_rate=0.002,
    ema=0.0,  # over a thousand steps it is mostly the random start
    warmup_steps=60,
    clip_norm=0.0,
    loss="psnr",
    sigma_power=1.3,
    grey_share=0.07,
    quantized_share=0.1,
    colour_share=0.3,
)
TIMES = 3  # how often BSDS500 counts, as for the small network
SETS = ("white", "8-bit", "grey")

Picture = NDArray[np.float32]


def main() -> None:
    """Train every value with every seed and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="append", default=[], metavar="DIR")
    parser.add_argument("--shrunk", action="append", default=[], metavar="DIR")
    parser.add_argument("--vary", type=assignment, required=True, metavar="FIELD=VALUE,VALUE...")
    parser.add_argument("--set", type=assignment, nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    arguments = parser.parse_args()
    base = replace(BASE, **{name: values[0] for name, values in arguments.set})
    train, validation = collect(arguments.pictures, arguments.shrunk, times=TIMES, patch=base.patch, seed=0)
    held_out = [as_float(sample.clean) for sample in centres(validation)]
    name, values = arguments.vary
    for value in values:
        found = [
            race(replace(base, **{name: value}, seed=seed), train, validation, held_out) for seed in arguments.seeds
        ]
        line: dict[str, Any] = {name: value, "steps": base.steps, "seeds": len(found)}
        for of in SETS:
            levels = [psnr[of] for psnr in found]
            line[of] = {"mean": round(float(np.mean(levels)), 3), "spread": round(max(levels) - min(levels), 3)}
        print(json.dumps(line), flush=True)


def assignment(text: str) -> tuple[str, list[Any]]:
    """Read FIELD=VALUE,VALUE of a recipe's number or word."""
    name, _, given = text.partition("=")
    kinds = {entry.name: type(entry.default) for entry in fields(Recipe)}
    if kinds.get(name) not in (int, float, str):
        raise argparse.ArgumentTypeError(f"{name!r}; allowed: a number or word of the recipe")
    return name, [kinds[name](value) for value in given.split(",")]


def race(recipe: Recipe, train: list[Any], validation: list[Any], held_out: list[Picture]) -> dict[str, float]:
    """Train once: mean PSNR in dB on each of `SETS`."""
    keras.utils.set_random_seed(recipe.seed)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # its progress
        network, _ = fit(recipe, train, validation, folder=Path(folder), validate_every=recipe.steps)
    found = {
        of: float(np.mean([measured(network.model, held_out, of=of, sigma=s) for s in VALIDATION_SIGMAS]))
        for of in SETS
    }
    keras.utils.clear_session()
    return found


def measured(model: keras.Model, pictures: list[Picture], *, of: str, sigma: float) -> float:
    """Mean PSNR in dB at one level; the noise of a picture is the same in every race."""
    values = []
    for part in chunked(list(enumerate(pictures)), PREDICTED):
        cleans, noisies = [], []
        for index, picture in part:
            clean = to_grey(picture) if of == "grey" else picture
            one = clean[..., :1] if of == "grey" else clean
            noisy = add_awgn(one, sigma=sigma, rng=np.random.default_rng([index, int(sigma)]))
            noisies.append(
                with_sigma_plane(quantize(noisy) if of == "8-bit" else np.broadcast_to(noisy, clean.shape), sigma)
            )
            cleans.append(clean)
        denoised = np.asarray(model.predict_on_batch(np.stack(noisies)))
        denoised = quantize(denoised) if of == "8-bit" else denoised
        values.append(mean_psnr(np.stack(cleans), denoised) * len(part))
    return sum(values) / len(pictures)


if __name__ == "__main__":
    main()

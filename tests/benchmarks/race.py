"""Race settings of the training recipe: short trainings of one length, several seeds each, on held-out pictures.

    python tests/benchmarks/race.py --pictures $BSD432 --shrunk $IMAGENET1000 --vary ema=0,0.99,0.999 [--seeds 0,1,2]
    python tests/benchmarks/race.py ... --init small --vary augment=flip+turn,flip --set learning_rate=0.001

The base is the recipe of the first small network in docs/experiments.md, without its average; `--set` changes it,
`--vary` names a field and the values that race (several fields: their values race together, the first with the first).
A training begins with random weights of its seed, or with those of `--init`. Every 20th picture by name is held out;
from the middle 192x192 pixels of each, the mean PSNR in dB at sigma 15, 25 and 50, given to the network: "white" noise,
neither clipped nor rounded; "pictures", the same of those of `--pictures` alone; "8-bit", clipped and rounded as files
hold it, and the result too; "grey" pictures, with one noise for the three planes; "vivid", in other colours; "soft",
a window of them enlarged. One JSON line a value: the mean over the seeds, the largest less the smallest, and the same
of what was gained over the first value with the same seed.
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

from raydenoise.config.train import model_argument
from raydenoise.core.metrics import as_float
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.core.patches import recolour, soften, to_grey
from raydenoise.model import bundle
from raydenoise.model.networks import Network
from raydenoise.pipelines.single import centres, collect, fit, read_pictures
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
SETS = ("white", "pictures", "8-bit", "grey", "vivid", "soft")

Picture = NDArray[np.float32]


def main() -> None:
    """Train every value with every seed and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="append", default=[], metavar="DIR")
    parser.add_argument("--shrunk", action="append", default=[], metavar="DIR")
    parser.add_argument("--more", metavar="DIR", help="further pictures to train on, of which none is held out")
    parser.add_argument(
        "--times", type=int, default=TIMES, metavar="N", help="how often --pictures and --more count (default: 3)"
    )
    parser.add_argument("--init", metavar="NAME|PATH", help="a bundle to begin with")
    parser.add_argument("--vary", type=assignment, nargs="+", required=True, metavar="FIELD=VALUE,VALUE...")
    parser.add_argument("--set", type=assignment, nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.init and {"architecture", "arguments"} & {name for name, _ in arguments.vary + arguments.set}:
        parser.error("--init brings its own network; allowed beside it: not architecture, not arguments")
    base = replace(BASE, **{name: values[0] for name, values in arguments.set})
    init = bundle.load(arguments.init).network if arguments.init else None
    largest = max([base.patch, *dict(arguments.vary).get("patch", [])])  # all race on the same pictures
    train, own = collect(arguments.pictures, [], times=arguments.times, patch=largest, seed=0)
    others, shrunk = collect([], arguments.shrunk, times=1, patch=largest, seed=0)
    if arguments.more:
        more = [picture for _, picture in read_pictures(arguments.more)]
        train += arguments.times * [picture for picture in more if min(picture.shape[:2]) >= largest]
    held_out = [[as_float(sample.clean) for sample in centres(pictures)] for pictures in (own, shrunk)]
    if init:
        before = {of: round(psnr, 3) for of, psnr in scores(init.model, held_out).items()}
        print(json.dumps({"init": arguments.init, **before}), flush=True)
    names = [name for name, _ in arguments.vary]
    first: list[dict[str, float]] = []
    for values in zip(*(values for _, values in arguments.vary), strict=True):
        changes = dict(zip(names, values, strict=True))
        found = [
            race(replace(base, **changes, seed=seed), train + others, own + shrunk, held_out, init=init)
            for seed in arguments.seeds
        ]
        first = first or found
        line: dict[str, Any] = {"steps": base.steps, **changes, "seeds": len(found)}
        for of in SETS:
            gained = [one[of] - other[of] for one, other in zip(found, first, strict=True)]
            line[of] = {**summary([one[of] for one in found]), "gained": summary(gained)}
        print(json.dumps(line), flush=True)


def summary(values: list[float]) -> dict[str, float]:
    """Mean, and the largest less the smallest."""
    return {"mean": round(float(np.mean(values)), 3), "spread": round(max(values) - min(values), 3)}


def assignment(text: str) -> tuple[str, list[Any]]:
    """Read FIELD=VALUE,VALUE of a recipe's number, word, tuple as WORD+WORD, or arguments as NAME=N+N/NAME=N."""
    name, _, given = text.partition("=")
    if name == "arguments":
        words = [value.replace("+", ",").split("/") for value in given.split(",")]
        return name, [dict(model_argument(word) for word in value) for value in words]
    default = {entry.name: entry.default for entry in fields(Recipe)}.get(name)
    if isinstance(default, tuple):
        kind = type(default[0])
        return name, [tuple(kind(part) for part in value.split("+") if part) for value in given.split(",")]
    if name == "seed" or not isinstance(default, int | float | str):
        allowed = "a number, word, tuple or arguments of the recipe; its seed by --seeds"
        raise argparse.ArgumentTypeError(f"{name!r}; allowed: {allowed}")
    return name, [type(default)(value) for value in given.split(",")]


def race(
    recipe: Recipe, train: list[Any], validation: list[Any], held_out: list[list[Picture]], *, init: Network | None
) -> dict[str, float]:
    """Train once and measure; `held_out` are the pictures of `--pictures` and the others."""
    keras.utils.set_random_seed(recipe.seed)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # its progress
        network, _ = fit(recipe, train, validation, folder=Path(folder), validate_every=recipe.steps, init=init)
    found = scores(network.model, held_out)
    keras.utils.clear_session()
    return found


def scores(model: keras.Model, held_out: list[list[Picture]]) -> dict[str, float]:
    """Mean PSNR in dB on each of `SETS`, over the levels."""
    found = {}
    for of in SETS:
        pictures = held_out[0] if of == "pictures" else held_out[0] + held_out[1]
        found[of] = float(np.mean([measured(model, pictures, of=of, sigma=s) for s in VALIDATION_SIGMAS]))
    return found


def measured(model: keras.Model, pictures: list[Picture], *, of: str, sigma: float) -> float:
    """Mean PSNR in dB at one level; the noise of a picture is the same in every race."""
    values = []
    for part in chunked(list(enumerate(pictures)), PREDICTED):
        cleans, noisies = [], []
        for index, picture in part:
            clean = picture
            if of == "grey":
                clean = to_grey(picture)
            elif of == "vivid":
                clean = recolour(picture, rng=np.random.default_rng(index))
            elif of == "soft":
                clean = as_float(soften(np.rint(255 * picture).astype(np.uint8), rng=np.random.default_rng(index)))
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

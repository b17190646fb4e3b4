"""Train a bundle from folders of clean pictures in one process: how the shipped models are made.

    python -m raydenoise.pipelines.single --pictures DIR --shrunk DIR --output RUN

Runs on any Keras backend (KERAS_BACKEND=tensorflow, jax or torch) and imports neither Ray nor, on the others,
TensorFlow. Every 20th file by name is held out for validation. RUN holds the state to resume from, metrics and, at the
end, RUN/bundle.
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydenoise.config.train import model_argument
from raydenoise.core.image import decode
from raydenoise.core.patches import generator, random_crop, shrink
from raydenoise.data.inputs import list_sources
from raydenoise.data.storage import read
from raydenoise.model import bundle
from raydenoise.model.networks import Network, build
from raydenoise.model.precision import rebuilt
from raydenoise.pipelines.runlog import RunLog
from raydenoise.training import loop, state
from raydenoise.training.batches import (
    Batch,
    Sample,
    prefetched,
    training_batch,
    validation_pairs,
)
from raydenoise.training.dormant import RENEWED, SEEN, firing, renew
from raydenoise.training.recipe import Recipe
from raydenoise.training.step import LocalEngine

Picture = NDArray[np.uint8]

HELD_OUT = 20  # every 20th picture validates
SHRINK_RANGE = (0.5, 0.75)  # of --shrunk: removes most of the blocks of an ordinary JPEG
VALIDATION_SIDE = 192  # pixels: more than three times the default network's receptive radius


def main(argv: Sequence[str] | None = None) -> int:
    """Read the pictures, train, write the bundle."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments = parser.parse_args(given)
    if arguments.noise == "paired":
        parser.error("noise is paired; allowed: awgn, poisson-gaussian; raydenoise train learns from pairs")
    names = [entry.name for entry in fields(Recipe) if entry.name != "arguments"]
    chosen = {name: _tuple(getattr(arguments, name)) for name in names}
    recipe = Recipe(**chosen, arguments=dict(arguments.model_args))

    train, validation = collect(
        arguments.pictures, arguments.shrunk, times=arguments.times, patch=recipe.patch, seed=recipe.seed
    )
    print(f"{len(train)} pictures to train on (--pictures counted {arguments.times} times), {len(validation)} held out")
    started = bundle.load(arguments.init) if arguments.init else None
    if started:
        recipe = replace(recipe, architecture=started.card.architecture, arguments=started.card.arguments)
    network, facts = fit(
        recipe,
        train,
        validation,
        folder=arguments.output,
        validate_every=arguments.validate_every,
        init=started.network if started else None,
    )
    bundle.save(
        network,
        arguments.output / "bundle",
        name=arguments.name,
        architecture=recipe.architecture,
        arguments=recipe.arguments,
        sigma_range=_range(recipe, started),
        training={
            "command": command(given, folders=[*arguments.pictures, *arguments.shrunk]),
            "recipe": asdict(recipe),
            "init": arguments.init,
            "pictures": len(train),
            "duration_s": round(facts.seconds),
            "hardware": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        },
        scores={"validation": {"step": facts.step, **facts.psnr}},
    )
    print(f"wrote {arguments.output / 'bundle'}")
    return 0


def collect(
    pictures: Sequence[str], shrunk: Sequence[str], *, times: int, patch: int, seed: int
) -> tuple[list[Picture], list[Picture]]:
    """Read folders of pictures: those to train on, and those held out, every 20th by name.

    Args:
        pictures: folders taken as they are.
        shrunk: folders of compressed pictures, each shrunk by a random factor first.
        times: how often the former count in training.
        patch: pixels; a smaller picture is not trained on.
        seed: of the factors.
    """

    def smaller(picture: Picture, index: int) -> Picture:
        factor = np.random.default_rng([seed, index]).uniform(*SHRINK_RANGE)
        return shrink(picture, factor=float(factor))

    whole = [list(read_pictures(folder)) for folder in pictures]
    less = [list(read_pictures(folder, smaller)) for folder in shrunk]
    train: list[Picture] = []
    for folder in times * whole + less:
        train += [picture for index, picture in folder if index % HELD_OUT and min(picture.shape[:2]) >= patch]
    return train, [picture for folder in whole + less for index, picture in folder if index % HELD_OUT == 0]


def fit(
    recipe: Recipe,
    train: Sequence[Picture],
    validation: Sequence[Picture],
    *,
    folder: Path,
    validate_every: int,
    init: Network | None = None,
) -> tuple[Network, state.Facts]:
    """Train a network; returns it with the moving average of its weights.

    Called again on the same folder, the run goes on from its last checkpoint, one every `validate_every` steps.

    Args:
        recipe: what to do.
        train: (H, W, 3) uint8 pictures, at least `recipe.patch` pixels high and wide.
        validation: pictures to measure on, never trained on.
        folder: local, made where it is missing.
        validate_every: steps.
        init: the network to begin with; by default a new one of the recipe's.

    Raises:
        ValueError: a training picture is smaller than the patch, or no validation picture is large enough.
        DivergedError: the loss became NaN or infinite; the last good state is kept.
    """
    small = sum(min(picture.shape[:2]) < recipe.patch for picture in train)
    if small or not train:
        raise ValueError(
            f"{small} of {len(train)} training pictures are smaller than the patch of {recipe.patch} pixels"
        )
    network = init or build(recipe.architecture, **recipe.arguments)
    network = replace(network, model=rebuilt(network.model, precision="float32", free_size=True, thawed=True))
    engine = LocalEngine(network, recipe)
    inputs, channels = engine.model.input_shape[-1], engine.model.output_shape[-1]
    held_out = [validation_pairs(sample, inputs=inputs, channels=channels) for sample in centres(validation)]
    seen = np.stack([levels[len(levels) // 2][0] for levels in held_out[:SEEN]])

    def wake(step: int) -> None:
        if step <= RENEWED * recipe.steps:
            renewed = renew(engine.model, engine.optimizer, firing(engine.model, seen), seed=step)
            print(f"step {step}: {renewed} units that never fired begin afresh")

    if (folder / state.FILE).exists():
        facts = state.load(folder, engine)
    else:
        facts = state.Facts()
        wake(facts.step)
    log = RunLog(folder, first=facts.step)

    def batches() -> Iterator[Batch]:
        for step in range(facts.step, recipe.steps):
            numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
            samples = [_sample(train, number, recipe) for number in numbers]
            yield training_batch(samples, recipe=recipe, inputs=inputs, channels=channels)

    def report(progress: loop.Progress) -> None:
        psnr = {}
        if progress.validated:
            found = np.array([loop.psnrs(engine, levels) for levels in held_out]).mean(axis=0)
            psnr = loop.psnr_metrics(found.tolist())
        log.add(progress, psnr)
        if progress.checkpoint:
            wake(progress.step)
            log.publish()
            state.save(folder, engine, state.Facts(progress.step, progress.seconds, psnr))
            shown = ", ".join(f"{name} {value:.2f}" for name, value in psnr.items())
            print(f"step {progress.step}: loss {progress.loss:.5f}, {shown}, {progress.patches_per_s:.0f} patches/s")

    cadence = loop.Cadence(loop.REPORT_EVERY, validate_every, validate_every)
    loop.train(
        engine,
        prefetched(batches),
        recipe=recipe,
        cadence=cadence,
        first=facts.step,
        seconds=facts.seconds,
        on_report=report,
    )
    log.close()
    return replace(network, model=engine.averaged), state.load(folder, engine)


def _range(recipe: Recipe, started: bundle.Bundle | None) -> tuple[float, float]:
    """The levels that the network has learned: those of the recipe, and those that it knew before."""
    known = [levels for levels in (recipe.levels, started and started.card.sigma_range) if levels]
    return min(low for low, _ in known), max(high for _, high in known)


def _sample(pictures: Sequence[Picture], number: int, recipe: Recipe) -> Sample:
    rng = generator(recipe.seed, epoch=0, patch=number, purpose=0)
    return Sample(random_crop(pictures, side=recipe.patch, rng=rng), epoch=0, patch=number)


def centres(pictures: Sequence[Picture], side: int = VALIDATION_SIDE) -> list[Sample]:
    """The middle of each picture that is large enough.

    Raises:
        ValueError: none is.
    """
    large = [picture for picture in pictures if min(picture.shape[:2]) >= side]
    if not large:
        raise ValueError(f"none of the {len(pictures)} validation pictures is {side} pixels high and wide")
    corners = [tuple((extent - side) // 2 for extent in picture.shape[:2]) for picture in large]
    return [
        Sample(picture[y : y + side, x : x + side], epoch=0, patch=index)
        for index, (picture, (y, x)) in enumerate(zip(large, corners, strict=True))
    ]


def command(given: Sequence[str], *, folders: Sequence[str]) -> str:
    """Write a command line down with $NAME for the folder .../name: where they lie is nobody's business."""
    words = ["$" + Path(word).name.upper() if word in folders else shlex.quote(word) for word in given]
    return " ".join(["python -m raydenoise.pipelines.single", *words])


def read_pictures(
    folder: str, prepare: Callable[[Picture, int], Picture] = lambda picture, _: picture
) -> Iterator[tuple[int, Picture]]:
    """Read a folder's pictures by name as (index, (H, W, 3) uint8); grey is repeated on three planes.

    Raises:
        ValueError: a file is no picture.
    """
    for index, source in enumerate(list_sources(folder)):
        pixels = decode(read(source.uri)).pixels
        if pixels.dtype != np.uint8:
            pixels = (pixels >> 8).astype(np.uint8)
        yield index, prepare(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1), index)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m raydenoise.pipelines.single", description=__doc__)
    parser.add_argument(
        "--pictures", action="append", default=[], metavar="DIR", help="clean pictures, taken as they are"
    )
    parser.add_argument("--shrunk", action="append", default=[], metavar="DIR", help="compressed ones, shrunk first")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="how often --pictures count against --shrunk")
    parser.add_argument("--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--init", metavar="NAME|PATH", help="bundle to begin with")
    parser.add_argument(
        "--model-args", type=model_argument, nargs="+", default=(), metavar="NAME=N[,N]", help="of its builder"
    )
    parser.add_argument("--name", default="resunet", help="of the bundle")
    parser.add_argument("--validate-every", type=int, default=500, metavar="STEPS", help="and checkpoint")
    for entry in fields(Recipe):
        flag, default = "--" + entry.name.replace("_", "-"), entry.default
        if isinstance(default, tuple):
            kind, count = type(default[0]), "*" if entry.name == "augment" else len(default)
            parser.add_argument(flag, type=kind, nargs=count, default=default)
        elif entry.name != "arguments":
            parser.add_argument(flag, type=type(default), default=default)
    return parser


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())

"""Train a bundle from folders of clean pictures in one process: how the shipped models are made.

    python -m raydenoise.pipelines.train --pictures DIR --shrunk DIR --output RUN

Every 20th file by name is held out for validation. RUN holds the state to resume from and, at the end, RUN/bundle.
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from raydenoise.core.image import decode
from raydenoise.core.patches import shrink
from raydenoise.data.storage import list_sources, read
from raydenoise.model import bundle
from raydenoise.training.batches import Picture
from raydenoise.training.loop import fit, spent_seconds
from raydenoise.training.recipe import Recipe

HELD_OUT = 20  # every 20th picture validates
SHRINK_RANGE = (0.5, 0.75)  # of --shrunk: removes most of the blocks of an ordinary JPEG


def main(argv: Sequence[str] | None = None) -> int:
    """Read the pictures, train, write the bundle."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    recipe = Recipe(
        **{entry.name: getattr(arguments, entry.name) for entry in fields(Recipe) if entry.name != "arguments"}
    )

    def smaller(picture: Picture, index: int) -> Picture:
        factor = np.random.default_rng([recipe.seed, index]).uniform(*SHRINK_RANGE)
        return shrink(picture, factor=float(factor))

    train: list[Picture] = []
    validation: list[Picture] = []
    whole = [list(read_pictures(folder, lambda picture, _: picture)) for folder in arguments.pictures]
    shrunk = [list(read_pictures(folder, smaller)) for folder in arguments.shrunk]
    for pictures in arguments.times * whole + shrunk:
        train += [picture for index, picture in pictures if index % HELD_OUT and min(picture.shape[:2]) >= recipe.patch]
    for pictures in whole + shrunk:
        validation += [picture for index, picture in pictures if index % HELD_OUT == 0]
    print(f"{len(train)} pictures to train on (--pictures counted {arguments.times} times), {len(validation)} held out")
    network = fit(recipe, train, validation, folder=arguments.output)
    bundle.save(
        network,
        arguments.output / "bundle",
        name=arguments.name,
        architecture=recipe.architecture,
        arguments=recipe.arguments,
        sigma_range=recipe.sigma_range,
        training={
            "command": command(given, folders=[*arguments.pictures, *arguments.shrunk]),
            "recipe": asdict(recipe),
            "pictures": len(train),
            "duration_s": round(spent_seconds(arguments.output)),
            "hardware": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        },
        scores={},
    )
    print(f"wrote {arguments.output / 'bundle'}")
    return 0


def command(given: Sequence[str], *, folders: Sequence[str]) -> str:
    """Write a command line down with $NAME for the folder .../name: where they lie is nobody's business."""
    words = ["$" + Path(word).name.upper() if word in folders else shlex.quote(word) for word in given]
    return " ".join(["python -m raydenoise.pipelines.train", *words])


def read_pictures(folder: str, prepare: Callable[[Picture, int], Picture]) -> Iterator[tuple[int, Picture]]:
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
    parser = argparse.ArgumentParser(prog="python -m raydenoise.pipelines.train", description=__doc__)
    parser.add_argument(
        "--pictures", action="append", default=[], metavar="DIR", help="clean pictures, taken as they are"
    )
    parser.add_argument("--shrunk", action="append", default=[], metavar="DIR", help="compressed ones, shrunk first")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="how often --pictures count against --shrunk")
    parser.add_argument("--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--name", default="resunet", help="of the bundle")
    for entry in fields(Recipe):
        if entry.name == "sigma_range":
            parser.add_argument("--sigma-range", type=float, nargs=2, default=entry.default, metavar=("LOW", "HIGH"))
        elif entry.name != "arguments":
            kind = type(entry.default)
            parser.add_argument("--" + entry.name.replace("_", "-"), type=kind, default=entry.default)
    return parser


if __name__ == "__main__":
    sys.exit(main())

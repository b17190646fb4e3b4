"""Options of `raydenoise evaluate`."""

import argparse
from dataclasses import dataclass
from math import inf
from typing import Literal

from raydenoise.config.denoise import PRECISIONS, actors, allocatable
from raydenoise.config.options import address_option, names, option, quiet_option, shown
from raydenoise.core.image import DEFAULT_MAX_PIXELS
from raydenoise.core.tiling import check_ensemble

SIGMAS = (15.0, 25.0, 50.0)  # of the published tables
SIGMA_SOURCES = ("known", "auto", "both")
SPLITS = ("train", "validation", "test")


def levels(value: object) -> tuple[float, ...]:
    """Read noise levels: text with commas, a number, or a list of numbers."""
    try:
        return tuple(float(part) for part in (value if isinstance(value, list) else str(value).split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{value!r} are no noise levels; allowed: such as 15,25,50") from None


@dataclass(frozen=True)
class EvaluateConfig:
    """What `raydenoise evaluate` does. A value that is not allowed raises ValueError when the config is made."""

    input: str = option("clean pictures: a folder, a glob or a file; or a folder of shards", metavar="INPUT", nargs="?")
    output: str = option("a new folder for results/, summary.md, sheet.png", metavar="EVAL")
    models: tuple[str, ...] = option(
        "models (shipped name, bundle, .keras or .h5 file) and median, wavelet, nlm, bm3d, with commas between",
        default=("default",),
        read=names,
        yaml=(str, list),
        metavar="A,B,...",
    )
    sigma: tuple[float, ...] | None = option(
        "levels of the noise that is added, 8-bit grey levels, with commas between (default: 15,25,50)",
        default=None,
        read=levels,
        yaml=(int, float, str, list),
        metavar="N,N,...",
    )
    noisy: str | None = option("instead: noisy pictures under the same paths", default=None, metavar="DIR")
    sigma_source: str | None = option(
        "what a method is told: the known level, its estimate, or each in turn (default: both; of pairs: auto)",
        default=None,
        choices=SIGMA_SOURCES,
    )
    split: str | None = option("of the shards (default: test)", default=None, choices=SPLITS)
    strength: float = option("0 keeps the noisy picture, 1 is fully denoised", default=1.0, read=float, metavar="S")
    tta: int = option("networks: mean over 1, 2, 4 or 8 flips and turns", default=1, read=int, metavar="N")
    sheet: int = option("pictures on sheet.png", default=4, read=int, metavar="N")
    seed: int = option("of the noise and of the intervals", default=0, read=int, metavar="N")
    tile: int | None = option("side of the window in pixels, halo included", default=None, read=int, metavar="PX")
    batch_tiles: int = option("windows per network call", default=4, read=int, metavar="N")
    actors: int | Literal["auto"] = option("processes", default="auto", read=actors, yaml=(int, str), metavar="auto|N")
    gpus_per_actor: float | None = option(
        "GPUs of each (0: none); by default 1 where there are GPUs", default=None, read=float, metavar="F"
    )
    cpus_per_actor: int | None = option("CPUs and threads of each", default=None, read=int, metavar="N")
    precision: str = option("number format of the networks", default="auto", choices=PRECISIONS)
    limit: int | None = option("stop after the first N pictures by name", default=None, read=int, metavar="N")
    max_pixels: int = option("larger pictures become error rows", default=DEFAULT_MAX_PIXELS, read=int, metavar="N")
    address: str | None = address_option()
    quiet: bool = quiet_option()
    json: bool = option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = option("let Ray and TensorFlow talk", default=False, read=bool)

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.models if self.models.count(name) > 1})
        if not all(self.models) or not self.models or twice:
            raise ValueError(f"models is {shown(self.models)!r}; allowed: one name or more, none empty, none twice")
        if self.noisy is not None and self.sigma is not None:
            raise ValueError("sigma and noisy given; allowed: one of them")
        if self.noisy is not None and self.sigma_source in ("known", "both"):
            raise ValueError(f"sigma_source is {self.sigma_source!r} with noisy; allowed: auto")
        if self.sigma is not None and not (self.sigma and all(0 < level < inf for level in self.sigma)):
            raise ValueError(f"sigma is {shown(self.sigma)}; allowed: levels above 0, 8-bit grey levels")
        if self.sigma is not None and len(set(self.sigma)) < len(self.sigma):
            raise ValueError(f"sigma is {shown(self.sigma)}; allowed: no level twice")
        for name, allowed in (("sigma_source", SIGMA_SOURCES), ("split", SPLITS), ("precision", PRECISIONS)):
            if getattr(self, name) not in (None, *allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; allowed: 0 to 1")
        check_ensemble(self.tta)
        if self.gpus_per_actor is not None and not allocatable(self.gpus_per_actor):
            raise ValueError(f"gpus_per_actor is {self.gpus_per_actor}; allowed: a whole number, or a part of one GPU")
        for name in ("batch_tiles", "actors", "cpus_per_actor", "limit", "max_pixels", "tile"):
            value = getattr(self, name)
            if value not in (None, "auto") and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        for name in ("sheet", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more")

"""Options of `raydenoise denoise`."""

import argparse
from dataclasses import dataclass
from math import inf
from typing import Literal

from raydenoise.config.options import address_option, option, quiet_option
from raydenoise.core.image import DEFAULT_MAX_PIXELS, Format
from raydenoise.core.tiling import check_ensemble

Sigma = float | Literal["auto"]
FORMATS = ("keep", "png", "jpeg", "webp", "tiff")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def sigma(text: object) -> Sigma:
    """Read a noise level: "auto" or a number."""
    try:
        return "auto" if text == "auto" else float(str(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no noise level; allowed: auto, or 8-bit grey levels") from None


def actors(text: object) -> int | Literal["auto"]:
    """Read a number of actors: "auto" or a number."""
    try:
        return "auto" if text == "auto" else int(str(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of actors; allowed: auto, or 1 and more") from None


def allowed_failures(text: object) -> int | Literal["all"]:
    """Read a number of failures: "all" or a number."""
    try:
        return "all" if text == "all" else int(str(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of failures; allowed: all, or 0 and more") from None


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """What `raydenoise denoise` does. A value that is not allowed raises ValueError when the config is made."""

    input: str | None = option(
        "a folder (with all below it), a glob or a file; local, s3:// or gs://",
        default=None,
        metavar="INPUT",
        nargs="?",
    )
    list: str | None = option(
        "instead of INPUT: a .parquet or .csv file that lists pictures", default=None, metavar="FILE"
    )
    column: str = option("of the listing, with absolute paths, s3:// or gs:// addresses", default="uri", metavar="NAME")
    output: str = option("folder for images/, metrics/ and manifest.json; made where it is missing", metavar="OUT")
    model: str = option("shipped name, bundle folder, or .keras / .h5 file", default="default", metavar="NAME|PATH")
    sigma: Sigma = option(
        "noise level in 8-bit grey levels, or auto",
        default="auto",
        read=sigma,
        yaml=(int, float, str),
        metavar="auto|N",
    )
    strength: float = option("0 keeps the noisy picture, 1 is fully denoised", default=1.0, read=float, metavar="S")
    tta: int = option(
        "mean over 1, 2, 4 or 8 flips and turns: as many times the work", default=1, read=int, metavar="N"
    )
    reference: str | None = option("folder of clean pictures for PSNR, SSIM, MSE", default=None, metavar="DIR")
    format: str = option("of the written pictures", default="keep", choices=FORMATS)
    quality: int = option("of JPEG and WebP, 1 to 100 (WebP at 100 is lossless)", default=95, read=int, metavar="N")
    tile: int | None = option(
        "side of the window in pixels, halo included; by default 512, or 4 halos if more",
        default=None,
        read=int,
        metavar="PX",
    )
    batch_tiles: int = option("windows per network call", default=4, read=int, metavar="N")
    actors: int | Literal["auto"] = option(
        "denoising processes", default="auto", read=actors, yaml=(int, str), metavar="auto|N"
    )
    gpus_per_actor: float | None = option(
        "GPUs of each (0: none); by default 1 where there are GPUs", default=None, read=float, metavar="F"
    )
    cpus_per_actor: int | None = option(
        "CPUs and threads of each; by default 1 beside a GPU, else an eighth of a machine",
        default=None,
        read=int,
        metavar="N",
    )
    precision: str = option("number format of the network", default="auto", choices=PRECISIONS)
    overwrite: bool = option("remove the run that OUT holds and start anew", default=False, read=bool)
    retry_failed: bool = option("try pictures again that have an error row", default=False, read=bool)
    attempts: int = option(
        "deaths of its process until a picture is given up, 2 or more", default=4, read=int, metavar="N"
    )
    image_timeout: float = option(
        "seconds until a picture that is stuck in one stage is given up", default=1800.0, read=float, metavar="S"
    )
    allow_failed: int | Literal["all"] = option(
        "failures that leave the exit status 0", default=0, read=allowed_failures, yaml=(int, str), metavar="N|all"
    )
    limit: int | None = option(
        "stop after the first N pictures: by name, or rows of --list", default=None, read=int, metavar="N"
    )
    max_pixels: int = option("larger pictures become error rows", default=DEFAULT_MAX_PIXELS, read=int, metavar="N")
    address: str | None = address_option()
    quiet: bool = quiet_option()
    json: bool = option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = option("let Ray and TensorFlow talk", default=False, read=bool)

    def __post_init__(self) -> None:
        if self.input is None and self.list is None:
            raise ValueError("input missing: give INPUT or --list FILE")
        if self.input is not None and self.list is not None:
            raise ValueError("input and list are both given; allowed: one of INPUT and --list FILE")
        if self.list is not None and self.reference is not None:
            raise ValueError("reference is given with list; allowed: with INPUT, below which the paths are the same")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; allowed: 0 to 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; allowed: 1 to 100")
        check_ensemble(self.tta)
        if self.sigma != "auto" and not 0 <= self.sigma < inf:
            raise ValueError(f"sigma is {self.sigma}; allowed: auto, or 0 and more 8-bit grey levels")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; allowed: {', '.join(FORMATS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        if self.gpus_per_actor is not None and not allocatable(self.gpus_per_actor):
            raise ValueError(f"gpus_per_actor is {self.gpus_per_actor}; allowed: a whole number, or a part of one GPU")
        if not 0 < self.image_timeout < inf:
            raise ValueError(f"image_timeout is {self.image_timeout}; allowed: more than 0 seconds")
        if self.attempts < 2:  # the first death tells only which pictures were in hand, the second which one it was
            raise ValueError(f"attempts is {self.attempts}; allowed: 2 or more")
        if self.allow_failed != "all" and self.allow_failed < 0:
            raise ValueError(f"allow_failed is {self.allow_failed}; allowed: all, or 0 and more")
        for name in ("batch_tiles", "actors", "cpus_per_actor", "limit", "max_pixels", "tile"):
            value = getattr(self, name)
            if value not in (None, "auto") and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")

    @property
    def written_format(self) -> Format | None:
        """The format asked for; None keeps each picture's own."""
        return None if self.format == "keep" else self.format  # type: ignore[return-value]  # checked above


def allocatable(gpus: float) -> bool:
    """Whether Ray can give so many GPUs to one actor."""
    return 0 <= gpus <= 1 or (1 < gpus < inf and gpus == int(gpus))

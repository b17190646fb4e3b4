"""Options of `raydenoise preview`."""

import argparse
from dataclasses import dataclass
from math import inf
from pathlib import Path

from raydenoise.config.denoise import Sigma, sigma
from raydenoise.config.options import names, option, quiet_option
from raydenoise.core.image import DEFAULT_MAX_PIXELS


def sigmas(value: object) -> tuple[Sigma, ...]:
    """Read noise levels: "auto,15,25", or a list."""
    return tuple(sigma(part) for part in (value if isinstance(value, list) else str(value).split(",")))


def strengths(value: object) -> tuple[float, ...]:
    """Read strengths: "0.5,1", or a list."""
    try:
        return tuple(float(part) for part in (value if isinstance(value, list) else str(value).split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} are no strengths; allowed: such as 0.5,1") from None


@dataclass(frozen=True)
class PreviewConfig:
    """What `raydenoise preview` does. A value that is not allowed raises ValueError when the config is made."""

    input: str = option("a folder (with all below it), a glob or a file", metavar="INPUT", nargs="?")
    output: str = option("the sheet; an earlier sheet is replaced", default="preview.png", metavar="FILE.png")
    models: tuple[str, ...] = option(
        "shipped names, bundle folders, .keras or .h5 files",
        default=("default",),
        read=names,
        yaml=(str, list),
        metavar="A,B",
    )
    sigma: tuple[Sigma, ...] = option(
        "noise levels in 8-bit grey levels, or auto",
        default=("auto",),
        read=sigmas,
        yaml=(int, float, str, list),
        metavar="auto|N,...",
    )
    strength: tuple[float, ...] = option(
        "0 keeps the noisy picture, 1 is fully denoised",
        default=(1.0,),
        read=strengths,
        yaml=(int, float, str, list),
        metavar="S,...",
    )
    reference: str | None = option("folder of clean pictures: the clean crop and PSNR", default=None, metavar="DIR")
    pictures: int = option("to show, evenly spread over INPUT by name", default=4, read=int, metavar="N")
    crop: int = option("side of the part that is shown, from the middle, pixels", default=256, read=int, metavar="PX")
    precision: str = option(
        "number format of the network", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    max_pixels: int = option("larger pictures are skipped", default=DEFAULT_MAX_PIXELS, read=int, metavar="N")
    quiet: bool = quiet_option()
    json: bool = option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = option("let TensorFlow talk", default=False, read=bool)

    def __post_init__(self) -> None:
        if Path(self.output).suffix.lower() != ".png":
            raise ValueError(f"output is {self.output!r}; allowed: a name that ends in .png")
        for name in ("models", "sigma", "strength"):
            values = getattr(self, name)
            if not values or "" in values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {','.join(map(str, values))!r}; allowed: one or more, each once")
        for level in self.sigma:
            if level != "auto" and not 0 <= level < inf:
                raise ValueError(f"sigma is {level}; allowed: auto, or 0 and more 8-bit grey levels")
        for strength in self.strength:
            if not 0 <= strength <= 1:
                raise ValueError(f"strength is {strength}; allowed: 0 to 1")
        for name in ("pictures", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.crop < 64:  # a label needs the room
            raise ValueError(f"crop is {self.crop}; allowed: 64 or more pixels")

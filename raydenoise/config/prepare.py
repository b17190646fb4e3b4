"""Options of `raydenoise prepare`."""

import argparse
from dataclasses import dataclass
from math import inf

from raydenoise.config.options import address_option, option, quiet_option, shown
from raydenoise.core.image import DEFAULT_MAX_PIXELS


def fractions(value: object) -> tuple[float, ...]:
    """Read three shares: text with commas, or a list of numbers."""
    try:
        return tuple(float(part) for part in (value if isinstance(value, list) else str(value).split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{value!r} are no shares; allowed: such as 0.9,0.05,0.05") from None


def scale(text: object) -> tuple[float, float]:
    """Read a factor, or a lower and an upper one: "0.5", "0.5:1"."""
    low, _, high = str(text).partition(":")
    try:
        return float(low), float(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no scale; allowed: such as 0.5, or 0.5:1") from None


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What `raydenoise prepare` does. A value that is not allowed raises ValueError when the config is made."""

    input: tuple[str, ...] = option(
        "folders (with all below them), globs, files: clean pictures", default=(), metavar="INPUT", nargs="*"
    )
    output: str = option("a new folder for the shards", metavar="SHARDS")
    noisy: str | None = option("instead of INPUT: a folder of noisy pictures", default=None, metavar="DIR")
    clean: str | None = option("and one of their clean ones, under the same paths", default=None, metavar="DIR")
    patch: int = option("side of a patch in pixels", default=128, read=int, metavar="PX")
    stride: int | None = option(
        "pixels from patch to patch of the grid; by default --patch: no overlap", default=None, read=int, metavar="PX"
    )
    count: int | None = option(
        "instead of a grid: patches at random places of each picture", default=None, read=int, metavar="N"
    )
    scale: tuple[float, float] | None = option(
        "shrink first by a factor, or by a random one of LOW:HIGH",
        default=None,
        read=scale,
        yaml=(int, float, str),
        comma=":",
        metavar="F|LOW:HIGH",
    )
    # Of 2,419 patches of photographs none has less than 1, 0.1% less than 2: borders and drawn backgrounds have.
    flat: float = option(
        "drop patches that deviate less from one colour, in 8-bit grey levels; 0 keeps all",
        default=1.0,
        read=float,
        metavar="LEVELS",
    )
    split: tuple[float, float, float] = option(
        "shares of pictures for train,validation,test",
        default=(0.9, 0.05, 0.05),
        read=fractions,
        yaml=(str, list),
        metavar="A,B,C",
    )
    seed: int = option("of everything that is random", default=0, read=int, metavar="N")
    limit: int | None = option("stop after the first N pictures by name", default=None, read=int, metavar="N")
    max_pixels: int = option(
        "pictures of more pixels are reported as failed", default=DEFAULT_MAX_PIXELS, read=int, metavar="N"
    )
    address: str | None = address_option()
    quiet: bool = quiet_option()
    json: bool = option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = option("let Ray talk", default=False, read=bool)

    def __post_init__(self) -> None:
        given = [name for name in ("input", "noisy", "clean") if getattr(self, name)]
        if given not in (["input"], ["noisy", "clean"]):
            raise ValueError(
                f"{' and '.join(given) or 'nothing'} given; allowed: INPUT for clean pictures, or --noisy and --clean"
            )
        if self.stride is not None and self.count is not None:
            raise ValueError("stride and count given; allowed: one of them")
        for name in ("patch", "stride", "count", "limit", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {shown(self.scale, ':')}; allowed: LOW:HIGH with 0 < LOW <= HIGH <= 1")
        if not 0 <= self.flat < inf:
            raise ValueError(f"flat is {self.flat}; allowed: 0 and more 8-bit grey levels")
        if len(self.split) != 3 or not all(0 <= share <= 1 for share in self.split) or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split is {shown(self.split)}; allowed: three shares of 0 to 1 whose sum is 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; allowed: 0 or more")

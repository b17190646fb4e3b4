"""One typed, frozen config per verb, from flags and a YAML file: flag, else file, else default."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from raydenoise.core.image import DEFAULT_MAX_PIXELS, Format

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


def _option(help: str, *, default: Any = MISSING, read: Any = str, **flag: Any) -> Any:
    """Declare one field with what the command line needs to know of it."""
    metadata = {"help": help, "read": read, "flag": flag}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DenoiseConfig:
    """What `raydenoise denoise` does. A value that is not allowed raises ValueError when the config is made."""

    input: str = _option("a folder (with all below it), a glob or a file", metavar="INPUT", nargs="?")
    output: str = _option("folder for images/, metrics/ and manifest.json; made where it is missing", metavar="OUT")
    model: str = _option("shipped name, bundle folder, or .keras / .h5 file", default="default", metavar="NAME|PATH")
    sigma: Sigma = _option("noise level in 8-bit grey levels, or auto", default="auto", read=sigma, metavar="auto|N")
    strength: float = _option("0 keeps the noisy picture, 1 is fully denoised", default=1.0, read=float, metavar="S")
    reference: str | None = _option("folder of clean pictures for PSNR, SSIM, MSE", default=None, metavar="DIR")
    format: str = _option("of the written pictures", default="keep", choices=FORMATS)
    quality: int = _option("of JPEG and WebP, 1 to 100 (WebP at 100 is lossless)", default=95, read=int, metavar="N")
    tile: int | None = _option("side of the window in pixels, halo included", default=None, read=int, metavar="PX")
    batch_tiles: int = _option("windows per network call", default=4, read=int, metavar="N")
    actors: int | Literal["auto"] = _option("denoising processes", default="auto", read=actors, metavar="auto|N")
    gpus_per_actor: float | None = _option(
        "GPUs of each (0: none); by default 1 where there are GPUs", default=None, read=float, metavar="F"
    )
    cpus_per_actor: int | None = _option("CPUs and threads of each", default=None, read=int, metavar="N")
    precision: str = _option("number format of the network", default="auto", choices=PRECISIONS)
    limit: int | None = _option("stop after the first N pictures by name", default=None, read=int, metavar="N")
    max_pixels: int = _option("larger pictures become error rows", default=DEFAULT_MAX_PIXELS, read=int, metavar="N")
    address: str | None = _option(
        "Ray cluster; by default RAY_ADDRESS, else a private local Ray", default=None, metavar="RAY"
    )
    quiet: bool = _option("print errors only", default=False, read=bool)
    json: bool = _option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = _option("let Ray and TensorFlow talk", default=False, read=bool)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; allowed: 0 to 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; allowed: 1 to 100")
        if self.sigma != "auto" and not 0 <= self.sigma < inf:
            raise ValueError(f"sigma is {self.sigma}; allowed: auto, or 0 and more 8-bit grey levels")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; allowed: {', '.join(FORMATS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        if self.gpus_per_actor is not None and not _allocatable(self.gpus_per_actor):
            raise ValueError(f"gpus_per_actor is {self.gpus_per_actor}; allowed: a whole number, or a part of one GPU")
        for name in ("batch_tiles", "actors", "cpus_per_actor", "limit", "max_pixels", "tile"):
            value = getattr(self, name)
            if value not in (None, "auto") and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")

    @property
    def written_format(self) -> Format | None:
        """The format asked for; None keeps each picture's own."""
        return None if self.format == "keep" else self.format  # type: ignore[return-value]  # checked above


def _allocatable(gpus: float) -> bool:
    return 0 <= gpus <= 1 or (1 < gpus < inf and gpus == int(gpus))


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What `raydenoise prepare` does. A value that is not allowed raises ValueError when the config is made."""

    input: tuple[str, ...] = _option(
        "folders (with all below them), globs, files: clean pictures", default=(), metavar="INPUT", nargs="*"
    )
    output: str = _option("a new folder for the shards", metavar="SHARDS")
    noisy: str | None = _option("instead of INPUT: a folder of noisy pictures", default=None, metavar="DIR")
    clean: str | None = _option("and one of their clean ones, under the same paths", default=None, metavar="DIR")
    patch: int = _option("side of a patch in pixels", default=128, read=int, metavar="PX")
    stride: int | None = _option("between patches; by default a patch", default=None, read=int, metavar="PX")
    count: int | None = _option("patches at random places of each picture instead", default=None, read=int, metavar="N")
    scale: tuple[float, float] | None = _option(
        "shrink first by a factor, or by a random one of LOW:HIGH", default=None, read=scale, metavar="F|LOW:HIGH"
    )
    # Of 2,419 patches of photographs none has less than 1, 0.1% less than 2: borders and drawn backgrounds have.
    flat: float = _option(
        "drop patches that deviate less, in 8-bit grey levels; 0 keeps all", default=1.0, read=float, metavar="LEVELS"
    )
    split: tuple[float, float, float] = _option(
        "shares of pictures for train,validation,test", default=(0.9, 0.05, 0.05), read=fractions, metavar="A,B,C"
    )
    seed: int = _option("of everything that is random", default=0, read=int, metavar="N")
    limit: int | None = _option("stop after the first N pictures by name", default=None, read=int, metavar="N")
    max_pixels: int = _option(
        "larger pictures are reported as failed", default=DEFAULT_MAX_PIXELS, read=int, metavar="N"
    )
    address: str | None = _option(
        "Ray cluster; by default RAY_ADDRESS, else a private local Ray", default=None, metavar="RAY"
    )
    quiet: bool = _option("print errors only", default=False, read=bool)
    json: bool = _option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = _option("let Ray talk", default=False, read=bool)

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
            raise ValueError(f"scale is {_shown(self.scale, ':')}; allowed: LOW:HIGH with 0 < LOW <= HIGH <= 1")
        if not 0 <= self.flat < inf:
            raise ValueError(f"flat is {self.flat}; allowed: 0 and more 8-bit grey levels")
        if len(self.split) != 3 or not all(0 <= share <= 1 for share in self.split) or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split is {_shown(self.split)}; allowed: three shares of 0 to 1 whose sum is 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; allowed: 0 or more")


def _shown(value: object, comma: str = ",") -> str:
    return comma.join(map(str, value)) if isinstance(value, tuple) else str(value)


Config = TypeVar("Config")


def parse(kind: type[Config], argv: Sequence[str], *, prog: str, description: str) -> Config:
    """Make a config from a command line.

    Raises:
        SystemExit: with status 2 and a message, for anything that is not allowed.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="values of these options as `name: value`; flags win")
    for entry in fields(kind):  # type: ignore[arg-type]  # a dataclass
        _add(parser, entry)
    given = {name: _frozen(value) for name, value in vars(parser.parse_intermixed_args(argv)).items()}
    path = given.pop("config")
    try:
        values = {**(_from_yaml(kind, Path(path)) if path else {}), **given}
        missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]  # type: ignore[arg-type]
        if missing:
            raise ValueError(f"{' and '.join(missing)} missing: give them as arguments or in --config")
        return kind(**values)
    except ValueError as error:
        parser.error(str(error))


def _add(parser: argparse.ArgumentParser, entry: Any) -> None:
    flag = entry.metadata["flag"]
    nothing = entry.default in (MISSING, None, ()) or entry.default is False
    default = "" if nothing else f" (default: {_shown(entry.default)})"
    text = {"help": entry.metadata["help"] + default, "default": argparse.SUPPRESS}
    if flag.get("nargs") in ("?", "*"):
        parser.add_argument(entry.name, type=entry.metadata["read"], **text, **flag)
    elif entry.metadata["read"] is bool:
        parser.add_argument(_flag(entry.name), action="store_true", **text)
    else:
        parser.add_argument(_flag(entry.name), type=entry.metadata["read"], **text, **flag)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _from_yaml(kind: type[Any], path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} holds a {type(content).__name__}; allowed: `name: value` lines")
    known = {entry.name: entry for entry in fields(kind)}
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; allowed: {', '.join(known)}"
            raise ValueError(f"--config {path}: {key} is unknown{hint}")
        values[name] = _typed(known[name], value, path)
    return values


_YAML_TYPES: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    sigma: (int, float, str),
    actors: (int, str),
    fractions: (str, list),
    scale: (int, float, str),
}


def _typed(entry: Any, value: object, path: Path) -> Any:
    """Check a YAML value's type; null stands for the default where the default is nothing."""
    if value is None and entry.default is None:
        return None
    if entry.metadata["flag"].get("nargs") in ("*", "+"):
        return tuple(_typed_one(entry, item, path) for item in (value if isinstance(value, list) else [value]))
    return _typed_one(entry, value, path)


def _typed_one(entry: Any, value: object, path: Path) -> Any:
    read = entry.metadata["read"]
    try:
        if not isinstance(value, _YAML_TYPES[read]) or (isinstance(value, bool) and read is not bool):
            raise TypeError(type(value).__name__)
        return read(value)
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"--config {path}: {entry.name} is {value!r}; allowed: {entry.metadata['help']}") from error

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


def _option(help: str, *, default: Any = MISSING, read: Any = str, **flag: Any) -> Any:
    """Declare one field with what the command line needs to know of it."""
    metadata = {"help": help, "read": read, "flag": flag}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DenoiseConfig:
    """What `raydenoise denoise` does. A value that is not allowed raises ValueError when the config is made."""

    input: str = _option("a folder (with all below it), a glob or a file", metavar="INPUT")
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
    given = vars(parser.parse_args(argv))
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
    default = "" if entry.default in (MISSING, None, False) else f" (default: {entry.default})"
    text = {"help": entry.metadata["help"] + default, "default": argparse.SUPPRESS}
    if entry.name == "input":
        parser.add_argument("input", nargs="?", type=entry.metadata["read"], **text, **flag)
    elif entry.metadata["read"] is bool:
        parser.add_argument(_flag(entry.name), action="store_true", **text)
    else:
        parser.add_argument(_flag(entry.name), type=entry.metadata["read"], **text, **flag)


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
}


def _typed(entry: Any, value: object, path: Path) -> Any:
    """Check a YAML value's type; null stands for the default where the default is nothing."""
    if value is None and entry.default is None:
        return None
    read = entry.metadata["read"]
    try:
        if not isinstance(value, _YAML_TYPES[read]) or (isinstance(value, bool) and read is not bool):
            raise TypeError(type(value).__name__)
        return read(value)
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"--config {path}: {entry.name} is {value!r}; allowed: {entry.metadata['help']}") from error

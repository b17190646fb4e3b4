"""Model cards: the facts of a bundle, read without Keras, so that a driver checks its arguments in milliseconds.

A card may come from a stranger: what it says is checked, since tiling trusts it. That it says the truth is not: a wrong
halo shows as seams.
"""

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from raydenoise.core.tiling import Grid

DEFAULT = "default"
MODEL_FILE = "model.keras"
CARD_FILE = "card.json"
_BUNDLES = Path(str(files("raydenoise") / "bundles"))
DEFAULT_TILE = 512  # pixels: with a halo of 56 the network does 1.6 of the work of its core; 1024 needs 4x the memory
MOST_SIDE = 4096  # pixels of alignment, radius, halo and fixed size: a window of 4 halos has 268 megapixels then
_MOST_SIGMA = 10_000  # grey levels; white is 255
_MOST_NAME = 255  # characters: a file's name
_MOST_BYTES = 1 << 20  # of JSON; the default model's has 2,500
_MOST_DEPTH = 20  # of JSON; the default model's has 4


@dataclass(frozen=True)
class Card:
    """The facts of a model.

    Raises:
        ValueError: a fact is of another type or beyond what is allowed.

    Attributes:
        name: for people and the metrics table; see `fit_name`.
        architecture: a name in `networks.BUILDERS`, or "unknown" for a bare file.
        arguments: of the builder.
        channels: colour planes of a picture that the network takes, 1 or 3.
        noise_map: the network takes one more plane, sigma / 255.
        sigma_range: noise levels it was trained for, 8-bit grey levels; None without a noise map.
        alignment: tiles start and end on multiples of this, pixels.
        radius: receptive radius of one aligned cell, pixels.
        halo: the radius rounded up to the alignment.
        fixed_size: side of the only input it takes, pixels; None where height and width are free.
        sha256: of the model file, 64 hexadecimal digits; empty until it is written.
        training: data, command, duration, hardware of the training.
        scores: measured quality, with the command that measured it.
        versions: of the packages that wrote the model.
    """

    name: str
    architecture: str
    arguments: dict[str, Any]
    channels: int
    noise_map: bool
    sigma_range: tuple[float, float] | None
    alignment: int
    radius: int
    halo: int
    fixed_size: int | None
    sha256: str
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_facts(self)
        self.grid()  # it fits the halo, the alignment and a fixed size together

    def grid(self, tile: int | None = None) -> Grid:
        """Choose the tiles: `tile` pixels, else the default or the least that the halo allows.

        Raises:
            ValueError: the tile does not fit the alignment, the halo or a fixed input size.
        """
        if self.fixed_size is not None:
            if tile not in (None, self.fixed_size):
                raise ValueError(f"tile is {tile}; allowed for {self.name}: {self.fixed_size}, its input size")
            return Grid(tile=self.fixed_size, halo=self.halo, alignment=self.alignment, fixed=True)
        if tile is None:
            tile = max(DEFAULT_TILE, 4 * self.halo)
            tile = -(-tile // self.alignment) * self.alignment
        return Grid(tile=tile, halo=self.halo, alignment=self.alignment)

    def limited(self, estimate: float) -> float:
        """Limit an estimated noise level to the range that the network was trained for."""
        low, high = self.sigma_range or (estimate, estimate)
        return min(max(estimate, low), high)


def shipped() -> tuple[str, ...]:
    """Name the bundles inside the package."""
    return tuple(sorted(entry.name for entry in _BUNDLES.iterdir() if (entry / CARD_FILE).is_file()))


def ships(path: Path) -> bool:
    """Whether a bundle's folder is one of those inside the package: nobody else has made its files."""
    return path.parent == _BUNDLES


def locate(name_or_path: str | Path) -> Path:
    """Find a model: a shipped name, a bundle's folder, or a bare `.keras` or `.h5` file.

    Raises:
        ValueError: there is none.
    """
    if str(name_or_path) in shipped():
        return _BUNDLES / str(name_or_path)
    path = Path(name_or_path)
    if (path / CARD_FILE).is_file() and (path / MODEL_FILE).is_file():
        return path
    if path.is_file() and path.suffix in (".keras", ".h5", ".hdf5"):
        return path
    raise ValueError(
        f"model {str(name_or_path)!r} is not found; allowed: {', '.join(shipped()) or 'a shipped name'}, the path of a "
        f"bundle (a folder with {MODEL_FILE} and {CARD_FILE}), or a .keras or .h5 file"
    )


def read_card(folder: Path) -> Card:
    """Read a bundle's card.

    Raises:
        ValueError: it is no card of this version, or says what cannot be.
    """
    path = folder / CARD_FILE
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes; allowed: {_MOST_BYTES:,}")
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["sigma_range"], list):
            content["sigma_range"] = tuple(content["sigma_range"])
        card = Card(**content)
        _check("sha256", card.sha256, card.sha256 != "", allowed="64 hexadecimal digits")
    except RecursionError as error:
        raise ValueError(f"{path} is no model card of this version: it is nested too deep") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no model card of this version: {error}") from error
    return card


def read_checked(folder: Path) -> Card:
    """Read a bundle's card and check that the model file is the one it describes.

    Raises:
        ValueError: it is not, or the card is none.
    """
    card = read_card(folder)
    if file_sha256(folder / MODEL_FILE) != card.sha256:
        raise ValueError(f"{folder / MODEL_FILE} is not the file that its card describes: sha256 differs; copy it anew")
    return card


def write_card(card: Card, folder: Path) -> None:
    """Write `card.json` into a bundle's folder."""
    (folder / CARD_FILE).write_text(json.dumps(asdict(card), indent=2) + "\n")


def file_sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sigma(sigma: float, *, card: Card) -> None:
    """Raise ValueError where a given sigma is beyond what a noise-map network was trained for."""
    if card.sigma_range is not None and not card.sigma_range[0] <= sigma <= card.sigma_range[1]:
        low, high = card.sigma_range
        raise ValueError(f"sigma is {sigma}; allowed for {card.name}: auto, or {low:g} to {high:g} 8-bit grey levels")


def fit_name(name: str) -> str:
    """Turn any text into a name that a card may have."""
    kept = "".join(letter if _printable(letter) and letter not in "/\\" else "_" for letter in name[:_MOST_NAME])
    return kept if kept.strip(". ") else "model"


def _check_facts(card: Card) -> None:
    text = f"a name of 1 to {_MOST_NAME} characters without slashes or control characters"
    for name in ("name", "architecture"):
        value = getattr(card, name)
        _check(name, value, isinstance(value, str) and fit_name(value) == value, allowed=text)
    _check("channels", card.channels, type(card.channels) is int and card.channels in (1, 3), allowed="1 or 3")
    _check("noise_map", card.noise_map, type(card.noise_map) is bool, allowed="true or false")
    if card.noise_map:
        levels: tuple[Any, ...] = card.sigma_range if isinstance(card.sigma_range, tuple) else ()
        numbers = len(levels) == 2 and all(type(level) in (int, float) for level in levels)
        fits = numbers and 0 <= levels[0] <= levels[1] <= _MOST_SIGMA
        _check(
            "sigma_range", card.sigma_range, fits, allowed=f"two levels from 0 to {_MOST_SIGMA}, the lower one first"
        )
    else:
        _check("sigma_range", card.sigma_range, card.sigma_range is None, allowed="null without a noise map")
    for name, least in (("alignment", 1), ("radius", 0), ("halo", 0), ("fixed_size", 1)):
        value = getattr(card, name)
        fits = type(value) is int and least <= value <= MOST_SIDE
        _check(
            name,
            value,
            fits or (name == "fixed_size" and value is None),
            allowed=f"a whole number of pixels, {least} to {MOST_SIDE}",
        )
    digits = isinstance(card.sha256, str) and re.fullmatch(r"([0-9a-f]{64})?", card.sha256) is not None
    _check("sha256", card.sha256, digits, allowed="64 hexadecimal digits")
    for name in ("arguments", "training", "scores", "versions"):
        value = getattr(card, name)
        _check(name, value, isinstance(value, dict), allowed="an object")
        _check_free(name, value, depth=0)
    for version in card.versions.values():
        _check("versions", version, isinstance(version, str), allowed="texts")


def _check(name: str, value: object, fits: bool, *, allowed: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {repr(value)[:80]}; allowed: {allowed}")


def _check_free(name: str, value: Any, *, depth: int) -> None:
    """Check facts that are for people alone: not nested without end, and no text that drives a terminal."""
    if depth > _MOST_DEPTH:
        raise ValueError(f"{name} is nested too deep; allowed: {_MOST_DEPTH} levels")
    if isinstance(value, dict):
        for inner in chain(value, value.values()):
            _check_free(name, inner, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_free(name, inner, depth=depth + 1)
    elif isinstance(value, str):
        fits = all(_printable(letter) or letter in "\n\t" for letter in value)
        _check(name, value, fits, allowed="text without control characters")


def _printable(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cs")  # control characters, halves of pairs

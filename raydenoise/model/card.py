"""Model cards: the facts of a bundle, read without Keras, so that a driver checks its arguments in milliseconds."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from raydenoise.core.tiling import Grid

DEFAULT = "default"
MODEL_FILE = "model.keras"
CARD_FILE = "card.json"
DEFAULT_TILE = 512  # pixels: with a halo of 56 the network does 1.6 of the work of its core; 1024 needs 4x the memory


@dataclass(frozen=True)
class Card:
    """The facts of a model.

    Attributes:
        name: for people and the metrics table.
        architecture: a name in `networks.BUILDERS`, or "unknown" for a bare file.
        arguments: of the builder.
        channels: colour planes of a picture that the network takes, 1 or 3.
        noise_map: the network takes one more plane, sigma / 255.
        sigma_range: noise levels it was trained for, 8-bit grey levels; None without a noise map.
        alignment: tiles start and end on multiples of this, pixels.
        radius: receptive radius of one aligned cell, pixels.
        halo: the radius rounded up to the alignment.
        fixed_size: side of the only input it takes, pixels; None where height and width are free.
        sha256: of the model file.
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
    folder = files("raydenoise") / "bundles"
    return tuple(sorted(entry.name for entry in folder.iterdir() if (entry / CARD_FILE).is_file()))


def locate(name_or_path: str | Path) -> Path:
    """Find a model: a shipped name, a bundle's folder, or a bare `.keras` or `.h5` file.

    Raises:
        ValueError: there is none.
    """
    if str(name_or_path) in shipped():
        return Path(str(files("raydenoise") / "bundles" / str(name_or_path)))
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
        ValueError: it is no card of this version.
    """
    try:
        content = json.loads((folder / CARD_FILE).read_text())
        if content["sigma_range"] is not None:
            content["sigma_range"] = tuple(content["sigma_range"])
        return Card(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CARD_FILE} is no model card of this version: {error}") from error


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

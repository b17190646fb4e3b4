"""Bundles: the model that ships, as a folder with `model.keras` and `card.json`.

A model is loaded by the name of a shipped bundle, by a bundle's path, or from a bare `.keras` or `.h5` file, whose
facts are then found by inspection. Loading never runs code from the file: `raydenoise.model.vetting` looks first.
"""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras

from raydenoise.model import networks
from raydenoise.model.card import DEFAULT, MODEL_FILE, Card, file_sha256, fit_name, locate, read_checked, write_card
from raydenoise.model.precision import rebuilt
from raydenoise.model.probe import Reach, probe
from raydenoise.model.vetting import vet


@dataclass(frozen=True)
class Bundle:
    """A model in memory with its card."""

    model: keras.Model
    card: Card

    @property
    def network(self) -> networks.Network:
        """The model with what tiling needs of the card."""
        return networks.Network(
            self.model, radius=self.card.radius, alignment=self.card.alignment, noise_map=self.card.noise_map
        )


def load(name_or_path: str | Path = DEFAULT) -> Bundle:
    """Load a model, float32, compiled for nothing.

    Raises:
        ValueError: no such model; the file is damaged or not the one its card describes; it would run code; it is no
            network from pictures to pictures.
    """
    path = locate(name_or_path)
    if path.is_file():
        return _inspect(_read(path), name=fit_name(path.stem), sha256=file_sha256(path))
    card = read_checked(path)
    model = _read(path / MODEL_FILE)
    _check_shapes(model, card)
    return Bundle(model, card)


def write(bundle: Bundle, folder: Path) -> Card:
    """Write a model and its card as a bundle's folder; returns the card with the written file's sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle.model.save(folder / MODEL_FILE)
    card = replace(bundle.card, sha256=file_sha256(folder / MODEL_FILE))
    write_card(card, folder)
    return card


def save(
    network: networks.Network,
    folder: Path,
    *,
    name: str,
    architecture: str,
    arguments: dict[str, Any],
    sigma_range: tuple[float, float] | None,
    training: dict[str, Any],
    scores: dict[str, Any],
) -> Card:
    """Write a network as a bundle; height and width are freed where they were fixed."""
    model = rebuilt(network.model, precision="float32", free_size=True)
    card = Card(
        name=fit_name(name),
        architecture=architecture,
        arguments=arguments,
        channels=model.input_shape[-1] - network.noise_map,
        noise_map=network.noise_map,
        sigma_range=sigma_range if network.noise_map else None,
        alignment=network.alignment,
        radius=network.radius,
        halo=halo(Reach(alignment=network.alignment, radius=network.radius)),
        fixed_size=None,
        sha256="",
        training=training,
        scores=scores,
        versions={name: version(name) for name in ("keras", keras.backend.backend())},
    )
    return write(Bundle(model, card), folder)


def halo(reach: Reach) -> int:
    """Round the radius up to the alignment, pixels."""
    return -(-reach.radius // reach.alignment) * reach.alignment


@keras.saving.register_keras_serializable(package="raydenoise")
class _Keras2Conv2DTranspose(keras.layers.Conv2DTranspose):  # type: ignore[misc]  # keras has no type stubs
    """Reads Keras 2's configuration, which has `groups`, always 1 there."""

    def __init__(self, *args: Any, groups: int = 1, **kwargs: Any) -> None:
        if groups != 1:
            raise ValueError(f"Conv2DTranspose has groups={groups}; allowed: 1")
        super().__init__(*args, **kwargs)


def _read(path: Path) -> keras.Model:
    keras2 = {"Conv2DTranspose": _Keras2Conv2DTranspose} if path.suffix != ".keras" else None
    try:
        vet(path)
        model = keras.models.load_model(path, custom_objects=keras2, compile=False, safe_mode=True)
        shapes = model.input_shape, model.output_shape
    except Exception as error:  # over a hostile file Keras raises anything
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
        raise ValueError(f"{path} cannot be loaded as a Keras model: {first_line}") from error
    if not all(isinstance(shape, tuple) and len(shape) == 4 for shape in shapes):
        raise ValueError(f"{path} maps {shapes[0]} to {shapes[1]}; allowed: one (N, H, W, C) to one (N, H, W, C)")
    return keras.Model(model.inputs[0], model.outputs[0])  # Keras 2 wrote the one input as a list of one


def _check_shapes(model: keras.Model, card: Card) -> None:
    """Raise ValueError where a network is not the one of its card by its input and output."""
    size = (None, card.fixed_size) if card.fixed_size else (None,)
    _, height, width, inputs = model.input_shape
    outputs = model.output_shape[-1]
    if (inputs, outputs) != (card.channels + card.noise_map, card.channels) or {height, width} - set(size):
        raise ValueError(
            f"the network of {card.name} maps {model.input_shape} to {model.output_shape}; allowed by its card: "
            f"{card.channels + card.noise_map} channels to {card.channels}, sides {card.fixed_size or 'free'}"
        )


def _inspect(model: keras.Model, *, name: str, sha256: str) -> Bundle:
    """Find the facts of a bare file: free its size where that can be, probe it, take no sigma."""
    _, height, width, channels = model.input_shape
    if channels not in (1, 3) or model.output_shape[-1] != channels:
        raise ValueError(
            f"{name} maps {channels} channels to {model.output_shape[-1]}; allowed for a file without a card: "
            "1 to 1 or 3 to 3"
        )
    fixed_size = None
    try:
        model = rebuilt(model, precision="float32", free_size=True)
        reach = probe(model)
    except (ValueError, TypeError) as error:
        if height is None or height != width:
            raise ValueError(f"{name} cannot be tiled: {error}") from error
        # It sees the whole input at once. An eighth on each side hides the seams as far as a network can that was
        # trained on whole inputs.
        fixed_size, reach = height, Reach(alignment=1, radius=height // 8)
    card = Card(
        name=name,
        architecture="unknown",
        arguments={},
        channels=channels,
        noise_map=False,
        sigma_range=None,
        alignment=reach.alignment,
        radius=reach.radius,
        halo=halo(reach),
        fixed_size=fixed_size,
        sha256=sha256,
    )
    return Bundle(model, card)

"""Bundles: the model that ships, as a folder with `model.keras` and `card.json`.

A model is loaded by the name of a shipped bundle, by a bundle's path, or from a bare `.keras` or `.h5` file, whose
facts are then found by inspection. Loading never runs code from the file: `raydenoise.model.vetting` looks first, at
all but the shipped ones.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras

from raydenoise.model import networks
from raydenoise.model.card import (
    DEFAULT,
    MODEL_FILE,
    Card,
    file_sha256,
    fit_name,
    locate,
    read_checked,
    ships,
    write_card,
)
from raydenoise.model.precision import rebuilt
from raydenoise.model.probe import Reach, probe
from raydenoise.model.vetting import refused, vet


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


def load(name_or_path: str | Path = DEFAULT, *, vetted: bool = False) -> Bundle:
    """Load a model, float32, compiled for nothing.

    Args:
        name_or_path: see above.
        vetted: `raydenoise.model.vetting` has passed the model's file already, here or on another machine.

    Raises:
        ValueError: no such model; the file is damaged or not the one its card describes; it would run code; it is no
            network from pictures to pictures.
    """
    path = locate(name_or_path)
    card = None if path.is_file() else read_checked(path)
    file = path if card is None else path / MODEL_FILE
    if not vetted and not ships(path):
        vet(file)
    model = _read(file)
    if card is None:
        return _inspect(model, name=fit_name(path.stem), sha256=file_sha256(path))
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
    bundle = made(
        network,
        name=name,
        architecture=architecture,
        arguments=arguments,
        sigma_range=sigma_range,
        training=training,
        scores=scores,
    )
    return write(bundle, folder)


def made(
    network: networks.Network,
    *,
    name: str,
    architecture: str,
    arguments: dict[str, Any],
    sigma_range: tuple[float, float] | None,
    training: dict[str, Any],
    scores: dict[str, Any],
) -> Bundle:
    """Give a network its card, without a file yet; height and width are freed where they were fixed."""
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
        versions=writers(),
    )
    return Bundle(model, card)


def writers() -> dict[str, str]:
    """Versions of the packages that write a model here."""
    return {name: version(name) for name in ("keras", keras.backend.backend())}


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
    try:
        if keras.backend.backend() == "tensorflow":  # untried on the others
            _rehearse(path)
        model = _load_model(path)
        shapes = model.input_shape, model.output_shape
    except Exception as error:  # over a hostile file Keras raises anything
        raise refused(path, error) from error
    if not all(isinstance(shape, tuple) and len(shape) == 4 for shape in shapes):
        raise ValueError(f"{path} maps {shapes[0]} to {shapes[1]}; allowed: one (N, H, W, C) to one (N, H, W, C)")
    return keras.Model(model.inputs[0], model.outputs[0])  # Keras 2 wrote the one input as a list of one


def _load_model(path: Path) -> keras.Model:
    keras2 = {"Conv2DTranspose": _Keras2Conv2DTranspose} if path.suffix != ".keras" else None
    return keras.models.load_model(path, custom_objects=keras2, compile=False, safe_mode=True)


def _rehearse(path: Path) -> None:
    """Load a model without memory for its weights: they are made as large as a description says, before they are read.

    In a stateless scope Keras makes no weights; it only notes the file's value for each, where the shapes agree. It
    also notes, per thread, which weights to make later: so the thread ends with its notes.

    Raises:
        ValueError: a weight has no value in the file.
        Exception: whatever Keras raises, where the shapes do not agree, for example.
    """

    def load() -> None:
        with keras.StatelessScope(initialize_variables=False) as scope:
            weights = _load_model(path).weights
            missing = [weight.path for weight in weights if scope.get_current_value(weight) is None]
        if missing:
            raise ValueError(f"weight {missing[0]!r} has no value in the file; allowed: a whole model")

    with ThreadPoolExecutor(1) as thread, warnings.catch_warnings(action="ignore"):  # loading gives them again
        thread.submit(load).result()


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

"""One training step of one process, on any Keras backend."""

from typing import Any, Protocol

import keras
import numpy as np

from raydenoise.model.networks import Network
from raydenoise.model.precision import rebuilt
from raydenoise.training.batches import FloatPixels
from raydenoise.training.objective import loss, optimizer
from raydenoise.training.recipe import Recipe

UP_SAMPLING = (keras.layers.Conv2DTranspose, keras.layers.UpSampling2D)


class Engine(Protocol):
    """What the loop needs: a step, and the model whose weights are averaged over the steps.

    Attributes:
        model: the network in training.
        averaged: a float32 copy; `average` brings it up to date.
        optimizer: of the model, built.
    """

    model: keras.Model
    averaged: keras.Model
    optimizer: keras.optimizers.Optimizer

    def step(self, noisy: FloatPixels, clean: FloatPixels) -> Any:
        """Move the weights once and return the batch's loss, which may still be on its way."""

    def predict(self, noisy: FloatPixels) -> FloatPixels:
        """Denoise with the averaged weights: (N, H, W, inputs) to (N, H, W, channels)."""


class LocalEngine:
    """Keras' own training step."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        self.model, self.averaged = models(network, recipe)
        self.optimizer = optimizer(recipe)
        self.model.compile(
            optimizer=self.optimizer,
            loss=loss(recipe),
            jit_compile=keras.backend.backend() == "jax",  # TensorFlow's XLA on CPU: 0.7 of the plain graph's speed
        )
        self.optimizer.build(self.model.trainable_variables)

    def step(self, noisy: FloatPixels, clean: FloatPixels) -> Any:
        """See `Engine`."""
        self.model.reset_metrics()  # Keras would return the mean loss of all steps so far
        return self.model.train_on_batch(noisy, clean)

    def predict(self, noisy: FloatPixels) -> FloatPixels:
        """See `Engine`."""
        return np.asarray(self.averaged.predict_on_batch(noisy))


def models(network: Network, recipe: Recipe) -> tuple[keras.Model, keras.Model]:
    """Make the model in the recipe's precision, and its float32 copy for the average; frozen layers stay frozen."""
    model = rebuilt(network.model, precision=recipe.precision)
    return model, rebuilt(model, precision="float32")


def average(engine: Engine, recipe: Recipe) -> None:
    """Bring the averaged copy up to date."""
    engine.averaged.set_weights(engine.model.get_weights())
    if recipe.ema:
        engine.optimizer.finalize_variable_values(engine.averaged.trainable_variables)
        engine.averaged.set_weights(engine.averaged.get_weights())  # copies: JAX frees arrays that a step took


def freeze_encoder(model: keras.Model) -> None:
    """Stop training of all layers before the first one that enlarges.

    Raises:
        ValueError: none does.
    """
    enlarging = [index for index, layer in enumerate(model.layers) if isinstance(layer, UP_SAMPLING)]
    if not enlarging:
        raise ValueError("freeze_encoder: the network has no encoder; allowed: networks with an up-sampling layer")
    for layer in model.layers[: enlarging[0]]:
        layer.trainable = False

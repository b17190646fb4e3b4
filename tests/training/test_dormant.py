"""Units that never fire are found, and begin afresh without changing what the network does."""

import keras
import numpy as np
import pytest

from raydenoise.model import networks
from raydenoise.training.dormant import QUIET, firing, hidden, renew
from raydenoise.training.objective import loss, optimizer
from raydenoise.training.recipe import Recipe

RNG = np.random.default_rng(3)
NOISY = RNG.random((2, 24, 32, 4), np.float32)
DEAD = [1, 4, 5]


@pytest.fixture
def model() -> keras.Model:
    """A small default network, trained for nothing, with three units of its third hidden layer switched off."""
    model = networks.build("resunet", filters=(6, 8), depth=1).model
    for weights in model.trainable_weights:
        weights.assign(RNG.normal(0, 0.1, weights.shape))
    entry = hidden(model)[2]
    kernel = keras.ops.convert_to_numpy(entry.before.kernel).copy()
    kernel[..., DEAD] = 0
    entry.before.kernel.assign(kernel)
    return model


def numbers(model: keras.Model) -> list[list[int]]:
    return [np.flatnonzero(share < QUIET).tolist() for share in firing(model, NOISY)]


def recycle(model: keras.Model, noisy: np.ndarray = NOISY, *, seed: int) -> int:
    return renew(model, keras.optimizers.SGD(), firing(model, noisy), seed=seed)


def test_units_that_never_fire_are_found(model: keras.Model) -> None:
    assert len(hidden(model)) == 4
    assert numbers(model) == [[], [], DEAD, []]


def test_they_begin_afresh_and_the_network_does_what_it_did(model: keras.Model) -> None:
    before = model.predict_on_batch(NOISY)
    kept = [keras.ops.convert_to_numpy(weights).copy() for weights in model.trainable_weights]
    assert recycle(model, seed=0) == len(DEAD)
    np.testing.assert_allclose(model.predict_on_batch(NOISY), before, atol=1e-6)
    entry = hidden(model)[2]
    changed = [
        weights.path
        for weights, old in zip(model.trainable_weights, kept, strict=True)
        if not np.array_equal(keras.ops.convert_to_numpy(weights), old)
    ]
    assert changed == [entry.before.kernel.path, entry.after.kernel.path]
    alive = [unit for unit in range(8) if unit not in DEAD]
    index = [weights.path for weights in model.trainable_weights].index(entry.before.kernel.path)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(entry.before.kernel)[..., alive], kept[index][..., alive])


def test_both_hidden_layers_of_a_bottleneck_begin_afresh() -> None:
    model = networks.build("resunet", filters=(6, 8), depth=1, bottleneck=5).model
    for weights in model.trainable_weights:
        weights.assign(RNG.normal(0, 0.1, weights.shape))
    layers = hidden(model)
    assert len(layers) == 8
    for entry in layers[:2]:  # of one block
        kernel = keras.ops.convert_to_numpy(entry.before.kernel).copy()
        kernel[..., 2] = 0
        entry.before.kernel.assign(kernel)
    before = model.predict_on_batch(NOISY)
    assert numbers(model)[:2] == [[2], [2]]
    assert recycle(model, seed=0) >= 2
    np.testing.assert_allclose(model.predict_on_batch(NOISY), before, atol=1e-6)


def test_what_began_afresh_learns(model: keras.Model) -> None:
    recycle(model, seed=1)
    recycle(model, seed=2)  # half of all fresh units may be cut off again
    assert len(numbers(model)[2]) < len(DEAD)
    unit = next(unit for unit in DEAD if unit not in numbers(model)[2])
    reader = hidden(model)[2].after.kernel
    assert not np.any(keras.ops.convert_to_numpy(reader)[:, :, unit])
    recipe = Recipe()
    model.compile(optimizer=optimizer(recipe), loss=loss(recipe))
    model.train_on_batch(NOISY, NOISY[..., :3])
    model.train_on_batch(NOISY, NOISY[..., :3])  # the first step's rate is zero
    assert np.any(keras.ops.convert_to_numpy(reader)[:, :, unit])


def test_the_averages_begin_afresh_as_well(model: keras.Model) -> None:
    used = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer=used, loss="mse")
    model.train_on_batch(NOISY, NOISY[..., :3])
    before = model.predict_on_batch(NOISY)
    assert renew(model, used, firing(model, NOISY), seed=0) == len(DEAD)
    for _ in range(3):
        model.train_on_batch(NOISY, NOISY[..., :3])
    used.finalize_variable_values(model.trainable_variables)
    np.testing.assert_allclose(model.predict_on_batch(NOISY), before, atol=1e-6)
    assert len(numbers(model)[2]) < len(DEAD)


def test_what_is_no_plain_unit_is_left_alone() -> None:
    inputs = keras.Input((None, None, 4))
    wide = keras.layers.Conv2D(8, 3, bias_initializer=keras.initializers.Constant(-9.0))(inputs)
    leaky = keras.layers.Conv2D(8, 3)(keras.layers.ReLU(negative_slope=0.1)(wide))
    grouped = keras.layers.Conv2D(8, 3, groups=2)(keras.layers.ReLU()(leaky))
    assert hidden(keras.Model(inputs, grouped)) == []


def test_a_bias_that_kills_a_unit_goes() -> None:
    inputs = keras.Input((None, None, 4))
    wide = keras.layers.Conv2D(8, 3, bias_initializer=keras.initializers.Constant(-9.0))(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(3, 3)(keras.layers.ReLU()(wide)))
    assert recycle(model, seed=0) == 8
    assert not np.any(keras.ops.convert_to_numpy(model.layers[1].bias))
    assert recycle(model, seed=1) < 8


def test_frozen_layers_are_left_alone(model: keras.Model) -> None:
    hidden(model)[2].before.trainable = False
    assert len(hidden(model)) == 3
    assert recycle(model, seed=0) == 0


@pytest.mark.parametrize("name", ["autoencoder", "dncnn"])
def test_other_networks_are_left_alone(name: str) -> None:
    model = networks.build(name, **({"depth": 3, "filters": 4} if name == "dncnn" else {})).model
    size = model.input_shape[1] or 16
    assert recycle(model, np.zeros((1, size, size, 3), np.float32), seed=0) == 0

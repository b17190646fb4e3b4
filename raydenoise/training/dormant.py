"""Units that never fire: found, and begun afresh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from raydenoise.training.batches import FloatPixels

QUIET = 0.002  # share of positions where a unit fires, below which it is dormant
SEEN = 16  # held-out pictures on which units must fire
RENEWED = 0.7  # of the steps: until then dormant units begin afresh at each validation

Shares = Sequence[NDArray[np.float32]]  # of the positions where each unit of each hidden layer fires


@dataclass(frozen=True)
class Hidden:
    """A ReLU between two convolutions.

    Attributes:
        before: the convolution whose outputs it cuts.
        relu: the layer.
        after: the convolution that alone reads it.
    """

    before: keras.layers.Conv2D
    relu: keras.layers.ReLU
    after: keras.layers.Conv2D


def hidden(model: keras.Model) -> list[Hidden]:
    """The ReLUs of a network that stand alone between two convolutions in training, as in its residual blocks."""
    found = []
    for layer in model.layers:
        if not isinstance(layer, keras.layers.ReLU):
            continue
        sources = [tensor._keras_history.operation for node in layer._inbound_nodes for tensor in node.input_tensors]
        readers = [node.operation for node in layer._outbound_nodes]
        ends = [*sources, *readers]
        plain = layer.negative_slope == 0 and layer.threshold == 0  # what is below zero is nothing
        if plain and len(ends) == 2 and all(_is_whole(end) for end in ends):
            found.append(Hidden(sources[0], layer, readers[0]))
    return found


def _is_whole(operation: keras.Operation) -> bool:
    """Whether this is a convolution of all input channels that is trained."""
    return type(operation) is keras.layers.Conv2D and operation.groups == 1 and operation.trainable


def firing(model: keras.Model, noisy: FloatPixels) -> Shares:
    """How often the units of each hidden layer fire: their share of all positions, 0 to 1.

    Args:
        model: a network of free size, or of this one.
        noisy: (N, H, W, inputs), pictures as it sees them.
    """
    layers = hidden(model)
    if not layers:
        return []
    outputs = keras.Model(model.input, [entry.relu.output for entry in layers])(noisy, training=False)
    return [
        np.mean(ops.convert_to_numpy(ops.cast(values > 0, "float32")), axis=(0, 1, 2))
        for values in keras.tree.flatten(outputs)  # of one layer no list comes
    ]


def renew(model: keras.Model, optimizer: keras.optimizers.Optimizer, shares: Shares, *, seed: int) -> int:
    """Begin dormant units afresh: new weights in, none out, so that what the network does is unchanged; their number.

    A ReLU whose input is negative everywhere has no gradient and never comes back: without this, a network loses its
    width in silence. Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", 2023. The moving
    averages of the weights begin afresh there as well: between the old ones and the new ones lies no network.

    Args:
        model: the network.
        optimizer: of the model, built.
        shares: `firing` of it.
        seed: of the new weights.
    """
    fresh = keras.initializers.GlorotUniform(seed)
    count = 0
    for entry, share in zip(hidden(model), shares, strict=True):
        units = np.flatnonzero(share < QUIET)
        if len(units):
            drawn = ops.convert_to_numpy(fresh(entry.before.kernel.shape))[..., units]
            for variable in _with_average(entry.before.kernel, model, optimizer):
                _assign(variable, (..., units), drawn)
            for variable in _with_average(entry.after.kernel, model, optimizer):
                _assign(variable, (slice(None), slice(None), units), 0)
            if entry.before.use_bias:
                for variable in _with_average(entry.before.bias, model, optimizer):
                    _assign(variable, units, 0)
            count += len(units)
    return count


def _with_average(variable: Any, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """A trained variable, and its moving average where there is one."""
    if not optimizer.use_ema:
        return [variable]
    averages = zip(model.trainable_variables, optimizer._model_variables_moving_average, strict=True)
    return [variable, *(average for trained, average in averages if trained is variable)]


def _assign(variable: Any, index: Any, values: Any) -> None:
    array = ops.convert_to_numpy(variable).copy()
    array[index] = values
    variable.assign(array)

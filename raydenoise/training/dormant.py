"""Units that never fire: found, and begun afresh."""

from collections.abc import Sequence
from dataclasses import dataclass

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
        if len(ends) == 2 and all(type(end) is keras.layers.Conv2D and end.trainable for end in ends):
            found.append(Hidden(sources[0], layer, readers[0]))
    return found


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
    return [np.mean(ops.convert_to_numpy(ops.cast(values > 0, "float32")), axis=(0, 1, 2)) for values in outputs]


def renew(model: keras.Model, shares: Shares, *, seed: int) -> int:
    """Begin dormant units afresh: new weights in, none out, so that what the network does is unchanged; their number.

    A ReLU whose input is negative everywhere has no gradient and never comes back: without this, a network loses its
    width in silence. Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", 2023.

    Args:
        model: the network.
        shares: `firing` of it.
        seed: of the new weights.
    """
    fresh = keras.initializers.GlorotUniform(seed)
    count = 0
    for entry, share in zip(hidden(model), shares, strict=True):
        units = np.flatnonzero(share < QUIET)
        if len(units):
            kernel, reader = (ops.convert_to_numpy(end.kernel).copy() for end in (entry.before, entry.after))
            kernel[..., units] = ops.convert_to_numpy(fresh(kernel.shape))[..., units]
            reader[:, :, units] = 0
            entry.before.kernel.assign(kernel)
            entry.after.kernel.assign(reader)
            count += len(units)
    return count

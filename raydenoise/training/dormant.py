"""Units that never fire: found, and begun afresh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from raydenoise.training.batches import FloatPixels

QUIET = 0.002  # share of positions where a unit fires, below which it is dormant


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
    """The ReLUs of a network that stand alone between two convolutions, as in its residual blocks."""
    found = []
    for layer in model.layers:
        if not isinstance(layer, keras.layers.ReLU):
            continue
        sources = [tensor._keras_history.operation for node in layer._inbound_nodes for tensor in node.input_tensors]
        readers = [node.operation for node in layer._outbound_nodes]
        pair = [*sources, *readers]
        if len(pair) == 2 and all(type(end) is keras.layers.Conv2D for end in pair):
            found.append(Hidden(sources[0], layer, readers[0]))
    return found


def dormant(model: keras.Model, noisy: FloatPixels) -> list[tuple[Hidden, np.ndarray[Any, np.dtype[np.intp]]]]:
    """The numbers of the units of each hidden layer that fire at fewer than `QUIET` of all positions.

    Args:
        model: a network with free or this height and width.
        noisy: (N, H, W, inputs), pictures as it sees them.
    """
    layers = hidden(model)
    if not layers:
        return []
    outputs = keras.Model(model.inputs, [entry.relu.output for entry in layers]).predict_on_batch(noisy)
    shares = [np.mean(np.asarray(values, np.float32) > 0, axis=(0, 1, 2)) for values in _listed(outputs)]
    return [(entry, np.flatnonzero(share < QUIET)) for entry, share in zip(layers, shares, strict=True)]


def recycle(model: keras.Model, noisy: FloatPixels, *, seed: int) -> int:
    """Begin dormant units afresh: new weights in, none out, so that what the network does is unchanged; their number.

    A ReLU whose input is negative everywhere has no gradient and never comes back: without this, a network loses its
    width in silence. Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", 2023.
    """
    fresh = keras.initializers.GlorotUniform(seed)
    count = 0
    for entry, units in dormant(model, noisy):
        if len(units):
            kernel, reader = (keras.ops.convert_to_numpy(end.kernel).copy() for end in (entry.before, entry.after))
            kernel[..., units] = keras.ops.convert_to_numpy(fresh(kernel.shape))[..., units]
            reader[:, :, units] = 0
            entry.before.kernel.assign(kernel)
            entry.after.kernel.assign(reader)
            count += len(units)
    return count


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, list) else [values]

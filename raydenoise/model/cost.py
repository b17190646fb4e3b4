"""What a network costs: its layers, and multiplications with additions (MACs) per pixel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from raydenoise.model.precision import rebuilt

REFERENCE_SIDE = 256  # pixels, about, of the picture that layers are counted on; shapes only, nothing is computed
FREE = (
    keras.layers.BatchNormalization,
    keras.layers.PReLU,
    keras.layers.LayerNormalization,
)  # one MAC a value: not counted


@dataclass(frozen=True)
class LayerCost:
    """One layer or operation of a network.

    Attributes:
        name: in the network.
        kind: its class.
        channels: of its output.
        scale: side of its output, as a share of the picture's; 0 where it is no picture or not known.
        kernel: shape of its kernel; None without one.
        parameters: weights in it.
        macs: per pixel of the picture; None for a kind of layer whose work is not known.
    """

    name: str
    kind: str
    channels: int
    scale: float
    kernel: tuple[int, ...] | None
    parameters: int
    macs: float | None


def layer_costs(model: keras.Model, *, alignment: int = 1) -> list[LayerCost]:
    """Count every layer and operation between input and output, in order.

    Args:
        model: (N, H, W, C) -> (N, H, W, C').
        alignment: height and width of its input are multiples of this, pixels; a fixed input size is kept.
    """
    side = model.input_shape[1] or -(-REFERENCE_SIDE // alignment) * alignment
    sized = rebuilt(model, precision="float32", size=side)
    return [_cost(operation, pixels=side * side) for operation in _operations(sized)]


def macs_per_pixel(costs: Sequence[LayerCost]) -> float | None:
    """Sum the layers; None where the work of one is not known."""
    counts = [cost.macs for cost in costs]
    return sum(count for count in counts if count is not None) if None not in counts else None


def macs_with_halo(macs: float, *, tile: int, halo: int) -> float | None:
    """Work per pixel of a large picture in tiles: a tile's halo is computed and dropped; None where nothing is left."""
    core = tile - 2 * halo
    return macs * (tile / core) ** 2 if core > 0 else None


def _operations(model: keras.Model) -> list[Any]:
    """Layers and bare operations (`keras.ops` in a network's definition), without the inputs."""
    return [operation for operation in model.operations if not isinstance(operation, keras.layers.InputLayer)]


def _cost(operation: Any, *, pixels: int) -> LayerCost:
    output = operation.output[0] if isinstance(operation.output, list | tuple) else operation.output
    _, *extents, channels = output.shape
    kernel = getattr(operation, "kernel", None)
    return LayerCost(
        name=operation.name,
        kind=type(operation).__name__,
        channels=int(channels),
        scale=math.sqrt(math.prod(extents) / pixels) if len(extents) == 2 and None not in extents else 0.0,
        kernel=None if kernel is None else tuple(int(extent) for extent in kernel.shape),
        parameters=operation.count_params() if isinstance(operation, keras.layers.Layer) else 0,
        macs=_macs(operation, pixels=pixels),
    )


def _macs(operation: Any, *, pixels: int) -> float | None:
    """A kernel is applied once at every output position, a transposed one at every input position.

    None where that is not known: of some kinds of layers, of a `Sequential` in a network, of one that is called more
    than once, and of one in an inner network that leaves its size free.
    """
    if getattr(operation, "weights", []) and not isinstance(operation, FREE) and len(operation._inbound_nodes) > 1:
        return None
    match operation:
        case keras.layers.Conv2DTranspose():
            return _applied(math.prod(operation.kernel.shape), operation.input, pixels)
        case keras.layers.SeparableConv2D():
            kernels = operation.depthwise_kernel, operation.pointwise_kernel
            return _applied(sum(math.prod(kernel.shape) for kernel in kernels), operation.output, pixels)
        case keras.layers.Conv2D() | keras.layers.DepthwiseConv2D() | keras.layers.Dense():
            return _applied(math.prod(operation.kernel.shape), operation.output, pixels)
        case keras.Sequential():
            return None
        case keras.Model():
            inner = [_macs(part, pixels=pixels) for part in _operations(operation)]
            return None if None in inner else sum(count for count in inner if count is not None)
        case _:
            counted = isinstance(operation, FREE) or not getattr(operation, "weights", [])
            return 0.0 if counted else None


def _applied(kernel: int, tensor: Any, pixels: int) -> float | None:
    positions = tensor.shape[1:-1]
    return None if None in positions else float(kernel * math.prod(positions) / pixels)

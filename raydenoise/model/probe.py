"""Facts of an unknown network, found by gradients: alignment and receptive radius.

Under positive weights and inputs no two paths through a network cancel, so an input pixel has a gradient exactly
where it can change an output. (Comparing outputs would miss a reach that trained weights hardly use.)
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from raydenoise.model.precision import layers_of

ALIGNMENTS = (1, 2, 4, 8, 16, 32, 64)
LENGTH = 512  # pixels probed along the axis: finds a radius up to about 190
BREADTH = 64  # pixels across: the largest alignment
_SCALES = {"gamma", "scale", "moving_variance"}  # of normalizations
DRAWS = 4  # MaxPooling2D passes the gradient of one pixel in four: four draws leave none of a row of cells out


@dataclass(frozen=True)
class Reach:
    """Alignment and receptive radius of one aligned cell, pixels."""

    alignment: int
    radius: int


def probe(model: keras.Model, *, length: int = LENGTH) -> Reach:
    """Find the alignment and the receptive radius of a network with free height and width.

    Args:
        model: (N, H, W, C) -> (N, H, W, C'). It is copied, not changed.
        length: pixels probed along each axis.

    Raises:
        ValueError: the network is not local within `length` pixels, or keeps no picture's size.
    """
    twin = _positive_twin(model)
    alignment = next((a for a in ALIGNMENTS if _keeps_size(model, a)), None)
    while alignment is not None and alignment <= ALIGNMENTS[-1]:
        radii = [_radius(twin, alignment, axis=axis, length=length) for axis in (1, 2)]
        if None not in radii:
            return Reach(alignment=alignment, radius=max(radius for radius in radii if radius is not None))
        alignment *= 2
    raise ValueError(
        f"the network keeps the size of no picture up to an alignment of {ALIGNMENTS[-1]} pixels, or an output pixel "
        f"depends on more than {length // 2} pixels around it; allowed: fully convolutional networks without global "
        "pooling or attention"
    )


def _keeps_size(model: keras.Model, alignment: int) -> bool:
    """Whether odd multiples of the alignment go through with their size kept."""
    channels = model.input_shape[-1]
    for height, width in ((3, 5), (5, 3)):
        try:
            shape = model.compute_output_shape((1, height * alignment, width * alignment, channels))
            result = model(np.zeros((1, height * alignment, width * alignment, channels), np.float32))
        except (ValueError, TypeError, RuntimeError, ArithmeticError):
            return False
        except Exception as error:  # each backend has its own type for shapes that do not fit
            if "InvalidArgument" not in type(error).__name__:
                raise
            return False
        if tuple(result.shape[1:3]) != (height * alignment, width * alignment) or len(shape) != 4:
            return False
    return True


def _radius(twin: keras.Model, alignment: int, *, axis: int, length: int) -> int | None:
    """The radius of one aligned cell along an axis; None where the network does not repeat with the alignment.

    Raises:
        ValueError: the reach touches the probe's ends.
    """
    first = length // 2 // BREADTH * BREADTH
    rows = np.arange(first, first + 2 * alignment)
    support = _support(twin, rows, axis=axis, length=length)
    low = support.argmax(axis=1)
    high = length - 1 - support[:, ::-1].argmax(axis=1)
    if low.min() == 0 or high.max() == length - 1:
        raise ValueError(
            f"an output pixel depends on more than {length // 2} pixels around it; allowed: networks without global "
            "pooling or attention"
        )
    step = np.full(alignment, alignment)
    if not (
        np.array_equal(low[alignment:] - low[:alignment], step)
        and np.array_equal(high[alignment:] - high[:alignment], step)
    ):
        return None
    last = first + alignment - 1
    return int(max(first - low[:alignment].min(), high[:alignment].max() - last, 0))


def _support(twin: keras.Model, rows: NDArray[np.intp], *, axis: int, length: int) -> NDArray[np.bool_]:
    """Which input rows have a gradient to each output row: (rows, length).

    Keras has no gradient function for all its backends. One step of plain gradient descent on an offset that starts
    at zero leaves minus the gradient there. Sample i asks for output row `rows[i]`.
    """
    shape = [len(rows), BREADTH, BREADTH]
    shape[axis] = length
    mask = np.zeros((*shape, twin.output_shape[-1]), np.float32)
    for sample, row in enumerate(rows):
        mask[(sample, row) if axis == 1 else (sample, slice(None), row)] = 1
    inputs = keras.Input(batch_shape=(*shape, twin.input_shape[-1]))
    offset = _Offset(inputs.shape)
    twin.trainable = False
    chained = keras.Model(inputs, twin(offset(inputs)))
    chained.compile(optimizer=keras.optimizers.SGD(1.0), loss=_masked_sum, jit_compile=False)
    reached = np.zeros((len(rows), length), bool)
    for draw in range(DRAWS):
        offset.offset.assign(np.zeros(inputs.shape, np.float32))
        chained.train_on_batch(np.random.default_rng(draw).random(inputs.shape, np.float32), mask)
        gradient = np.abs(keras.ops.convert_to_numpy(offset.offset))
        reached |= gradient.sum(axis=(3 - axis, 3)) > 0
    return reached


def _masked_sum(mask: Any, outputs: Any) -> Any:
    return keras.ops.sum(mask * outputs, axis=(1, 2, 3)) * float(mask.shape[0] or 1)  # Keras takes the mean


class _Offset(keras.layers.Layer):  # type: ignore[misc]  # keras has no type stubs
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.offset = self.add_weight(shape=shape, initializer="zeros", name="offset")

    def call(self, inputs: Any) -> Any:
        return inputs + self.offset


def _positive_twin(model: keras.Model) -> keras.Model:
    """A copy with positive random kernels that sum to one per output, biases zero, scales one."""
    twin = keras.models.clone_model(model)
    rng = np.random.default_rng(0)
    by_channel = {id(kernel) for layer in layers_of(twin) for kernel in _depthwise(layer)}
    weights = []
    for variable in twin.weights:
        shape = tuple(variable.shape)
        if len(shape) >= 2:
            kernel = rng.uniform(0.5, 1.0, shape)
            summed = (0, 1) if id(variable) in by_channel else tuple(range(len(shape) - 1))
            weights.append(kernel / kernel.sum(axis=summed, keepdims=True))
        else:
            weights.append(np.full(shape, 1.0 if variable.name in _SCALES else 0.0))
    twin.set_weights(weights)
    return twin


def _depthwise(layer: keras.layers.Layer) -> list[Any]:
    """The kernels of a layer that have the input channel, which no output sums over, before the last axis."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return [layer.kernel]
    return [layer.depthwise_kernel] if isinstance(layer, keras.layers.SeparableConv2D) else []

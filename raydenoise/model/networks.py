"""Build functions of the networks, in pure Keras 3: any backend runs this file.

Every network maps (N, H, W, inputs) float32 to (N, H, W, channels) float32, values in [0, 1], with height and width
multiples of its alignment. A network with a noise map takes one more input plane: sigma / 255 at every pixel.
None uses global pooling, attention or batch statistics: an output pixel depends on a bounded neighbourhood, so that
tiles can be stitched exactly.

The receptive radius is that of one aligned output cell: how many pixels beyond the cell's border an input pixel can
still change it. It is derived backwards through the network with the rules of `_conv`, `_to_coarse` and `_to_fine`;
the tests prove it by the gradient of one cell under positive random weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

DEFAULT_ARCHITECTURE = "resunet"


@dataclass(frozen=True)
class Network:
    """A Keras model with the facts that tiling needs.

    Attributes:
        model: (N, H, W, inputs) -> (N, H, W, channels).
        radius: receptive radius of one aligned cell, pixels.
        alignment: height and width of the input are multiples of this, pixels.
        noise_map: the last input plane is sigma / 255.
    """

    model: keras.Model
    radius: int
    alignment: int
    noise_map: bool


# Rules of the radius, backwards: how far, in pixels of the input's own grid, a margin of `m` pixels reaches.
def _conv(m: int, count: int = 1) -> int:
    return m + count  # a 3x3 convolution sees one pixel more on each side


def _to_coarse(m: int, factor: int = 2) -> int:
    return -(-m // factor)  # back through an up-sampling of disjoint cells: the coarse pixels that cover m fine ones


def _to_fine(m: int, factor: int = 2) -> int:
    return m * factor  # back through a down-sampling of disjoint cells


def _transposed(m: int) -> int:
    return m // 2 + 1  # 3x3 stride 2 "same": output 2i..2i+2 comes from input i, so the reach is to the left


def autoencoder(*, filters: Sequence[int] = (32, 64, 128), channels: int = 3, size: int | None = 256) -> Network:
    """The notebook's convolutional autoencoder, compiled with Adam and MSE: 22.5 kMAC per pixel.

    Conv2D 32, 64, 128 (3x3, ReLU), each followed by MaxPooling2D; Conv2DTranspose 128, 64, 32 (3x3, stride 2, ReLU);
    Conv2D 3 (3x3, sigmoid). The input is `size` pixels square, as in the notebook; None leaves it free.
    """
    inputs = keras.Input((size, size, channels))
    x = inputs
    radius = _conv(0)
    for width in filters:
        x = layers.Conv2D(width, 3, activation="relu", padding="same")(x)
        x = layers.MaxPooling2D(2, padding="same")(x)
        radius = _transposed(radius)
    for width in reversed(filters):
        x = layers.Conv2DTranspose(width, 3, strides=2, activation="relu", padding="same")(x)
        radius = _conv(_to_fine(radius))
    outputs = layers.Conv2D(channels, 3, activation="sigmoid", padding="same")(x)
    model = keras.Model(inputs, outputs, name="autoencoder")
    model.compile(optimizer="adam", loss="mse")
    return Network(model, radius=radius, alignment=2 ** len(filters), noise_map=False)


def autoencoder_wide(*, filters: Sequence[int] = (64, 128, 256), channels: int = 3, size: int | None = 256) -> Network:
    """The autoencoder with twice the filters at every level: 86 kMAC per pixel.

    The first one squeezes an 8x8x3 cell (192 values) into 128 numbers and blurs for want of room; 256 numbers are more
    than the cell holds, so that what remains is lost by the network, not by the bottleneck. Nothing else differs.
    """
    return autoencoder(filters=filters, channels=channels, size=size)


def dncnn(*, filters: int = 64, depth: int = 17, channels: int = 3) -> Network:
    """DnCNN: `depth` 3x3 convolutions that predict the noise: 557 kMAC per pixel.

    Zhang et al., "Beyond a Gaussian Denoiser", 2017, without its batch normalisation (no batch statistics here).

    Raises:
        ValueError: depth is below 2.
    """
    if depth < 2:
        raise ValueError(f"depth is {depth}; allowed: 2 or more")
    inputs = keras.Input((None, None, channels))
    x = layers.Conv2D(filters, 3, activation="relu", padding="same")(inputs)
    for _ in range(depth - 2):
        x = layers.Conv2D(filters, 3, activation="relu", padding="same")(x)
    noise = layers.Conv2D(channels, 3, padding="same", dtype="float32")(x)
    outputs = layers.Subtract(dtype="float32")([inputs, noise])
    model = keras.Model(inputs, outputs, name="dncnn")
    return Network(model, radius=_conv(0, depth), alignment=1, noise_map=False)


def unet(*, filters: Sequence[int] = (32, 64, 128, 256), channels: int = 3) -> Network:
    """U-Net of Ronneberger et al., 2015, with "same" padding and the input added to the output: 141 kMAC per pixel.

    Two 3x3 convolutions per level, MaxPooling2D down, 2x2 transposed convolution up, skips concatenated.
    """
    inputs = keras.Input((None, None, channels))
    x, skips, radius = inputs, [], 0
    for level, width in enumerate(filters):
        if level:
            skips.append(x)
            x = layers.MaxPooling2D(2)(x)
            radius = _to_coarse(_conv(radius, 2))
        x = _two_convs(x, width)
    radius = _conv(radius, 2)
    for width, skip in zip(reversed(filters[:-1]), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(width, 2, strides=2)(x)
        x = _two_convs(layers.Concatenate()([skip, x]), width)
        radius = _conv(_to_fine(radius), 2)
    residual = layers.Conv2D(channels, 1, dtype="float32")(x)
    outputs = layers.Add(dtype="float32")([inputs, residual])
    model = keras.Model(inputs, outputs, name="unet")
    return Network(model, radius=radius, alignment=2 ** (len(filters) - 1), noise_map=False)


def _two_convs(x: Any, width: int) -> Any:
    for _ in range(2):
        x = layers.Conv2D(width, 3, activation="relu", padding="same")(x)
    return x


def resunet(
    *, filters: Sequence[int] = (64, 96), depth: int = 2, bottleneck: int | None = None, channels: int = 3
) -> Network:
    """The default: a residual U-Net on space-to-depth pixels, with a noise map: 122 kMAC per pixel, 1.0 M parameters.

    Picture around 0 + sigma plane -> space-to-depth 2 -> conv 3x3 -> `depth` residual blocks per level on the way down
    and up, 2 * `depth` at the bottom, 2x2 stride-2 convolutions between levels, skips added -> conv 3x3 (zero at the
    start, so that training begins at the identity) -> depth-to-space 2 -> + picture. No bias, no normalisation.

    A block is two 3x3 convolutions. With `bottleneck`, it is 1x1 to so many channels, 3x3, 1x1 back (He et al., "Deep
    residual learning for image recognition", 2016): more channels and more blocks for the same work.

    Values of 0 to 1 would make all features follow the brightness, and a ReLU then fires everywhere or nowhere; where
    it is nowhere, it never comes back. Around 0 the network learns faster (docs/experiments.md).

    Raises:
        ValueError: fewer than one level, or depth or bottleneck below 1.
    """
    if not filters or depth < 1:
        raise ValueError(f"filters are {tuple(filters)}, depth is {depth}; allowed: one level or more, depth 1 or more")
    if bottleneck is not None and bottleneck < 1:
        raise ValueError(f"bottleneck is {bottleneck}; allowed: 1 or more")
    inputs = keras.Input((None, None, channels + 1))
    picture = Planes(channels, name="picture")(inputs)
    x = layers.Rescaling(1.0, offset=[-0.5] * channels + [0.0], dtype="float32")(inputs)
    x = keras.ops.nn.space_to_depth(x, 2)
    x = _conv3(filters[0])(x)
    skips = []
    for width in filters[1:]:
        x = _blocks(x, depth, bottleneck)
        skips.append(x)
        x = layers.Conv2D(width, 2, strides=2, use_bias=False)(x)
    x = _blocks(x, 2 * depth, bottleneck)
    radius = 0
    for width, skip in zip(reversed(filters[:-1]), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(width, 2, strides=2, use_bias=False)(x)
        x = _blocks(layers.Add()([x, skip]), depth, bottleneck)
    x = _conv3(4 * channels, kernel_initializer="zeros")(x)
    x = keras.ops.nn.depth_to_space(x, 2)
    outputs = layers.Add(dtype="float32", name="denoised")([picture, x])
    model = keras.Model(inputs, outputs, name="resunet")

    convs = 1 if bottleneck else 2  # of 3x3 in a block
    radius = _conv(0)  # the last convolution, on half-size pixels
    for _ in filters[1:]:
        radius = _to_coarse(_conv(radius, convs * depth))
    radius = _conv(radius, 2 * convs * depth)
    for _ in filters[1:]:
        radius = _conv(_to_fine(radius), convs * depth)
    radius = _to_fine(_conv(radius))
    return Network(model, radius=radius, alignment=2 ** len(filters), noise_map=True)


def _conv3(width: int, **settings: Any) -> layers.Layer:
    return _plain(width, 3, **settings)


def _plain(width: int, side: int, *, kernel_initializer: Any = "glorot_uniform") -> layers.Layer:
    # Glorot: the sums of the residual blocks begin at a spread of 1; with He initialisation it is 25.
    return layers.Conv2D(width, side, padding="same", use_bias=False, kernel_initializer=kernel_initializer)


def _blocks(x: Any, count: int, bottleneck: int | None) -> Any:
    width = x.shape[-1]
    for _ in range(count):
        # A tenth of Glorot's: a block begins near the identity, and its ReLUs live through the first steps.
        faint = keras.initializers.VarianceScaling(0.01, mode="fan_avg", distribution="uniform")
        if bottleneck:
            inner = _conv3(bottleneck)(layers.ReLU()(_plain(bottleneck, 1)(x)))
            inner = _plain(width, 1, kernel_initializer=faint)(layers.ReLU()(inner))
        else:
            inner = _conv3(width, kernel_initializer=faint)(layers.ReLU()(_conv3(width)(x)))
        x = layers.Add()([x, inner])
    return x


@keras.saving.register_keras_serializable(package="raydenoise")
class Planes(layers.Layer):  # type: ignore[misc]  # keras has no type stubs
    """The first `count` planes of (N, H, W, C), in their own precision whatever the network computes in."""

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "autocast": False, "dtype": "float32"})
        self.count = count

    def call(self, inputs: Any) -> Any:
        """Take the first planes."""
        return inputs[..., : self.count]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Name the shape of what is taken."""
        return (*input_shape[:-1], self.count)

    def get_config(self) -> dict[str, Any]:
        """Say how to build this layer again."""
        return {**super().get_config(), "count": self.count}


BUILDERS: dict[str, Callable[..., Network]] = {
    "autoencoder": autoencoder,
    "autoencoder-wide": autoencoder_wide,
    "unet": unet,
    "dncnn": dncnn,
    "resunet": resunet,
}


def build(name: str, **arguments: Any) -> Network:
    """Build a network by name.

    Raises:
        ValueError: no network has that name.
    """
    if name not in BUILDERS:
        raise ValueError(f"network {name!r} is unknown; allowed: {', '.join(BUILDERS)}")
    return BUILDERS[name](**arguments)

import keras
import numpy as np
import pytest

from raydenoise.model import networks, precision
from raydenoise.model.probe import probe

# Few filters: the reach of a network does not depend on its width.
NARROW = {
    "autoencoder": {"filters": (2, 2, 2), "size": None},
    "autoencoder-wide": {"filters": (3, 3, 3), "size": None},
    "unet": {"filters": (2, 2, 2, 2)},
    "dncnn": {"filters": 2},
    "resunet": {"filters": (2, 2)},
}
STATED = {"autoencoder": (15, 8), "autoencoder-wide": (15, 8), "unet": (46, 8), "dncnn": (17, 1), "resunet": (54, 4)}


@pytest.mark.parametrize("name", networks.BUILDERS)
def test_the_stated_radius_and_alignment_are_those_of_the_gradient(name: str) -> None:
    network = networks.build(name, **NARROW[name])
    found = probe(network.model)
    assert (found.radius, found.alignment) == (network.radius, network.alignment) == STATED[name]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resunet", {"filters": (2,), "depth": 1}),
        ("resunet", {"filters": (2, 2, 2), "depth": 1}),
        ("resunet", {"filters": (2, 2), "bottleneck": 2}),
        ("resunet", {"filters": (2, 2, 2), "depth": 1, "bottleneck": 2}),
        ("unet", {"filters": (2, 2)}),
        ("dncnn", {"filters": 2, "depth": 5}),
        ("autoencoder", {"filters": (2, 2), "size": None}),
    ],
)
def test_the_radius_follows_the_arguments(name: str, arguments: dict) -> None:
    network = networks.build(name, **arguments)
    found = probe(network.model)
    assert (found.radius, found.alignment) == (network.radius, network.alignment)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.BUILDERS)
def test_the_radius_holds_at_full_width(name: str) -> None:
    free = {"size": None} if name.startswith("autoencoder") else {}
    found = probe(networks.build(name, **free).model)
    assert (found.radius, found.alignment) == STATED[name]


def test_a_network_that_sees_everything_has_no_radius() -> None:
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True)(keras.layers.Conv2D(3, 3, padding="same")(inputs))
    model = keras.Model(inputs, keras.layers.Add()([inputs, pooled]))
    with pytest.raises(ValueError, match="without global pooling"):
        probe(model)


def test_a_reach_behind_a_normalization_by_root_mean_square_counts() -> None:
    inputs = keras.Input((None, None, 4))
    hidden = inputs
    for _ in range(3):
        branch = keras.layers.Conv2D(4, 3, padding="same")(keras.layers.RMSNormalization()(hidden))
        hidden = keras.layers.Add()([hidden, branch])
    assert probe(keras.Model(inputs, hidden), length=128).radius == 3


@pytest.mark.parametrize("separable", [False, True])
def test_the_reach_of_many_channels_one_by_one_is_found(separable: bool) -> None:
    kind = keras.layers.SeparableConv2D if separable else keras.layers.DepthwiseConv2D
    arguments = {"filters": 48} if separable else {}
    inputs = keras.Input((None, None, 48))
    hidden = inputs
    for _ in range(18):
        hidden = kind(kernel_size=3, padding="same", **arguments)(hidden)
    assert probe(keras.Model(inputs, hidden), length=128).radius == 18


def a_network_with_another() -> keras.Model:
    """A picture plus what a network of its own finds, clipped."""
    small = keras.Input((None, None, 3))
    found = keras.layers.Conv2D(3, 3, padding="same", name="inner")(small)
    picture = keras.Input((None, None, 3))
    branch = keras.layers.Conv2D(3, 3, padding="same")(keras.Model(small, found, name="network")(picture))
    return keras.Model(picture, keras.layers.ReLU(max_value=1.0)(keras.layers.Add(name="sum")([picture, branch])))


def test_a_picture_is_not_rounded_where_its_sum_is_clipped_behind() -> None:
    model = a_network_with_another()
    model.layers[2].kernel.assign(np.zeros(model.layers[2].kernel.shape))
    pixels = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(precision.with_precision(model, "bfloat16")(pixels), pixels)


def test_a_network_in_a_network_adds_its_picture_exactly_too() -> None:
    made = networks.build("resunet", filters=(4, 4), depth=1).model
    planes = keras.Input((None, None, 4))
    for outputs in (made(planes), keras.layers.ReLU(max_value=1.0)(made(keras.layers.Rescaling(1.0)(planes)))):
        half = precision.with_precision(keras.Model(planes, outputs), "bfloat16")
        pixels = np.random.default_rng(0).random((1, 8, 8, 4), np.float32)
        np.testing.assert_allclose(half(pixels), pixels[..., :3], atol=1e-7)
        within = next(layer for layer in half.layers if isinstance(layer, keras.Model))
        computing = {layer.compute_dtype for layer in within.layers if isinstance(layer, keras.layers.Conv2D)}
        assert computing == {"bfloat16"}


def test_operations_in_a_network_keep_their_types() -> None:
    pixels = keras.Input((None, None, 3))
    whole = keras.ops.cast(keras.ops.cast(pixels * 255, "int32"), "float32") / 255
    inner = keras.Model(pixels, whole, name="network")
    picture = keras.Input((None, None, 3))
    outputs = keras.layers.DepthwiseConv2D(1, depthwise_initializer="ones")(inner(picture))
    half = precision.with_precision(keras.Model(picture, outputs), "bfloat16")
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    np.testing.assert_allclose(half(values), np.floor(values * 255) / 255, atol=1e-6)


def test_networks_in_a_network_are_rebuilt_with_it() -> None:
    model = a_network_with_another()
    model.get_layer("network").trainable = False
    rebuilt = precision.rebuilt(model, precision="bfloat16")
    assert rebuilt.get_layer("network").get_layer("inner").compute_dtype == "bfloat16"
    assert rebuilt.get_layer("sum").compute_dtype == "float32"
    assert len(rebuilt.trainable_variables) == 2
    assert len(precision.rebuilt(model, precision="float32", thawed=True).trainable_variables) == 4


def test_the_autoencoder_is_the_notebooks() -> None:
    model = networks.build("autoencoder").model
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputLayer", *["Conv2D", "MaxPooling2D"] * 3, *["Conv2DTranspose"] * 3, "Conv2D"]
    assert [layer.filters for layer in model.layers if hasattr(layer, "filters")] == [32, 64, 128, 128, 64, 32, 3]
    assert model.input_shape == model.output_shape == (None, 256, 256, 3)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.loss == "mse"


def test_the_wide_autoencoder_has_twice_the_filters() -> None:
    model = networks.build("autoencoder-wide").model
    assert [layer.filters for layer in model.layers if hasattr(layer, "filters")] == [64, 128, 256, 256, 128, 64, 3]


def test_the_default_costs_what_it_says() -> None:
    network = networks.build("resunet")
    assert network.model.count_params() == 1_023_744
    assert network.noise_map
    kernels = [layer for layer in network.model.layers if layer.weights]
    per_pixel = sum(np.prod(layer.kernel.shape) / _stride(layer, kernels) ** 2 for layer in kernels)
    assert per_pixel == pytest.approx(122_000, rel=0.01)


def _stride(layer: keras.layers.Layer, kernels: list[keras.layers.Layer]) -> int:
    """Pixels of the picture per output pixel of a layer (per input pixel of a transposed one), along a side."""
    if isinstance(layer, keras.layers.Conv2DTranspose) or layer.kernel.shape[-1] == 96:
        return 4
    assert layer in kernels
    return 2


def test_the_default_begins_as_the_identity() -> None:
    picture = np.random.default_rng(0).random((1, 12, 20, 4), np.float32)
    result = keras.ops.convert_to_numpy(networks.build("resunet").model(picture))
    np.testing.assert_array_equal(result, picture[..., :3])


@pytest.mark.parametrize("name", networks.BUILDERS)
def test_networks_map_one_plane_too(name: str) -> None:
    network = networks.build(name, **NARROW[name], channels=1)
    side = network.alignment * 2
    planes = np.zeros((1, side, 2 * side, 1 + network.noise_map), np.float32)
    assert network.model(planes).shape == (1, side, 2 * side, 1)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="'vit' is unknown; allowed: autoencoder,"):
        networks.build("vit")


@pytest.mark.parametrize(("name", "arguments"), [("dncnn", {"depth": 1}), ("resunet", {"depth": 0})])
def test_too_shallow_networks_are_refused(name: str, arguments: dict) -> None:
    with pytest.raises(ValueError, match="depth is"):
        networks.build(name, **arguments)


def test_a_bottleneck_of_no_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="bottleneck is 0; allowed: 1 or more"):
        networks.build("resunet", bottleneck=0)

"""Laws of the cost: hand-computed multiplications per pixel, whatever size the network is built at."""

import keras
import pytest

from raydenoise.model import networks
from raydenoise.model.cost import layer_costs, macs_per_pixel, macs_with_halo

# 3x3 kernels. Convolutions at full, half and quarter size; transposed ones from an eighth, a quarter, half; the last.
AUTOENCODER = 9 * (3 * 32 + 32 * 64 / 4 + 64 * 128 / 16 + 128 * 128 / 64 + 128 * 64 / 16 + 64 * 32 / 4 + 32 * 3)
# On half-size pixels: 16 to 64, two blocks of two down and two up, 64 to 12; the 2x2 convolutions between the levels,
# on a quarter of them; four blocks at the bottom.
RESUNET = (9 * (16 * 64 + 8 * 64 * 64 + 64 * 12)) / 4 + (2 * 4 * 64 * 96 + 8 * 9 * 96 * 96) / 16


def cost(network: networks.Network) -> float | None:
    return macs_per_pixel(layer_costs(network.model, alignment=network.alignment))


def test_the_notebooks_autoencoder_costs_what_a_hand_finds() -> None:
    assert cost(networks.build("autoencoder")) == pytest.approx(AUTOENCODER)
    assert pytest.approx(22_500, rel=0.01) == AUTOENCODER
    assert cost(networks.build("autoencoder", size=None)) == pytest.approx(AUTOENCODER)


def test_the_default_costs_what_a_hand_finds() -> None:
    assert cost(networks.build("resunet")) == pytest.approx(RESUNET)
    assert pytest.approx(122_000, rel=0.01) == RESUNET


@pytest.mark.parametrize(("name", "thousands"), [("autoencoder-wide", 86), ("unet", 141), ("dncnn", 557)])
def test_the_other_networks_cost_what_the_models_page_says(name: str, thousands: float) -> None:
    assert cost(networks.build(name)) == pytest.approx(1000 * thousands, rel=0.01)


def test_layers_come_in_order_with_their_facts() -> None:
    network = networks.build("resunet", filters=(8, 16), depth=1)
    layers = layer_costs(network.model, alignment=network.alignment)
    assert sum(layer.parameters for layer in layers) == network.model.count_params()
    kinds = [layer.kind for layer in layers]
    assert kinds.index("SpaceToDepth") < kinds.index("Conv2D") < kinds.index("DepthToSpace") < len(kinds) - 1
    first = next(layer for layer in layers if layer.kind == "Conv2D")
    assert (first.kernel, first.channels, first.scale, first.parameters) == ((3, 3, 16, 8), 8, 0.5, 1152)
    assert first.macs == 1152 / 4
    assert layers[-1].macs == 0


def test_inner_networks_are_counted_where_their_size_is_known() -> None:
    for side, expected in ((64, 9 * 3 * 3), (None, None)):
        inside = keras.Input((side, side, 3))
        inner = keras.Model(inside, keras.layers.Conv2D(3, 3, padding="same", use_bias=False)(inside))
        inputs = keras.Input((side, side, 3))
        assert macs_per_pixel(layer_costs(keras.Model(inputs, inner(inputs)))) == expected


def test_a_layer_that_is_called_twice_makes_the_sum_unknown() -> None:
    inputs = keras.Input((None, None, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same")
    assert macs_per_pixel(layer_costs(keras.Model(inputs, shared(shared(inputs))))) is None
    free = keras.layers.BatchNormalization()
    assert macs_per_pixel(layer_costs(keras.Model(inputs, free(free(inputs))))) == 0


def test_a_sequential_in_a_network_makes_the_sum_unknown() -> None:
    inputs = keras.Input((None, None, 3))
    inner = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(3, 3, padding="same")])
    assert macs_per_pixel(layer_costs(keras.Model(inputs, inner(inputs)))) is None


def test_other_convolutions_are_counted() -> None:
    inputs = keras.Input((None, None, 3))
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(inputs)
    x = keras.layers.SeparableConv2D(8, 5, padding="same")(x)
    x = keras.layers.Dense(4)(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(6, 1, groups=2, strides=2)(x)
    x = keras.layers.UpSampling2D(2)(x)
    model = keras.Model(inputs, x)
    expected = 9 * 3 + (25 * 3 + 3 * 8) + 8 * 4 + 2 * 6 / 4
    assert macs_per_pixel(layer_costs(model, alignment=2)) == pytest.approx(expected)


def test_a_layer_that_is_not_known_makes_the_sum_unknown() -> None:
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.EinsumDense("bhwc,cd->bhwd", output_shape=(None, None, 3))(inputs))
    (layer,) = layer_costs(model)
    assert layer.macs is None
    assert macs_per_pixel([layer]) is None


def test_the_halo_is_computed_and_dropped() -> None:
    assert macs_with_halo(121.0, tile=512, halo=56) == pytest.approx(121 * (512 / 400) ** 2)
    assert macs_with_halo(121.0, tile=512, halo=0) == 121
    assert macs_with_halo(121.0, tile=112, halo=56) is None

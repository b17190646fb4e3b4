import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from raydenoise.model import bundle, networks
from raydenoise.model.card import read_card
from raydenoise.model.denoiser import Denoiser

WRITE_KERAS_2 = """
import sys, numpy as np, tf_keras as keras
from tf_keras import layers
inputs = keras.Input((256, 256, 3))
x = inputs
for width in (32, 64, 128):
    x = layers.MaxPooling2D(2, padding="same")(layers.Conv2D(width, 3, activation="relu", padding="same")(x))
for width in (128, 64, 32):
    x = layers.Conv2DTranspose(width, 3, strides=2, activation="relu", padding="same")(x)
outputs = layers.Conv2D(3, 3, activation="sigmoid", padding="same")(x)
model = keras.Model(inputs, outputs)
model.compile(optimizer="adam", loss="mse", metrics=["mse"])
model.save(sys.argv[1])
picture = np.random.default_rng(0).random((1, 256, 256, 3), np.float32)
np.save(sys.argv[2], model.predict(picture, verbose=0))
"""


def save_small(folder: Path, **card: object) -> None:
    network = networks.build("resunet", filters=(4, 4), depth=1)
    written = bundle.save(
        network,
        folder,
        name="small",
        architecture="resunet",
        arguments={"filters": [4, 4], "depth": 1},
        sigma_range=(0.0, 75.0),
        training={"steps": 0},
        scores={},
    )
    if card:
        bundle.write_card(replace(written, **card), folder)


def test_a_bundle_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save_small(tmp_path)
    loaded = bundle.load(tmp_path)
    card = read_card(tmp_path)
    assert loaded.card == card
    network = networks.build("resunet", **card.arguments)
    assert (card.alignment, card.radius, card.channels, card.noise_map) == (4, network.radius, 3, True)
    assert card.radius <= card.halo < card.radius + card.alignment
    assert card.halo % card.alignment == 0
    assert loaded.model.input_shape == (None, None, None, 4)
    assert {"keras", keras.backend.backend()} <= card.versions.keys()


def test_a_damaged_model_file_is_noticed(tmp_path: Path) -> None:
    save_small(tmp_path)
    with (tmp_path / "model.keras").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ValueError, match="sha256 differs"):
        bundle.load(tmp_path)


@pytest.mark.parametrize(
    ("facts", "allowed"),
    [
        ({"channels": 1}, "2 channels to 1, sides free"),
        ({"noise_map": False, "sigma_range": None}, "3 channels to 3, sides free"),
    ],
)
def test_a_card_of_another_network_is_noticed(tmp_path: Path, facts: dict[str, object], allowed: str) -> None:
    save_small(tmp_path, **facts)
    with pytest.raises(ValueError, match=rf"small maps \(None.*4\) to .*3\); allowed by its card: {allowed}"):
        bundle.load(tmp_path)


def test_a_bare_file_of_any_name_gets_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.keras"
    networks.build("dncnn", filters=4, depth=2).model.save(path)
    bundle.write(bundle.load(path), tmp_path / "bundle")
    assert read_card(tmp_path / "bundle").name == "a_b"


def test_a_bare_keras_file_is_inspected(tmp_path: Path) -> None:
    path = tmp_path / "mine.keras"
    networks.build("autoencoder", filters=(4, 4, 4)).model.save(path)
    card = bundle.load(path).card
    assert (card.name, card.architecture, card.channels, card.noise_map) == ("mine", "unknown", 3, False)
    assert (card.alignment, card.radius, card.halo, card.fixed_size) == (8, 15, 16, None)
    assert card.sigma_range is None


def test_an_inspected_file_written_as_a_bundle_denoises_alike(tmp_path: Path) -> None:
    path = tmp_path / "mine.keras"
    networks.build("dncnn", filters=4, depth=4).model.save(path)
    bundle.write(bundle.load(path), tmp_path / "bundle")
    picture = np.random.default_rng(0).random((30, 41, 3), np.float32)
    np.testing.assert_array_equal(Denoiser.load(path)(picture), Denoiser.load(tmp_path / "bundle")(picture))


def test_a_keras_2_autoencoder_h5_loads_and_computes_alike(tmp_path: Path) -> None:
    path, expected = tmp_path / "autoencoder.h5", tmp_path / "expected.npy"
    subprocess.run([sys.executable, "-c", WRITE_KERAS_2, path, expected], check=True, capture_output=True)
    loaded = bundle.load(path)
    assert (loaded.card.alignment, loaded.card.halo, loaded.card.fixed_size) == (8, 16, None)
    picture = np.random.default_rng(0).random((1, 256, 256, 3), np.float32)
    result = keras.ops.convert_to_numpy(loaded.model(picture))
    np.testing.assert_allclose(result, np.load(expected), atol=1e-5)
    assert Denoiser.load(path)(picture[0, :100, :77]).shape == (100, 77, 3)


def test_a_network_of_one_input_size_is_tiled_by_that_size(tmp_path: Path) -> None:
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(4)(x)
    outputs = keras.layers.Reshape((32, 32, 3))(keras.layers.Dense(32 * 32 * 3)(x))
    path = tmp_path / "dense.keras"
    keras.Model(inputs, outputs).save(path)
    denoiser = Denoiser.load(path)
    assert denoiser.card.fixed_size == denoiser.grid.tile == 32
    assert denoiser(np.zeros((70, 9, 3), np.float32)).shape == (70, 9, 3)
    with pytest.raises(ValueError, match="tile is 64; allowed for dense: 32"):
        Denoiser.load(path, tile=64)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, suffix: str) -> None:
    inputs = keras.Input((None, None, 3))
    path = tmp_path / f"hostile{suffix}"
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save(path)
    with pytest.raises(ValueError, match="cannot be loaded as a Keras model"):
        bundle.load(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.keras"
    path.write_text("hello")
    with pytest.raises(ValueError, match="cannot be loaded as a Keras model"):
        bundle.load(path)


def test_a_network_that_makes_no_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.keras"
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]).save(path)
    with pytest.raises(ValueError, match=r"allowed: one \(N, H, W, C\)"):
        bundle.load(path)


def test_channels_that_no_picture_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "five.keras"
    keras.Sequential([keras.Input((None, None, 5)), keras.layers.Conv2D(5, 3, padding="same")]).save(path)
    with pytest.raises(ValueError, match="5 channels to 5; allowed for a file without a card"):
        bundle.load(path)

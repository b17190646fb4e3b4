import dataclasses
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydenoise.model import bundle, networks, precision
from raydenoise.model.card import Card
from raydenoise.model.denoiser import Denoiser
from raydenoise.model.probe import Reach


def random_bundle(name: str, **arguments: object) -> bundle.Bundle:
    """A network with random weights whose output leaves [0, 1] nowhere near, so that clipping hides no difference."""
    network = networks.build(name, **arguments)
    rng = np.random.default_rng(1)
    for variable in network.model.weights:
        fan_in = max(1, int(np.prod(variable.shape[:-1])))
        last = variable.shape[-1] == network.model.output_shape[-1] or variable is network.model.weights[-1]
        variable.assign(rng.normal(0, (0.05 if last else 0.6) / np.sqrt(fan_in), variable.shape))
    reach = Reach(alignment=network.alignment, radius=network.radius)
    card = Card(
        name=name,
        architecture=name,
        arguments=arguments,
        channels=network.model.output_shape[-1],
        noise_map=network.noise_map,
        sigma_range=(0.0, 75.0) if network.noise_map else None,
        alignment=network.alignment,
        radius=network.radius,
        halo=bundle.halo(reach),
        fixed_size=None,
        sha256="",
    )
    return bundle.Bundle(network.model, card)


RESUNET = random_bundle("resunet", filters=(8, 8))
AUTOENCODER = random_bundle("autoencoder", filters=(4, 4, 4), size=None)
DNCNN_GREY = random_bundle("dncnn", filters=4, depth=4, channels=1)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.3, 0.7, (height, width, channels)).astype(np.float32)


def make(made: bundle.Bundle, **options: object) -> Denoiser:
    return Denoiser(made, precision="float32", **options)


WHOLE = {id(made): make(made, tile=1024) for made in (RESUNET, AUTOENCODER)}
TILED = {
    (id(made), tile, batch): make(made, tile=tile, batch_tiles=batch)
    for made, tiles in ((RESUNET, (116, 132, 180)), (AUTOENCODER, (40, 64, 120)))
    for tile in tiles
    for batch in (1, 3)
}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tiled_equals_whole(data: st.DataObject) -> None:
    made, tile, batch = data.draw(st.sampled_from(sorted(TILED)))
    height, width = data.draw(st.tuples(st.integers(1, 260), st.integers(1, 260)))
    noisy = picture(height, width, seed=height * 1000 + width)
    tiled = TILED[made, tile, batch].denoise(noisy, sigma=25)
    whole = WHOLE[made].denoise(noisy, sigma=25)
    assert whole.tiles == 1
    if max(height, width) > tile:
        assert tiled.tiles > 1
    assert np.abs(whole.image - noisy).max() > 1e-3, "the network does something"
    assert 0 < whole.image.min() <= whole.image.max() < 1, "nothing is hidden by clipping"
    np.testing.assert_allclose(tiled.image, whole.image, atol=1e-5, rtol=0)


def test_a_halo_too_small_is_seen() -> None:
    """The exactness test can fail: with half the halo the autoencoder's tiles differ from the whole."""
    short = bundle.Bundle(AUTOENCODER.model, Card(**{**vars(AUTOENCODER.card), "halo": 0}))
    noisy = picture(100, 90)
    assert np.abs(make(short, tile=40)(noisy) - WHOLE[id(AUTOENCODER)](noisy)).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tile"), [("resunet", 116), ("autoencoder", 40), ("unet", 104), ("dncnn", 64)])
def test_tiled_equals_whole_at_full_width(name: str, tile: int) -> None:
    free = {"size": None} if name == "autoencoder" else {}
    made = random_bundle(name, **free)
    for height, width in ((1, 1), (7, 130), (201, 157)):
        noisy = picture(height, width)
        expected = make(made, tile=1024)(noisy, sigma=25)
        np.testing.assert_allclose(make(made, tile=tile)(noisy, sigma=25), expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends compile per size")
def test_one_trace_serves_every_size() -> None:
    denoiser = make(RESUNET, tile=116)
    for height, width in ((1, 1), (50, 70), (130, 300)):
        denoiser(picture(height, width), sigma=10)
    assert denoiser._predict.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_the_rounded_floats(dtype: type) -> None:
    most = np.iinfo(dtype).max
    noisy = np.rint(picture(40, 60) * most).astype(dtype)
    expected = make(RESUNET)(noisy.astype(np.float32) / np.float32(most), sigma=20)
    result = make(RESUNET)(noisy, sigma=20)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.rint(expected * most).astype(dtype))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_kind_of_picture_keeps_its_shape_and_alpha(channels: int) -> None:
    noisy = picture(20, 31, channels)
    for made in (RESUNET, DNCNN_GREY):
        result = make(made)(noisy, sigma=20)
        assert result.shape == noisy.shape
        assert result.dtype == noisy.dtype
        if channels in (2, 4):
            np.testing.assert_array_equal(result[..., -1], noisy[..., -1])


def test_grey_is_the_mean_of_three_equal_planes() -> None:
    grey = picture(24, 33, 1)
    expected = make(RESUNET)(np.repeat(grey, 3, axis=-1), sigma=20).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(make(RESUNET)(grey, sigma=20), expected, atol=1e-6)


def test_a_grey_network_takes_the_planes_of_a_colour_one_by_one() -> None:
    noisy = picture(24, 33)
    planes = [make(DNCNN_GREY)(noisy[..., [index]]) for index in range(3)]
    np.testing.assert_allclose(make(DNCNN_GREY)(noisy), np.concatenate(planes, axis=-1), atol=1e-6)


def test_strength_blends() -> None:
    noisy = picture(24, 33)
    full = make(RESUNET)(noisy, sigma=20)
    np.testing.assert_array_equal(make(RESUNET)(noisy, sigma=20, strength=0.0), noisy)
    half = make(RESUNET)(noisy, sigma=20, strength=0.5)
    np.testing.assert_allclose(half, (noisy + full) / 2, atol=1e-6)


@pytest.mark.parametrize(("made", "tile"), [(RESUNET, 116), (AUTOENCODER, 40)])
@pytest.mark.parametrize("tta", [2, 4, 8])
def test_a_tiled_self_ensemble_equals_the_whole_one(made: bundle.Bundle, tile: int, tta: int) -> None:
    noisy = picture(131, 182)
    tiled, whole = TILED[id(made), tile, 3].denoise(noisy, sigma=25, tta=tta), WHOLE[id(made)](noisy, sigma=25, tta=tta)
    assert tiled.tiles > 1
    np.testing.assert_allclose(tiled.image, whole, atol=1e-5, rtol=0)


def test_a_self_ensemble_is_the_mean_over_turned_pictures() -> None:
    noisy, denoiser = picture(24, 36), WHOLE[id(RESUNET)]  # multiples of 4: no side is mirrored
    turned = [np.rot90(noisy, turns) for turns in (0, 1)]
    views = [view[::down, ::across] for view in turned for down in (1, -1) for across in (1, -1)]
    results = [denoiser(np.ascontiguousarray(view), sigma=25) for view in views]
    back = [
        result[::down, ::across]
        for result, (down, across) in zip(results, [(1, 1), (1, -1), (-1, 1), (-1, -1)] * 2, strict=True)
    ]
    back[4:] = [np.rot90(result, -1) for result in back[4:]]
    for tta in (2, 4, 8):
        np.testing.assert_allclose(denoiser(noisy, sigma=25, tta=tta), np.mean(back[:tta], axis=0), atol=1e-5)
    assert np.abs(denoiser(noisy, sigma=25, tta=8) - back[0]).max() > 1e-4


@pytest.mark.parametrize("tta", [2, 4, 8])
def test_a_self_ensemble_of_a_network_that_turns_with_the_picture_changes_nothing(tta: int) -> None:
    network = networks.build("dncnn", filters=4, depth=3)
    rng = np.random.default_rng(0)
    for variable in network.model.weights:
        if len(variable.shape) == 4:
            across = rng.normal(0, 0.1, variable.shape[2:])
            ring = np.array([[0.2, 0.5, 0.2], [0.5, 1.0, 0.5], [0.2, 0.5, 0.2]])  # the same from all eight sides
            variable.assign(ring[:, :, None, None] * across)
    made = bundle.Bundle(network.model, dataclasses.replace(DNCNN_GREY.card, channels=3))
    noisy = picture(25, 33)
    plain = make(made)(noisy)
    assert np.abs(plain - noisy).max() > 1e-3
    np.testing.assert_allclose(make(made)(noisy, tta=tta), plain, atol=1e-6)


def test_values_outside_are_taken_and_the_output_is_clipped() -> None:
    noisy = picture(24, 33) * 3 - 1
    result = make(RESUNET)(noisy, sigma=20)
    assert (result.min(), result.max()) == (0, 1)
    assert np.abs(result - make(RESUNET)(np.clip(noisy, 0, 1), sigma=20)).max() > 0.01


def test_an_estimated_sigma_is_limited_a_given_one_is_checked() -> None:
    noisy = np.random.default_rng(0).normal(0.5, 0.5, (64, 80, 3)).astype(np.float32)  # sigma 127
    assert make(RESUNET).denoise(noisy).sigma == 75.0
    with pytest.raises(ValueError, match="sigma is 76; allowed for resunet: auto, or 0 to 75"):
        make(RESUNET)(noisy, sigma=76)
    with pytest.raises(ValueError, match="sigma is -1; allowed"):
        make(RESUNET)(noisy, sigma=-1)


def test_sigma_is_nothing_to_a_network_without_noise_map() -> None:
    assert make(AUTOENCODER).denoise(picture(20, 30), sigma=500).sigma is None


def test_sigma_matters_to_a_network_with_noise_map() -> None:
    noisy = picture(24, 33)
    assert np.abs(make(RESUNET)(noisy, sigma=5) - make(RESUNET)(noisy, sigma=70)).max() > 1e-4


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(name: str) -> None:
    noisy = picture(60, 81)
    expected = make(RESUNET)(noisy, sigma=25)
    result = Denoiser(RESUNET, precision=name)(noisy, sigma=25)
    difference = np.abs(result - expected)
    assert 0 < difference.max() < 0.02, "another precision was used, and it is close"


def test_a_picture_and_nothing_else_is_taken() -> None:
    denoiser = make(RESUNET)
    with pytest.raises(ValueError, match=r"array of shape \(4, 5\); allowed: \(H, W, C\)"):
        denoiser(np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match=r"shape \(0, 5, 3\)"):
        denoiser(np.zeros((0, 5, 3), np.float32))
    with pytest.raises(ValueError, match=r"shape \(4, 5, 7\)"):
        denoiser(np.zeros((4, 5, 7), np.float32))
    with pytest.raises(ValueError, match="float64; allowed: uint8, uint16, or float32"):
        denoiser(np.zeros((4, 5, 3)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        denoiser(np.full((4, 5, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"strength is 1.5; allowed: 0 to 1"):
        denoiser(picture(4, 5), sigma=1, strength=1.5)
    with pytest.raises(ValueError, match="tta is 3; allowed: 1, 2, 4, 8"):
        denoiser(picture(4, 5), sigma=1, tta=3)


@pytest.mark.parametrize("tile", [115, 110, 0, -4])
def test_a_tile_that_does_not_fit_is_refused(tile: int) -> None:
    with pytest.raises(ValueError, match=f"tile is {tile}; allowed for this model: a multiple of 4, at least 116"):
        make(RESUNET, tile=tile)


def test_other_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="batch_tiles is 0; allowed: 1 or more"):
        make(RESUNET, batch_tiles=0)
    with pytest.raises(ValueError, match="precision is 'int8'; allowed: auto, float32"):
        Denoiser(RESUNET, precision="int8")
    with pytest.raises(ValueError, match="model 'nowhere' is not found; allowed: "):
        Denoiser.load("nowhere")


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("vendor_id : GenuineIntel\nflags\t\t: avx512f avx512_bf16\n", False),
        ("vendor_id : GenuineIntel\nflags\t\t: avx512f avx512_bf16 amx_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags\t\t: avx512f avx512_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags\t\t: avx2\n", False),
        ("CPU implementer : 0x41\n", False),
    ],
)
def test_auto_knows_which_processors_are_fast_at_bfloat16(tmp_path: Path, text: str, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert precision._fast_bfloat16(tmp_path / "cpuinfo") is fast


def test_auto_is_one_of_the_formats() -> None:
    assert precision.resolve("auto") in ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 65535, 3), (65535, 1, 1), (2, 3, 4)])
def test_the_longest_and_the_smallest_pictures_are_tiled(tiny_bundle: Path, shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tracemalloc.start()
    result = Denoiser.load(tiny_bundle, precision="float32").denoise(image, sigma=20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.image.shape == shape
    assert max(shape) / 512 <= result.tiles <= max(shape) / 400 + 1
    assert peak < 100 << 20  # bytes: some windows, not a picture that is square

from pathlib import Path

import keras
import numpy as np
import PIL.Image
import pytest
import skimage.data

from raydenoise.model import bundle
from raydenoise.model.denoiser import Denoiser
from raydenoise.pipelines import train
from raydenoise.training import loop
from raydenoise.training.batches import TrainingBatches, mean_psnr, training_pair, validation_set
from raydenoise.training.muon import ConvMuon
from raydenoise.training.recipe import Recipe, optimizer

SMALL = {"architecture": "resunet", "arguments": {"filters": (8, 8), "depth": 1}, "patch": 32, "batch_size": 4}


def pictures(count: int = 4) -> list[np.ndarray]:
    return [skimage.data.coffee()[y * 60 : y * 60 + 60, 100:180] for y in range(count)]


def test_a_sample_is_a_function_of_seed_epoch_and_index() -> None:
    def batch(seed: int, epoch: int, index: int) -> np.ndarray:
        return TrainingBatches(pictures(), recipe=Recipe(**SMALL, seed=seed), noise_map=True, epoch=epoch)[index][0]

    np.testing.assert_array_equal(batch(1, 2, 3), batch(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert (batch(1, 2, 3) != batch(*other)).any()


def test_batches_have_the_shapes_that_the_network_takes() -> None:
    noisy, clean = TrainingBatches(pictures(), recipe=Recipe(**SMALL), noise_map=True)[0]
    assert (noisy.shape, clean.shape) == ((4, 32, 32, 4), (4, 32, 32, 3))
    assert noisy.dtype == clean.dtype == np.float32
    assert (clean.min(), clean.max()) >= (0, 0)
    assert clean.max() <= 1


def pair(seed: int = 0, **recipe: object) -> tuple[np.ndarray, np.ndarray]:
    patch = skimage.data.astronaut()[:128, :128]
    rng = np.random.default_rng(seed)
    return training_pair(patch, recipe=Recipe(**recipe), noise_map=True, rng=rng)


def test_the_plane_tells_the_noise_that_was_added() -> None:
    for seed in range(5):
        noisy, clean = pair(seed, grey_share=0.0, quantized_share=0.0, sigma_range=(10.0, 60.0))
        assert np.std(noisy[..., :3] - clean) == pytest.approx(noisy[0, 0, 3], rel=0.03)
        assert (noisy[..., 3] == noisy[0, 0, 3]).all()


def test_a_grey_sample_has_one_noise_for_three_planes() -> None:
    noisy, clean = pair(grey_share=1.0)
    for values in (noisy[..., :3], clean):
        assert (values[..., :1] == values).all()


def test_a_quantized_sample_holds_what_a_file_holds() -> None:
    noisy = pair(quantized_share=1.0, sigma_range=(50.0, 75.0))[0][..., :3]
    np.testing.assert_allclose(noisy * 255, np.rint(noisy * 255), atol=1e-4)
    assert (noisy.min(), noisy.max()) == (0, 1)


def test_muon_moves_wide_kernels_along_every_direction_alike() -> None:
    kernel = keras.Variable(np.zeros((3, 3, 32, 24), np.float32))
    thin = keras.Variable(np.zeros((3, 3, 32, 12), np.float32))
    muon = ConvMuon(1.0, weight_decay=0.0, adam_weight_decay=0.0, adam_lr_ratio=0.5)
    gradient = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32) * np.logspace(-1, 1, 24)
    muon.apply(
        [keras.ops.convert_to_tensor(g) for g in (gradient.astype(np.float32), gradient[..., :12])], [kernel, thin]
    )
    step = keras.ops.convert_to_numpy(kernel).reshape(-1, 24)
    values = np.linalg.svd(step, compute_uv=False) / (0.2 * len(step) ** 0.5)
    assert (values.min(), values.max()) > (0.6, 0.6)  # five Newton-Schulz steps bring them to 0.7..1.2 (Jordan, 2024)
    assert values.max() < 1.3
    assert np.sqrt(np.mean(step**2)) == pytest.approx(0.2, rel=0.15)
    assert (gradient.reshape(-1, 24) * step).sum() < 0  # downhill
    assert np.median(np.abs(keras.ops.convert_to_numpy(thin))) == pytest.approx(0.5, rel=1e-3)  # Adam's first step


def test_training_in_bfloat16_ships_float32(tmp_path: Path) -> None:
    recipe = Recipe(**SMALL, precision="bfloat16", epochs=1, steps_per_epoch=2, warmup_steps=1)
    network = loop.fit(recipe, pictures(), [skimage.data.astronaut()], folder=tmp_path / "run")
    convolutions = [layer for layer in network.model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.compute_dtype for layer in convolutions} == {"bfloat16"}
    assert {weight.dtype for weight in network.model.weights} == {"float32"}


def test_the_schedule_rises_and_falls() -> None:
    rate = optimizer(Recipe(epochs=2, steps_per_epoch=500, warmup_steps=100, learning_rate=1e-3))._learning_rate
    values = [float(rate(step)) for step in (0, 50, 100, 550, 1000)]
    assert values == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0], abs=1e-6)


def test_mean_psnr_is_that_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    clean = np.random.default_rng(0).random((2, 8, 9, 3), np.float32)
    noisy = clean + np.float32(0.1)
    expected = [peak_signal_noise_ratio(a, np.clip(b, 0, 1), data_range=1) for a, b in zip(clean, noisy, strict=True)]
    result = keras.ops.convert_to_numpy(mean_psnr(clean, noisy))
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_training_lowers_the_loss_and_resumes_where_it_was(tmp_path: Path) -> None:
    recipe = Recipe(
        **SMALL, optimizer="adamw", epochs=2, steps_per_epoch=40, warmup_steps=5, learning_rate=3e-3, ema=0.9
    )
    held_out = [skimage.data.astronaut()[:200, :210]]
    whole = loop.fit(recipe, pictures(), held_out, folder=tmp_path / "whole")

    with pytest.MonkeyPatch.context() as patch:  # the same run, stopped after its first epoch

        def stop(*_: object) -> None:
            save(*_)
            raise KeyboardInterrupt

        save = loop._save
        patch.setattr(loop, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(recipe, pictures(), held_out, folder=tmp_path / "parts")
    resumed = loop.fit(recipe, pictures(), held_out, folder=tmp_path / "parts")

    lines = (tmp_path / "parts" / loop.LOG).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1"]
    for one, other in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    noisy, clean = validation_set(held_out, noise_map=True)
    before, after = (
        float(np.mean(keras.ops.convert_to_numpy(mean_psnr(clean, result))))
        for result in (noisy[..., :3], resumed.model.predict(noisy, verbose=0))
    )
    assert after > before + 0.3, "even a short training gains on a held-out picture"
    assert loop.spent_seconds(tmp_path / "parts") > 0


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    recipe = Recipe(**SMALL, epochs=1, steps_per_epoch=5, learning_rate=float("nan"), warmup_steps=1)
    with pytest.raises(RuntimeError, match="NaN or Inf"):
        loop.fit(recipe, pictures(), [skimage.data.astronaut()], folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0; allowed: 1 or more"),
        ({"grey_share": 1.5}, "grey_share is 1.5; allowed: 0 to 1"),
        ({"sigma_range": (9.0, 3.0)}, r"sigma_range is \(9.0, 3.0\); allowed: 0 <= low <= high"),
        ({"loss": "l2"}, "loss is 'l2'; allowed: l1, mse"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; allowed: adam, adamw, muon"),
        ({"precision": "float16"}, "precision is 'float16'; allowed: float32, bfloat16"),
    ],
)
def test_a_recipe_out_of_range_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_pictures_smaller_than_the_patch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 4 training pictures are smaller than the patch of 64 pixels"):
        loop.fit(Recipe(patch=64), [np.zeros((70, 80, 3), np.uint8)] * 3 + pictures(1), pictures(), folder=tmp_path)


def test_without_a_large_held_out_picture_nothing_starts() -> None:
    with pytest.raises(ValueError, match="none of the 4 validation pictures is 192 pixels"):
        validation_set(pictures(), noise_map=True)


def test_the_command_makes_a_bundle_from_folders(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        picture = PIL.Image.fromarray(skimage.data.astronaut()[index * 50 : index * 50 + 200, :220])
        picture.save(tmp_path / "pictures" / f"{index}.png")
    PIL.Image.fromarray(skimage.data.camera()).save(tmp_path / "pictures" / "grey.png")
    options = ["--patch", "32", "--batch-size", "2", "--epochs", "1", "--steps-per-epoch", "2", "--warmup-steps", "1"]
    folder = str(tmp_path / "pictures")
    status = train.main(["--pictures", folder, "--shrunk", folder, "--output", str(tmp_path / "run"), *options])
    assert status == 0
    card = bundle.load(tmp_path / "run" / "bundle").card
    assert card.training["command"].startswith("python -m raydenoise.pipelines.train --pictures")
    assert card.training["pictures"] == 6
    assert (card.architecture, card.sigma_range, card.halo) == ("resunet", (0.0, 75.0), 56)
    assert Denoiser.load(tmp_path / "run" / "bundle")(skimage.data.coffee()[:30, :40]).shape == (30, 40, 3)

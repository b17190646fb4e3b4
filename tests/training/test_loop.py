"""Laws of the loop: what is due when, resuming, averaging, freezing, and a loss that is no number."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from raydenoise.model.networks import Network, build
from raydenoise.training import loop, state
from raydenoise.training.batches import Batch, Sample, training_batch
from raydenoise.training.recipe import Recipe
from raydenoise.training.step import LocalEngine, freeze_encoder

RECIPE = Recipe(steps=40, batch_size=4, patch=32, optimizer="adamw", learning_rate=3e-3, warmup_steps=5, ema=0.9)
CADENCE = loop.Cadence(report=5, checkpoint=10, validate=20)


def engine(recipe: Recipe = RECIPE) -> LocalEngine:
    import keras

    keras.utils.set_random_seed(0)
    return LocalEngine(build("resunet", filters=(8, 8), depth=1), recipe)


def batches(recipe: Recipe = RECIPE, *, first: int = 0) -> Iterator[Batch]:
    picture = skimage.data.coffee()[:32, 100:132]
    for step in range(first, recipe.steps):
        samples = [Sample(picture, epoch=0, patch=step * 4 + index) for index in range(4)]
        yield training_batch(samples, recipe=recipe, inputs=4, channels=3)


def train(
    trained: LocalEngine, recipe: Recipe = RECIPE, *, first: int = 0, folder: Path | None = None
) -> list[loop.Progress]:
    reports: list[loop.Progress] = []

    def report(progress: loop.Progress) -> None:
        reports.append(progress)
        if folder is not None and progress.checkpoint and progress.step == 10:
            state.save(folder, trained, state.Facts(progress.step, progress.seconds, {"psnr": 30.0}))

    loop.train(
        trained,
        batches(recipe, first=first),
        recipe=recipe,
        cadence=CADENCE,
        first=first,
        seconds=0.0,
        on_report=report,
    )
    return reports


def weights(trained: LocalEngine) -> list[np.ndarray]:
    return [np.asarray(value) for value in (*trained.model.get_weights(), *trained.averaged.get_weights())]


def test_reports_checkpoints_and_validations_come_when_they_are_due() -> None:
    reports = train(engine(replace(RECIPE, steps=23)), replace(RECIPE, steps=23))
    assert [progress.step for progress in reports] == [5, 10, 15, 20, 23]
    assert [progress.step for progress in reports if progress.checkpoint] == [10, 20, 23]
    assert [progress.step for progress in reports if progress.validated] == [20, 23]
    assert all(progress.patches_per_s > 0 for progress in reports)
    assert 0 < reports[-1].learning_rate < reports[1].learning_rate, "of the last step: a cosine is 0 after it"


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = engine()
    losses = [progress.loss for progress in train(whole, folder=tmp_path)]
    assert losses[-1] < losses[0]
    resumed = engine(replace(RECIPE, seed=5))
    facts = state.load(tmp_path, resumed)
    assert (facts.step, facts.psnr) == (10, {"psnr": 30.0})
    assert facts.seconds > 0
    again = [progress.loss for progress in train(resumed, first=facts.step)]
    assert again == losses[2:]
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    state.save(tmp_path, engine(), state.Facts())
    other = LocalEngine(build("resunet", filters=(8, 16), depth=1), RECIPE)
    with pytest.raises(ValueError, match="is a checkpoint of another network or optimizer"):
        state.load(tmp_path, other)


def test_the_averaged_weights_of_a_checkpoint_can_be_read_alone(tmp_path: Path) -> None:
    trained = engine()
    train(trained, folder=tmp_path)
    arrays, facts = state.averaged(tmp_path, count=len(trained.averaged.weights))
    assert facts.step == 10
    assert [array.shape for array in arrays] == [tuple(weight.shape) for weight in trained.averaged.weights]


def test_without_an_average_the_copy_holds_the_weights_themselves() -> None:
    recipe = replace(RECIPE, ema=0.0, steps=6)
    trained = engine(recipe)
    train(trained, recipe)
    for one, other in zip(trained.model.get_weights(), trained.averaged.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32() -> None:
    import keras

    trained = engine(replace(RECIPE, precision="bfloat16"))
    layers = [layer for layer in trained.model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.compute_dtype for layer in layers} == {"bfloat16"}
    assert {weight.dtype for weight in trained.averaged.weights} == {"float32"}
    assert {layer.compute_dtype for layer in trained.averaged.layers} == {"float32"}


def test_a_frozen_encoder_stays_and_the_rest_moves() -> None:
    network = build("resunet", filters=(8, 8), depth=1)
    freeze_encoder(network.model)
    trained = LocalEngine(network, RECIPE)
    before = [np.copy(array) for array in trained.model.get_weights()]
    train(trained)
    moved = [bool((one != other).any()) for one, other in zip(before, trained.model.get_weights(), strict=True)]
    names = [weight.path for weight in trained.model.weights]
    first = next(index for index, name in enumerate(names) if "conv2d_transpose" in name)
    assert not any(moved[:first])
    assert all(moved[first:])


def test_a_network_without_an_encoder_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="freeze_encoder: the network has no encoder; allowed: networks with an up-"):
        freeze_encoder(build("dncnn", filters=8, depth=3).model)


def test_a_loss_that_is_no_number_stops_before_anything_is_kept() -> None:
    def poisoned() -> Iterator[Batch]:
        for step, (noisy, clean) in enumerate(batches()):
            yield (noisy * np.float32(np.nan if step == 12 else 1)), clean

    trained = engine()
    seen: list[int] = []
    with pytest.raises(loop.DivergedError, match="the loss became nan within the last 5 steps before step 15"):
        loop.train(
            trained,
            poisoned(),
            recipe=RECIPE,
            cadence=CADENCE,
            first=0,
            seconds=0.0,
            on_report=lambda progress: seen.append(progress.step),
        )
    assert seen == [5, 10]


def test_weights_that_are_no_numbers_are_not_kept_though_the_loss_was_one() -> None:
    class Spoiled(LocalEngine):
        def step(self, noisy: np.ndarray, clean: np.ndarray) -> float:
            super().step(noisy, clean)
            if int(self.optimizer.iterations) == 20:
                self.model.weights[0].assign(np.full(self.model.weights[0].shape, np.nan))
            return 0.5

    seen: list[int] = []
    with pytest.raises(loop.DivergedError, match="a weight became nan or infinite by step 20"):
        loop.train(
            Spoiled(build("resunet", filters=(8, 8), depth=1), RECIPE),
            batches(),
            recipe=RECIPE,
            cadence=CADENCE,
            first=0,
            seconds=0.0,
            on_report=lambda progress: seen.append(progress.step),
        )
    assert seen == [5, 10, 15]


def test_batches_that_end_early_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="the batches ended at step 3 of 40"):
        loop.train(
            engine(),
            itertools.islice(batches(), 3),
            recipe=RECIPE,
            cadence=CADENCE,
            first=0,
            seconds=0.0,
            on_report=lambda _: None,
        )


def test_a_resumed_run_draws_the_dropout_of_an_undisturbed_one(tmp_path: Path) -> None:
    import keras

    def dropping() -> LocalEngine:
        keras.utils.set_random_seed(0)
        pixels = keras.Input((None, None, 4))
        kept = keras.layers.Dropout(0.5, seed=1)(keras.layers.Conv2D(8, 3, padding="same")(pixels))
        model = keras.Model(pixels, keras.layers.Conv2D(3, 3, padding="same")(kept))
        return LocalEngine(Network(model, noise_map=True, alignment=1, radius=2), RECIPE)

    whole, resumed = dropping(), dropping()
    train(whole, folder=tmp_path)
    assert state.load(tmp_path, resumed).step == 10
    train(resumed, first=10)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)

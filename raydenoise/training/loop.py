"""The fit loop of one process, on any Keras backend: knows neither ray nor storage."""

import csv
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras

from raydenoise.model.networks import Network, build
from raydenoise.model.precision import rebuilt
from raydenoise.training.batches import Picture, TrainingBatches, mean_psnr, validation_set
from raydenoise.training.recipe import Recipe, loss, optimizer

STATE = "state.weights.h5"  # raw weights and optimizer state (moments, moving average, step)
LOG = "epochs.csv"
CLOCK = "seconds.txt"  # wall time spent so far, over all starts


def fit(recipe: Recipe, train: Sequence[Picture], validation: Sequence[Picture], *, folder: Path) -> Network:
    """Train a network and return it with the moving average of its weights.

    After every epoch `folder` holds the state to resume from and one more line of `epochs.csv` (loss, validation PSNR
    of the moving average in dB). Called again on the same folder, the run goes on after its last full epoch.

    Args:
        recipe: what to do.
        train: (H, W, 3) uint8 pictures, at least `recipe.patch` pixels high and wide.
        validation: pictures to measure on, never trained on.
        folder: local, made where it is missing.

    Raises:
        ValueError: a training picture is smaller than the patch, or no validation picture is large enough.
        RuntimeError: the loss became NaN or infinite; the last good state is kept.
    """
    small = sum(min(picture.shape[:2]) < recipe.patch for picture in train)
    if small or not train:
        raise ValueError(
            f"{small} of {len(train)} training pictures are smaller than the patch of {recipe.patch} pixels"
        )
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(recipe.seed)
    network = build(recipe.architecture, **recipe.arguments)
    network = replace(network, model=rebuilt(network.model, precision=recipe.precision))
    model = network.model
    model.compile(
        optimizer=optimizer(recipe),
        loss=loss(recipe),
        metrics=[keras.metrics.MeanMetricWrapper(mean_psnr, name="psnr")],
        jit_compile=False,  # XLA on CPU: 0.7 of the plain graph's speed
    )
    model.optimizer.build(model.trainable_variables)
    done = _restore(model, folder, recipe)
    clock = _Clock(folder)
    model.fit(
        TrainingBatches(train, recipe=recipe, noise_map=network.noise_map, epoch=done),
        initial_epoch=done,
        epochs=recipe.epochs,
        validation_data=validation_set(validation, noise_map=network.noise_map),
        validation_batch_size=4,
        callbacks=[
            keras.callbacks.SwapEMAWeights(),  # validate the moving average
            keras.callbacks.TerminateOnNaN(raise_error=True),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: _log(folder, epoch, logs)),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: _save(model, folder, clock)),
        ],
        shuffle=False,  # the samples are drawn at random already, as a function of epoch and index
        verbose=2,
    )
    return network  # `fit` has just written the moving average over the raw weights


def spent_seconds(folder: Path) -> float:
    """Wall time that the epochs of a run have taken, over all its starts."""
    path = folder / CLOCK
    return float(path.read_text()) if path.exists() else 0.0


class _Clock:
    def __init__(self, folder: Path) -> None:
        self._folder, self._before, self._started = folder, spent_seconds(folder), time.monotonic()

    def write(self) -> None:
        (self._folder / CLOCK).write_text(f"{self._before + time.monotonic() - self._started:.1f}\n")


def _log(folder: Path, epoch: int, logs: dict[str, float]) -> None:
    path = folder / LOG
    row = {"epoch": epoch, **logs}
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row))
        if stream.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def _save(model: keras.Model, folder: Path, clock: _Clock) -> None:
    partial = folder / f"partial-{STATE}"
    model.save_weights(partial)
    partial.replace(folder / STATE)
    clock.write()


def _restore(model: keras.Model, folder: Path, recipe: Recipe) -> int:
    state = folder / STATE
    if not state.exists():
        return 0
    model.load_weights(state)
    return int(model.optimizer.iterations) // recipe.steps_per_epoch

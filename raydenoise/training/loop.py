"""The training loop: knows neither Ray nor storage, and runs on any Keras backend."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from raydenoise.training.batches import VALIDATION_SIGMAS, Batch, chunked, mean_psnr, stacked
from raydenoise.training.objective import learning_rate
from raydenoise.training.recipe import Recipe
from raydenoise.training.step import Engine, average

REPORT_EVERY = 20  # steps between two rows of the metrics
PREDICTED = 4  # validation pictures per call


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Cadence:
    """How often the loop does what, in steps; the last step counts as due for all three."""

    report: int
    checkpoint: int
    validate: int


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        loss: mean since the last report.
        learning_rate: of the last step.
        patches_per_s: since the last report, all workers together.
        seconds: wall time of the run, over all starts.
        validated: the averaged model was brought up to date and is due for validation.
        checkpoint: a checkpoint is due.
    """

    step: int
    loss: float
    learning_rate: float
    patches_per_s: float
    seconds: float
    validated: bool
    checkpoint: bool


def train(
    engine: Engine,
    batches: Iterator[Batch],
    *,
    recipe: Recipe,
    cadence: Cadence,
    first: int,
    seconds: float,
    on_report: Callable[[Progress], None],
) -> None:
    """Run the steps from `first` to the recipe's last.

    Args:
        engine: its weights are those after step `first`.
        batches: noisy and clean, this process' part of each batch, beginning with that of step `first`.
        recipe: its steps, batch size and average.
        cadence: when to report.
        first: steps done already.
        seconds: wall time spent on them.
        on_report: called with the averaged model up to date where a validation or a checkpoint is due.

    Raises:
        DivergedError: the loss or a weight became NaN or infinite; nothing was reported since it did.
        RuntimeError: there were too few batches.
    """
    losses: list[Any] = []
    step, rate = first, learning_rate(recipe)
    begun = reported = time.monotonic()
    for step, (noisy, clean) in zip(range(first + 1, recipe.steps + 1), batches, strict=False):
        losses.append(engine.step(noisy, clean))
        due = _due(step, cadence, recipe.steps)
        if not any(due):
            continue
        mean = float(np.mean([float(np.asarray(value)) for value in losses]))  # waits for the steps to be done
        if not math.isfinite(mean):
            raise DivergedError(f"the loss became {mean} within the last {len(losses)} steps before step {step}")
        if due[1] or due[2]:
            average(engine, recipe)
            _check_finite(engine, step)
        now = time.monotonic()
        on_report(
            Progress(
                step=step,
                loss=mean,
                learning_rate=float(ops.convert_to_numpy(rate(step - 1))),
                patches_per_s=len(losses) * recipe.batch_size / (now - reported),
                seconds=seconds + now - begun,
                validated=due[2],
                checkpoint=due[1] or due[2],
            )
        )
        losses, reported = [], time.monotonic()
    if step < recipe.steps:
        raise RuntimeError(f"the batches ended at step {step} of {recipe.steps}")


def _check_finite(engine: Engine, step: int) -> None:
    """Look at what a checkpoint would hold: the loss of a step is that before its update."""
    weights = (np.asarray(values) for model in (engine.model, engine.averaged) for values in model.get_weights())
    if not all(np.isfinite(values).all() for values in weights):
        raise DivergedError(f"a weight became nan or infinite by step {step}")


def _due(step: int, cadence: Cadence, last: int) -> tuple[bool, bool, bool]:
    report, checkpoint, validate = (
        step % every == 0 or step == last for every in (cadence.report, cadence.checkpoint, cadence.validate)
    )
    return report, checkpoint, validate


def psnrs(engine: Engine, pairs: Sequence[Batch]) -> list[float]:
    """PSNR in dB of the averaged model on each pair of noisy and clean, one after the other."""
    found: list[float] = []
    for part in chunked(pairs, PREDICTED):
        noisy, clean = stacked(part)
        denoised = engine.predict(noisy)
        found += [mean_psnr(clean[i : i + 1], denoised[i : i + 1]) for i in range(len(part))]
    return found


def psnr_metrics(means: Sequence[float]) -> dict[str, float]:
    """Name a validation's PSNR in dB, one at each of `VALIDATION_SIGMAS` or that of pairs, and add their mean."""
    names = [f"psnr_{sigma:g}" for sigma in VALIDATION_SIGMAS] if len(means) > 1 else []
    return {**dict(zip(names, means, strict=False)), "psnr": float(np.mean(means))}

"""The loss and the optimizer of a recipe."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from raydenoise.training.muon import ConvMuon
from raydenoise.training.recipe import Recipe

# Of the learning rate, for the first and the last convolution under Muon. Adam moves every weight of a kernel by as
# much as its learning rate at once; summed over hundreds of inputs, that made the loss jump in the steps after 100.
THIN_RATE = 0.1
CHARBONNIER = (
    1e-3  # where its parabola becomes a line; Charbonnier et al., 1994; value of Zamir et al. (Restormer, 2022)
)
PSNR_FLOOR = 1e-5  # mean squared error below which `psnr` is satisfied: 50 dB


def optimizer(recipe: Recipe, *, clip: bool = True) -> keras.optimizers.Optimizer:
    """Build the optimizer with the recipe's schedule, clipping and moving average.

    Args:
        recipe: what to build.
        clip: by Keras, which sees the gradient of one process alone; False where somebody else does it.
    """
    common: dict[str, Any] = {"learning_rate": learning_rate(recipe)}
    if clip and recipe.clip_norm:
        common["global_clipnorm"] = recipe.clip_norm
    if recipe.ema:
        common |= {"use_ema": True, "ema_momentum": recipe.ema}
    match recipe.optimizer:
        case "adam":
            return keras.optimizers.Adam(**common)
        case "adamw":
            return keras.optimizers.AdamW(weight_decay=recipe.weight_decay, **common)
        case "muon":
            return ConvMuon(
                weight_decay=recipe.weight_decay,
                adam_weight_decay=recipe.weight_decay,
                adam_lr_ratio=THIN_RATE,
                **common,
            )


def learning_rate(recipe: Recipe) -> keras.optimizers.schedules.LearningRateSchedule:
    """The rate of a step, by the number of steps before it."""
    falling = recipe.schedule == "cosine"
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if recipe.warmup_steps else recipe.learning_rate,
        warmup_target=recipe.learning_rate if recipe.warmup_steps else None,
        warmup_steps=recipe.warmup_steps,
        decay_steps=max(1, recipe.steps - recipe.warmup_steps),
        alpha=0.0 if falling else 1.0,
    )


def loss(recipe: Recipe) -> Callable[[Any, Any], Any]:
    """The loss of (clean, denoised), a mean over all pixels and channels, or over the patches' own.

    `psnr` is that of Chen et al., "Simple Baselines for Image Restoration", 2022, without its factor and kept above 0.
    """
    match recipe.loss:
        case "l1":
            return lambda clean, denoised: ops.mean(ops.abs(denoised - clean))
        case "mse":
            return lambda clean, denoised: ops.mean(ops.square(denoised - clean))
        case "charbonnier":
            return lambda clean, denoised: ops.mean(ops.sqrt(ops.square(denoised - clean) + CHARBONNIER**2))
        case "psnr":
            return lambda clean, denoised: ops.mean(
                ops.log1p(ops.mean(ops.square(denoised - clean), axis=(1, 2, 3)) / PSNR_FLOOR)
            )

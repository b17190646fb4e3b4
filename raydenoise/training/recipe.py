"""What a training run does, as one frozen value."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import keras

from raydenoise.training.muon import ConvMuon

# Of the learning rate, for the first and the last convolution under Muon. Adam moves every weight of a kernel by as
# much as its learning rate at once; summed over 432 inputs, that made the loss jump in the second hundred steps.
THIN_RATE = 0.1

Loss = Literal["l1", "mse"]
OptimizerName = Literal["adam", "adamw", "muon"]
TrainingPrecision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """A training run of one process.

    Attributes:
        architecture: a name in `model.networks.BUILDERS`.
        arguments: of the builder.
        epochs: how many; each ends with a validation and a checkpoint to resume from.
        steps_per_epoch: optimizer steps of each.
        batch_size: patches per step.
        patch: side of the training patches, pixels.
        precision: number format of the layers; weights and the last sum stay float32.
        optimizer: `adamw`, `adam` (no weight decay), or `muon` (see `muon.ConvMuon`).
        learning_rate: at its peak; it rises linearly over `warmup_steps`, then falls to zero along a cosine.
        weight_decay: decoupled.
        ema: momentum of the moving average of the weights, which is what ships.
        clip_norm: bound of the global gradient norm. That of the default network is 0.03 to 0.06 (l1 loss).
        loss: mean absolute (l1) or mean squared (mse) error.
        sigma_range: of the white Gaussian noise, 8-bit grey levels, uniform.
        grey_share: share of patches that are grey, one noise for all three planes.
        quantized_share: share of patches whose noisy values are clipped and rounded as 8-bit files hold them.
        seed: of everything random.
    """

    architecture: str = "resunet"
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 30
    steps_per_epoch: int = 500
    batch_size: int = 32
    patch: int = 64
    precision: TrainingPrecision = "float32"
    optimizer: OptimizerName = "muon"
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 1e-4
    ema: float = 0.999
    clip_norm: float = 0.2
    loss: Loss = "l1"
    sigma_range: tuple[float, float] = (0.0, 75.0)
    grey_share: float = 0.1
    quantized_share: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "batch_size", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("grey_share", "quantized_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 to 1")
        low, high = self.sigma_range
        if not 0 <= low <= high:
            raise ValueError(f"sigma_range is {self.sigma_range}; allowed: 0 <= low <= high, in 8-bit grey levels")
        for name, allowed in (("loss", Loss), ("optimizer", OptimizerName), ("precision", TrainingPrecision)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(get_args(allowed))}")

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * self.steps_per_epoch


def optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    """Build the optimizer with the recipe's schedule, clipping and moving average."""
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_steps=max(1, recipe.steps - recipe.warmup_steps),
    )
    common = {
        "learning_rate": schedule,
        "global_clipnorm": recipe.clip_norm,
        "use_ema": True,
        "ema_momentum": recipe.ema,
    }
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


def loss(recipe: Recipe) -> str:
    """Name the Keras loss."""
    return {"l1": "mean_absolute_error", "mse": "mean_squared_error"}[recipe.loss]

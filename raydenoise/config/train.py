"""Options of `raydenoise train`."""

import argparse
from dataclasses import dataclass, fields
from math import inf
from typing import Any, get_args

from raydenoise.config.options import address_option, names, option, quiet_option
from raydenoise.core.patches import Augmentation
from raydenoise.training.recipe import Loss, NoiseName, OptimizerName, Recipe, Schedule

NETWORKS = ("resunet", "unet", "dncnn", "autoencoder", "autoencoder-wide")
TRAINING_PRECISIONS = ("auto", "float32", "bfloat16")


def model_argument(text: object) -> tuple[str, Any]:
    """Read one argument of a network's builder: "depth=2", "filters=64,96"; "filters=48," is a list of one."""
    name, equals, value = str(text).partition("=")
    try:
        numbers = tuple(int(part) for part in value.removesuffix(",").split(","))
    except ValueError:
        equals = ""
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no argument; allowed: name=number or name=number,number")
    return name, numbers if "," in value else numbers[0]


def level_range(value: object) -> tuple[float, float]:
    """Read a range: "0:75", one number for both ends, or a list of two numbers."""
    ends = value if isinstance(value, list) else str(value).split(":")
    try:
        low, high = ends if len(ends) > 1 else ends * 2
        return float(low), float(high)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{value!r} is no range; allowed: LOW:HIGH, or a number") from None


def augmentations(value: object) -> tuple[str, ...]:
    """Read names, as `names`; "none" for no name."""
    return () if value == "none" else names(value)


@dataclass(frozen=True)
class TrainConfig:
    """What `raydenoise train` does. A value that is not allowed raises ValueError when the config is made."""

    shards: str = option("folder that raydenoise prepare wrote", metavar="SHARDS", nargs="?")
    output: str = option("folder of the run: checkpoints, metrics, bundle", metavar="RUN")
    model: str = option("the network", default="resunet", choices=NETWORKS)
    model_args: dict[str, Any] = option(
        "of the network's builder, such as filters=64,96 depth=2",
        default=(),
        read=model_argument,
        yaml=(str, dict),
        nargs="+",
        metavar="NAME=N[,N]",
    )
    init: str | None = option("begin with a bundle's weights: fine-tuning", default=None, metavar="NAME|PATH")
    freeze_encoder: bool = option(
        "with --init: train what follows the first up-sampling layer alone", default=False, read=bool
    )
    workers: int = option("processes that share each batch; on GPUs one per GPU", default=1, read=int, metavar="N")
    gpus_per_worker: float | None = option(
        "GPUs of each (0: none); by default 1 where there are GPUs", default=None, read=float, metavar="F"
    )
    cpus_per_worker: float | None = option(
        "CPUs of each, may be a part of one; the default leaves some for reading", default=None, read=float, metavar="F"
    )
    epochs: int | None = option("how often every patch takes part (default: 10)", default=None, read=int, metavar="N")
    steps: int | None = option("instead of epochs: optimizer steps in all", default=None, read=int, metavar="N")
    checkpoint_every: int | None = option(
        "steps; by default an epoch, at most 500", default=None, read=int, metavar="STEPS"
    )
    validate_every: int | None = option("steps; by default an epoch", default=None, read=int, metavar="STEPS")
    batch_size: int = option("patches per step, over all workers", default=Recipe.batch_size, read=int, metavar="N")
    patch: int = option("side of the crop of a stored patch, pixels", default=Recipe.patch, read=int, metavar="PX")
    learning_rate: float = option(
        "at its peak; adam and adamw want about 0.001", default=Recipe.learning_rate, read=float, metavar="F"
    )
    schedule: str = option("of the learning rate", default=Recipe.schedule, choices=get_args(Schedule))
    warmup_steps: int = option(
        "over which the learning rate rises: far fewer than --steps", default=Recipe.warmup_steps, read=int, metavar="N"
    )
    optimizer: str = option("muon learns fastest", default=Recipe.optimizer, choices=get_args(OptimizerName))
    weight_decay: float = option("decoupled; not of adam", default=Recipe.weight_decay, read=float, metavar="F")
    loss: str = option(
        "l1, mean squared, Charbonnier's error, or psnr: its logarithm per patch",
        default=Recipe.loss,
        choices=get_args(Loss),
    )
    noise: str | None = option(
        "by default paired where the shards hold pairs, else awgn", default=None, choices=get_args(NoiseName)
    )
    sigma: tuple[float, float] = option(
        "levels of the Gaussian noise, 8-bit grey levels",
        default=Recipe.sigma_range,
        read=level_range,
        yaml=(int, float, str, list),
        comma=":",
        metavar="A:B",
    )
    sigma_power: float = option(
        "above 1 low levels come more often: low + (high - low) * u ** F of a uniform u",
        default=Recipe.sigma_power,
        read=float,
        metavar="F",
    )
    peak: tuple[float, float] = option(
        "photons at white, of Poisson noise",
        default=Recipe.peak_range,
        read=level_range,
        yaml=(int, float, str, list),
        comma=":",
        metavar="A:B",
    )
    grey_share: float = option("share of patches made grey", default=Recipe.grey_share, read=float, metavar="F")
    soft_share: float = option(
        "share of patches enlarged by 1.2 to 2, as soft as pictures of many megapixels",
        default=Recipe.soft_share,
        read=float,
        metavar="F",
    )
    colour_share: float = option(
        "share of patches that get other colours", default=Recipe.colour_share, read=float, metavar="F"
    )
    quantized_share: float = option(
        "share of patches with noise as 8-bit files hold it", default=Recipe.quantized_share, read=float, metavar="F"
    )
    precision: str = option("number format of the layers", default="auto", choices=TRAINING_PRECISIONS)
    ema: float = option(
        "momentum of the averaged weights, which ship; below 2,000 steps lower, or 0: none",
        default=Recipe.ema,
        read=float,
        metavar="F",
    )
    clip_norm: float = option(
        "bound of the gradient's global norm; 0: none", default=Recipe.clip_norm, read=float, metavar="F"
    )
    augment: tuple[str, ...] = option(
        f"of {', '.join(get_args(Augmentation))}, with commas between; or none",
        default=Recipe.augment,
        read=augmentations,
        yaml=(str, list),
        metavar="NAMES",
    )
    seed: int = option("of everything that is random", default=Recipe.seed, read=int, metavar="N")
    resume: bool = option("go on with the stopped run in RUN", default=False, read=bool)
    address: str | None = address_option()
    quiet: bool = quiet_option()
    json: bool = option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = option("let Ray and TensorFlow talk", default=False, read=bool)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_args", dict(self.model_args))
        for name, allowed in (("model", NETWORKS), ("precision", TRAINING_PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps given; allowed: one of them")
        for name in ("workers", "epochs", "steps", "checkpoint_every", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        if self.cpus_per_worker is not None and not 0 < self.cpus_per_worker < inf:
            raise ValueError(f"cpus_per_worker is {self.cpus_per_worker}; allowed: above 0")
        if self.gpus_per_worker is not None and self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker:g}; allowed: 0 or 1: a worker per GPU")
        if self.init is not None and self.model_args:
            raise ValueError("init and model_args given; allowed: one of them, a bundle knows its network")
        if self.freeze_encoder and self.init is None:
            raise ValueError("freeze_encoder without init; allowed: with the bundle whose encoder is to stay")
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size is {self.batch_size} for {self.workers} workers; allowed: a multiple of the workers"
            )
        self.recipe(steps=self.steps or 1, architecture=self.model, paired=False, precision="float32")

    def recipe(self, *, steps: int, architecture: str, paired: bool, precision: str) -> Recipe:
        """Make the recipe; raises ValueError where one of its values is not allowed."""
        same = {entry.name for entry in fields(Recipe)} & {entry.name for entry in fields(self)}
        values = {name: getattr(self, name) for name in same}
        return Recipe(
            **values
            | {
                "architecture": architecture,
                "arguments": self.model_args,
                "steps": steps,
                "precision": precision,
                "noise": self.noise or ("paired" if paired else "awgn"),
                "sigma_range": self.sigma,
                "peak_range": self.peak,
            }
        )

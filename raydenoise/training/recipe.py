"""What a training run does, as one frozen value. Imports no Keras: a command line is checked against it."""

from dataclasses import dataclass, field
from math import hypot, inf, sqrt
from typing import Any, Literal, get_args

from raydenoise.core.patches import Augmentation

Loss = Literal["l1", "mse", "charbonnier", "psnr"]
OptimizerName = Literal["adam", "adamw", "muon"]
TrainingPrecision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "constant"]
NoiseName = Literal["awgn", "poisson-gaussian", "paired"]


@dataclass(frozen=True)
class Recipe:
    """The network, the samples and the optimizer of a training run.

    Attributes:
        architecture: a name in `model.networks.BUILDERS`.
        arguments: of the builder.
        steps: of the optimizer, in all.
        batch_size: patches per step, over all workers.
        patch: side of the training patches, pixels.
        precision: number format of the layers; weights and the last sum stay float32.
        optimizer: `adamw`, `adam` (no weight decay), or `muon` (see `muon.ConvMuon`).
        learning_rate: at its peak; it rises linearly over `warmup_steps`.
        schedule: `cosine` falls to zero at the last step, `constant` stays.
        warmup_steps: of the rise.
        weight_decay: decoupled.
        ema: momentum of the moving average of the weights, which is what ships; 0 for none.
        clip_norm: bound of the global norm of a batch's gradient; 0 for none. That of `48,128` was 0.03 to 0.06.
        loss: mean absolute (l1), mean squared (mse) or Charbonnier's error; or `psnr`, the mean over the patches of the
            logarithm of their mean squared error, so that each counts as it does in a mean PSNR (no clipping at 0.2).
        noise: `awgn` (white, Gaussian), `poisson-gaussian` (of a photon-counting sensor), or `paired` (that of the
            noisy patches).
        sigma_range: of the Gaussian part, 8-bit grey levels.
        sigma_power: how the levels lie in their range: low + (high - low) * u ** power of a uniform u. 1 is uniform;
            above 1 low levels come more often, which a mean error would else hardly feel.
        peak_range: photons at white, of the Poisson part, uniform in their logarithm.
        grey_share: share of patches that are made grey, with one noise for all three planes; not of pairs.
        soft_share: share of patches that are enlarged (`core.patches.soften`); not of pairs.
        colour_share: share of coloured patches that get other colours (`core.patches.recolour`); not of pairs.
        quantized_share: share of patches whose noisy values are clipped and rounded as 8-bit files hold them.
        augment: see `core.patches.augment`.
        seed: of everything random.
    """

    architecture: str = "resunet"
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: int = 15_000
    batch_size: int = 32
    patch: int = 64
    precision: TrainingPrecision = "float32"
    optimizer: OptimizerName = "muon"
    learning_rate: float = 4e-3
    schedule: Schedule = "cosine"
    warmup_steps: int = 300
    weight_decay: float = 1e-4
    ema: float = 0.999
    clip_norm: float = 0.2
    loss: Loss = "l1"
    noise: NoiseName = "awgn"
    sigma_range: tuple[float, float] = (0.0, 75.0)
    sigma_power: float = 1.0
    peak_range: tuple[float, float] = (30.0, 3000.0)
    grey_share: float = 0.1
    soft_share: float = 0.0
    colour_share: float = 0.0
    quantized_share: float = 0.15
    augment: tuple[Augmentation, ...] = ("flip", "turn")
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "seed"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
        for name in ("grey_share", "soft_share", "colour_share", "quantized_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 to 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; allowed: 0 to below 1")
        for name in ("learning_rate", "sigma_power"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: above 0")
        for name, least in (("sigma_range", 0.0), ("peak_range", 1.0)):
            low, high = getattr(self, name)
            if not least <= low <= high < inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {least:g} <= low <= high")
        choices: dict[str, Any] = {
            "loss": Loss,
            "optimizer": OptimizerName,
            "precision": TrainingPrecision,
            "schedule": Schedule,
            "noise": NoiseName,
        }
        for name, allowed in choices.items():
            _check_choice(name, getattr(self, name), allowed)
        for name in self.augment:
            _check_choice("augment", name, Augmentation)

    @property
    def levels(self) -> tuple[float, float]:
        """The noise that a patch gets, at least and at most: 8-bit grey levels, of noise that is not paired.

        Photons add the most where the picture is white, and nothing where it is black.
        """
        low, high = self.sigma_range
        photons = 255 / sqrt(self.peak_range[0]) if self.noise == "poisson-gaussian" else 0.0
        return low, hypot(photons, high)


def _check_choice(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(get_args(allowed))}")

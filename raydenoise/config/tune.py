"""Options of `raydenoise tune`."""

from dataclasses import dataclass
from math import inf

from raydenoise.config.options import address_option, option, quiet_option

SCHEDULERS = ("asha", "none")


@dataclass(frozen=True)
class TuneConfig:
    """What `raydenoise tune` does. A value that is not allowed raises ValueError when the config is made."""

    shards: str = option("folder that raydenoise prepare wrote", metavar="SHARDS", nargs="?")
    space: str = option("options of train, each fixed or drawn: see docs/tuning.md", metavar="FILE.yaml")
    output: str = option("folder for the table, the plot, the best config and the runs", metavar="TUNE")
    trials: int = option("combinations that are drawn and trained", default=20, read=int, metavar="N")
    epochs: int | None = option(
        "how often every patch takes part in a whole trial (default: 10)", default=None, read=int, metavar="N"
    )
    steps: int | None = option(
        "instead of epochs: optimizer steps of a whole trial", default=None, read=int, metavar="N"
    )
    validate_every: int | None = option("steps; by default a tenth of a trial", default=None, read=int, metavar="STEPS")
    scheduler: str = option(
        "asha stops trials early that are behind; none trains all to the end", default="asha", choices=SCHEDULERS
    )
    grace: float = option("share of a trial before asha may stop it", default=0.1, read=float, metavar="F")
    reduction: float = option(
        "asha keeps one of so many at each rung, and the next rung is so many times later",
        default=3.0,
        read=float,
        metavar="F",
    )
    concurrent: int | None = option(
        "trials at once; by default as many as there are GPUs or machines for", default=None, read=int, metavar="N"
    )
    workers: int = option("processes of each trial; on GPUs one per GPU", default=1, read=int, metavar="N")
    gpus_per_worker: float | None = option(
        "GPUs of each (0: none); by default 1 where there are GPUs", default=None, read=float, metavar="F"
    )
    cpus_per_worker: float | None = option(
        "CPUs of each, may be a part of one; the default leaves some for reading", default=None, read=float, metavar="F"
    )
    seed: int = option(
        "of the drawing; that of the trainings is an option of the space", default=0, read=int, metavar="N"
    )
    resume: bool = option("go on with the tuning in TUNE", default=False, read=bool)
    address: str | None = address_option()
    quiet: bool = quiet_option()
    json: bool = option("print the summary as one JSON line", default=False, read=bool)
    verbose: bool = option("let Ray and TensorFlow talk", default=False, read=bool)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps given; allowed: one of them")
        for name in ("trials", "epochs", "steps", "validate_every", "concurrent", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler is {self.scheduler!r}; allowed: {', '.join(SCHEDULERS)}")
        if not 0 < self.grace <= 1:
            raise ValueError(f"grace is {self.grace}; allowed: above 0, at most 1")
        if not 1 < self.reduction < inf:
            raise ValueError(f"reduction is {self.reduction}; allowed: above 1")
        if self.gpus_per_worker is not None and self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker:g}; allowed: 0 or 1: a worker per GPU")
        if self.cpus_per_worker is not None and not 0 < self.cpus_per_worker < inf:
            raise ValueError(f"cpus_per_worker is {self.cpus_per_worker}; allowed: above 0")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; allowed: 0 or more")

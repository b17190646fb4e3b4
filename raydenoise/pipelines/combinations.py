"""The trainings of a tuning, checked before any of them runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydenoise import tuning
from raydenoise.config import TrainConfig, TuneConfig
from raydenoise.config.space import Space, described
from raydenoise.data.shards import ShardSet
from raydenoise.pipelines.checks import begin, check_sides, known_precision
from raydenoise.pipelines.process import ModelFiles
from raydenoise.pipelines.session import cluster_address
from raydenoise.pipelines.train import Ready, model_files, settle

if TYPE_CHECKING:
    from raydenoise.model.bundle import Bundle

VALIDATIONS = 10  # of a trial, unless told otherwise
SAME = ("epochs", "steps", "workers", "cpus_per_worker", "gpus_per_worker")  # of the trainings, by the command's flags


@dataclass(frozen=True)
class Checked:
    """A training that was checked, and its network as bytes."""

    ready: Ready
    files: ModelFiles

    def computed_in(self, precision: str | None) -> "Checked":
        """The same where its workers compute this fast and no number format was asked for."""
        if precision is None or self.ready.config.precision != "auto":
            return self
        return replace(self, ready=self.ready.computed_in(precision))


def check(
    config: TuneConfig, shards: ShardSet, space: Space, combinations: Sequence[Mapping[str, Any]]
) -> list[Checked]:
    """Make the training of every combination, and check each as `train` would; so are the ends of the space.

    Raises:
        ValueError: one cannot be trained.
    """
    if not shards.rows("validation"):
        raise ValueError(
            f"shards {str(shards.root)!r} hold no validation split, which trials are compared on; "
            "run raydenoise prepare with another --split"
        )
    networks: dict[str, tuple[Bundle, ModelFiles]] = {}
    for ends in space.ends():
        _checked(config, shards, space.options(ends), networks, label=f"of the space, {described(ends)}", number=0)
    return [
        _checked(config, shards, space.options(drawn), networks, label=f"{number}, {described(drawn)}", number=number)
        for number, drawn in enumerate(combinations)
    ]


def _checked(
    config: TuneConfig,
    shards: ShardSet,
    options: Mapping[str, Any],
    networks: dict[str, tuple["Bundle", ModelFiles]],
    *,
    label: str,
    number: int,
) -> Checked:
    """Check one combination; a network that was built before serves again."""
    try:
        training = TrainConfig(
            shards=config.shards,
            output=str(tuning.run_folder(Path(config.output).absolute(), number)),
            **{name: getattr(config, name) for name in SAME},
            **options,
            quiet=True,
        )
        known = repr([getattr(training, name) for name in ("model", "model_args", "init", "freeze_encoder", "seed")])
        if known not in networks:
            started = begin(training, shards)
            networks[known] = started, model_files(started)
        started, files = networks[known]
        check_sides(training.patch, shards, started)
        private = cluster_address(config.address) is None
        root = Path(config.output)  # of no run: its precision is that of the workers' machine
        ready = settle(training, shards, started, precision=known_precision(training, root, private=private))
        if training.warmup_steps >= ready.recipe.steps:
            raise ValueError(
                f"warmup_steps is {training.warmup_steps} of {ready.recipe.steps} steps, so that the learning rate "
                "would never be reached; allowed: fewer; give warmup_steps in the space, or longer trials"
            )
    except ValueError as error:
        raise ValueError(f"combination {label}: {error}") from error
    every = config.validate_every or max(1, ready.recipe.steps // VALIDATIONS)
    return Checked(replace(ready, config=replace(training, validate_every=every, checkpoint_every=every)), files)

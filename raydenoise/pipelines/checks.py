"""What a training is checked for before anything runs: its network, its recipe, its folders."""

import inspect
import json
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raydenoise.config import TrainConfig, TuneConfig
from raydenoise.config.options import nearest
from raydenoise.data.manifest import MANIFEST, TRAINING_KIND, check_empty
from raydenoise.data.place import Place
from raydenoise.data.shards import ShardSet
from raydenoise.fetching import on_disk
from raydenoise.training.recipe import Recipe, TrainingPrecision

if TYPE_CHECKING:
    from raydenoise.model.bundle import Bundle

MOST_START = 0.2  # of the first weights in the averaged ones, before a run is called too short


def begin(config: TrainConfig, shards: ShardSet) -> "Bundle":
    """Build the network to begin with, or load that of `--init`.

    Raises:
        ValueError: there is no such bundle, the builder refuses an argument, or the patches do not fit.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise ValueError(
            f"KERAS_BACKEND is {backend!r}; allowed: tensorflow; on one GPU with {backend}: "
            "python -m raydenoise.pipelines.single"
        )
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leave the GPU to the workers
    import keras

    from raydenoise.model import bundle, networks
    from raydenoise.model.precision import rebuilt

    if config.init is not None:
        with on_disk(config.init) as path:
            started = bundle.load(path)
        # What another training had frozen is learned in this one, unless it is asked to freeze it again.
        started = replace(started, model=rebuilt(started.model, precision="float32", thawed=True))
    else:
        check_arguments(config)
        keras.utils.set_random_seed(config.seed)
        try:
            network = networks.build(config.model, **config.model_args)
        except TypeError as error:
            raise ValueError(f"model_args do not fit {config.model}: {error}") from error
        started = bundle.made(
            network,
            name=config.model,
            architecture=config.model,
            arguments=config.model_args,
            sigma_range=config.sigma,
            training={},
            scores={},
        )
    check_sides(config.patch, shards, started)
    if config.freeze_encoder:
        from raydenoise.training.step import freeze_encoder

        freeze_encoder(started.model)
    return started


def check_arguments(config: TrainConfig) -> None:
    """Check that the network's builder has the arguments of `model_args`.

    Raises:
        ValueError: it lacks one; the message offers the nearest.
    """
    from raydenoise.model import networks

    known = list(inspect.signature(networks.BUILDERS[config.model]).parameters)
    for name in config.model_args:
        nearest(name, known, where=f"model_args of {config.model}")


def check_sides(patch: int, shards: ShardSet, started: "Bundle") -> None:
    """Check that the network takes the crops, and the whole stored patches, which it is measured on."""
    alignment, fixed, stored = started.card.alignment, started.card.fixed_size, shards.patch
    if patch > stored:
        raise ValueError(f"patch is {patch}; allowed: at most {stored}, the side of the stored patches")
    if patch % alignment:
        raise ValueError(f"patch is {patch}; allowed: a multiple of {alignment}, the network's alignment")
    if fixed not in (None, patch):
        raise ValueError(f"patch is {patch}; allowed: {fixed}, the network's input size")
    if (shards.rows("validation") or shards.rows("test")) and (stored % alignment or fixed not in (None, stored)):
        allowed = f"{fixed}, the network's input size" if fixed else f"a multiple of {alignment}, its alignment"
        raise ValueError(
            f"the stored patches, which the network is measured on, are {stored} pixels; allowed: {allowed}; "
            "run raydenoise prepare with another --patch"
        )


def known_precision(config: TrainConfig, root: Place, *, private: bool) -> TrainingPrecision | None:
    """The number format of a run's layers, as far as it is known before Ray starts.

    Args:
        config: of the run.
        root: its folder; a run that goes on keeps what its manifest says, on whatever processors.
        private: the Ray will be this machine's alone. On a cluster only a worker's machine knows: None.
    """
    if config.precision != "auto":
        return trained_in(config.precision)
    if config.resume:
        with suppress(OSError, ValueError, KeyError, TypeError):  # `open_run` tells what is wrong with it
            return trained_in(json.loads((root / MANIFEST).read_bytes())["recipe"]["precision"])
    if not private:
        return None
    from raydenoise.model.precision import resolve

    return trained_in(resolve("auto", gpus=config.gpus_per_worker != 0))


def trained_in(precision: str) -> TrainingPrecision:
    """What a processor that is fast in a number format trains in: never float16, which needs scaled gradients."""
    return "bfloat16" if precision == "bfloat16" else "float32"


def make_recipe(config: TrainConfig, shards: ShardSet, started: "Bundle", *, precision: TrainingPrecision) -> Recipe:
    """Settle what depends on the shards and the network.

    Raises:
        ValueError: pairs are asked for and there are none, or noise is and there are pairs.
    """
    if config.noise is not None and (config.noise == "paired") != shards.paired:
        kind = "pairs" if shards.paired else "clean patches"
        raise ValueError(f"noise is {config.noise}, and the shards hold {kind}; allowed: leave it out")
    recipe = config.recipe(steps=1, architecture=started.card.architecture, paired=shards.paired, precision=precision)
    return replace(recipe, arguments=started.card.arguments)  # a bundle's own with --init


def short_run(recipe: Recipe) -> str | None:
    """What keeps a run of so few steps from learning, or None where nothing does."""
    start = recipe.ema**recipe.steps
    reasons = []
    if recipe.warmup_steps >= recipe.steps:
        reasons.append(f"the learning rate is reached after {recipe.warmup_steps} steps (--warmup-steps)")
    if start > MOST_START:
        reasons.append(f"the averaged weights are {start:.0%} those of the start (--ema)")
    return f"only {recipe.steps} steps: {' and '.join(reasons)}; docs/training.md, Short runs" if reasons else None


def fingerprint(shards: ShardSet) -> dict[str, Any]:
    """What a resumed run's shards are known by."""
    files = {
        split: [[file.path.name, file.rows, file.bytes] for file in files] for split, files in shards.files.items()
    }
    return {"root": str(shards.root), "patch": shards.patch, "paired": shards.paired, "files": files}


def open_run(
    config: TrainConfig | TuneConfig,
    root: Place,
    facts: dict[str, Any],
    *,
    kind: str = TRAINING_KIND,
    noun: str = "run",
) -> None:
    """Check that the output folder is new, or with `--resume` that it holds the same run.

    Args:
        config: tells whether to resume.
        root: the folder.
        facts: what must be the same, as the manifest holds it.
        kind: of the manifest.
        noun: for people.

    Raises:
        ValueError: it is not.
    """
    if not config.resume:
        try:
            check_empty(root)
        except ValueError as error:
            raise ValueError(f"{error}; or --resume to go on with a {noun}") from error
        return
    holds = f"output {str(root)!r} holds"
    try:
        before = json.loads((root / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{holds} no {noun} to resume: {error}; leave out --resume") from error
    found = before.get("kind") if isinstance(before, dict) else type(before).__name__
    if found != kind:
        raise ValueError(f"{holds} no {noun} to resume: its {MANIFEST} is of {found!r}, not of {kind!r}")
    if before.get("status") == "finished":
        raise ValueError(f"{holds} a finished {noun}; allowed: one that was stopped")
    for name, now in facts.items():
        then = before.get(name)
        if then != now:
            both = isinstance(now, dict) and isinstance(then, dict)
            changed = ", ".join(key for key in now if then.get(key) != now[key]) if both else then
            told = "" if isinstance(then, list) else f" ({changed})"
            raise ValueError(f"{holds} a {noun} with another {name}{told}; allowed: the same as before")

"""Data-parallel training on Ray Train: shards -> workers -> checkpoints -> bundle."""

import json
import logging
import os
import platform
import shlex
import tempfile
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
from ray.train.tensorflow import TensorflowTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydenoise.config import TrainConfig
from raydenoise.config.options import assignments, shown
from raydenoise.data.manifest import check_empty, utc_now, versions
from raydenoise.data.shards import ShardSet, read_manifest
from raydenoise.data.storage import publish_json
from raydenoise.pipelines.group import Resources, Task, local_cpus, plan
from raydenoise.pipelines.progress import TrainDisplay
from raydenoise.pipelines.runlog import METRICS
from raydenoise.pipelines.samples import Source, held_out
from raydenoise.pipelines.session import cluster_address, session
from raydenoise.pipelines.stages import ModelFiles
from raydenoise.report import learning_curve
from raydenoise.training.recipe import Recipe

if TYPE_CHECKING:
    from raydenoise.model.bundle import Bundle

CHECKPOINTS, BUNDLE, CURVE, MANIFEST = "checkpoints", "bundle", "learning-curve.png", "manifest.json"  # in RUN
KIND = "raydenoise training"  # of the manifest
PSNR = "psnr"  # the metric that chooses the best checkpoint
ATTEMPTS = 2  # at the same checkpoint, of a worker that fails by itself
FAILURES = 100  # worker groups that may be lost before the command gives up; --resume goes on from there
EPOCHS = 10  # where neither epochs nor steps are given
CHECKPOINT_STEPS = 500  # at most between two checkpoints, unless told otherwise
NOT_RECORDED = ("shards", "output", "resume", "address", "quiet", "json", "verbose")  # in a card's command


def run(config: TrainConfig) -> dict[str, Any]:
    """Train a network and return the summary.

    Raises:
        ValueError: an argument is not allowed or does not fit the shards; nothing was trained.
        RuntimeError: the job broke, or the loss became NaN.
    """
    root = Path(config.output).absolute()
    shards = read_manifest(config.shards)
    started = begin(config, shards)
    recipe = make_recipe(config, shards, started)
    source = Source.of(
        shards,
        batch_size=recipe.batch_size,
        patch=recipe.patch,
        seed=recipe.seed,
        estimate=started.card.noise_map and shards.paired,
    )
    epoch = source.order.steps
    recipe = replace(recipe, steps=config.steps or (config.epochs or EPOCHS) * epoch)
    facts = {
        "recipe": asdict(recipe),
        "shards": fingerprint(shards),
        "init": config.init,
        "freeze_encoder": config.freeze_encoder,
    }
    _open(config, root, json.loads(json.dumps(facts)))
    address = cluster_address(config.address)
    with session(address, cpus=local_cpus(config), verbose=config.verbose):
        resources = plan(config, private=address is None)
        task = Task(
            run=root,
            files=_files(started),
            frozen=config.freeze_encoder,
            recipe=recipe,
            shards=shards,
            source=source,
            checkpoint_every=config.checkpoint_every or min(epoch, CHECKPOINT_STEPS),
            validate_every=config.validate_every or epoch,
            threads=resources.threads,
            read_cpus=resources.read_cpus,
        )
        manifest = {
            "kind": KIND,
            "status": "running",
            "started_at": utc_now().isoformat(),
            **facts,
            "config": asdict(config),
            "resources": asdict(resources),
            "ray": address or "local",
            "versions": versions(),
        }
        write_manifest(root, manifest)
        try:
            best, manifest["workers"] = _train(config, task, resources)
            summary = finish(config, task, started, best)
            manifest.update(status="finished", summary=summary)
        except (KeyboardInterrupt, SystemExit):
            manifest["status"] = "interrupted"
            raise
        except Exception:
            manifest["status"] = "broken"
            raise
        finally:
            manifest["finished_at"] = utc_now().isoformat()
            write_manifest(root, manifest)
    return summary


def _train(config: TrainConfig, task: Task, resources: Resources) -> tuple[Path, dict[str, str]]:
    """Run the worker group to the end; returns the folder of the best checkpoint, and where the last group ran."""
    # Beside the driver: it must outlive every other node, and Ray would place it anywhere.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    logging.getLogger("ray.train").setLevel(logging.INFO if config.verbose else logging.CRITICAL)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # 60 s are few on a busy machine
    validated = task.shards.rows("validation") > 0
    trainer = TensorflowTrainer(
        work,
        train_loop_config={"task": task, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=str(task.run),
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=PSNR if validated else None
            ),
        ),
    )
    with TrainDisplay(task.recipe.steps, quiet=config.quiet, read=lambda: ray.get(board.read.remote(), timeout=5)):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RuntimeError(f"training failed: {error}; --resume goes on from the last checkpoint") from error
    news = ray.get(board.read.remote())
    if news.get("broken"):
        raise RuntimeError(f"a worker failed {ATTEMPTS} times at the same place: {news['error']}")
    if "diverged" in news:
        kept = "the last good checkpoint is kept in" if result.checkpoint else "there was no checkpoint yet in"
        raise RuntimeError(f"{news['diverged']}; {kept} {task.run / CHECKPOINTS}; a lower --learning-rate may help")
    if result.checkpoint is None:
        raise RuntimeError("training ended without a checkpoint")
    scored = [(metrics[PSNR], checkpoint) for checkpoint, metrics in result.best_checkpoints if PSNR in metrics]
    best = max(scored, key=lambda entry: entry[0])[1] if scored else result.checkpoint
    return Path(best.path), news["workers"]


def work(given: dict[str, Any]) -> None:
    """What Ray calls in each worker process: sets the environment, then imports TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from raydenoise.pipelines import worker

    worker.work(given["task"], given["board"])


class Board:
    """An actor that outlives the worker groups: the last news for the display, and what went wrong."""

    def __init__(self) -> None:
        self._news: dict[str, Any] = {}
        self._failures: Counter[tuple[int, int]] = Counter()

    def post(self, **news: Any) -> None:
        """Replace some news."""
        self._news.update(news)

    def read(self) -> dict[str, Any]:
        """Tell all of them."""
        return self._news

    def join(self, *, rank: int, name: str) -> None:
        """Note where a rank runs."""
        self._news.setdefault("workers", {})[str(rank)] = name

    def fail(self, *, step: int, rank: int, error: str) -> None:
        """Count an error of a worker's own, not of a lost one, by the step that its group began with."""
        self._failures[step, rank] += 1
        self._news["error"] = error

    def gives_up(self, *, step: int) -> bool:
        """Tell whether a rank failed `ATTEMPTS` times since the same checkpoint: it would fail again."""
        broken = any(count >= ATTEMPTS for (begun, _), count in self._failures.items() if begun == step)
        self._news["broken"] = broken
        return broken


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

    if config.init is not None:
        started = bundle.load(config.init)
    else:
        keras.utils.set_random_seed(config.seed)
        try:
            network = networks.build(config.model, **config.model_args)
        except TypeError as error:
            raise ValueError(f"model_args do not fit {config.model}: {error}") from error
        with tempfile.TemporaryDirectory() as folder:
            bundle.save(
                network,
                Path(folder),
                name=config.model,
                architecture=config.model,
                arguments=config.model_args,
                sigma_range=config.sigma,
                training={},
                scores={},
            )
            started = bundle.load(folder)
    _check_sides(config.patch, shards, started)
    if config.freeze_encoder:
        from raydenoise.training.step import freeze_encoder

        freeze_encoder(started.model)
    return started


def _check_sides(patch: int, shards: ShardSet, started: "Bundle") -> None:
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


def make_recipe(config: TrainConfig, shards: ShardSet, started: "Bundle") -> Recipe:
    """Settle what depends on the shards, the network and the machine.

    Raises:
        ValueError: pairs are asked for and there are none, or noise is and there are pairs.
    """
    if config.noise is not None and (config.noise == "paired") != shards.paired:
        kind = "pairs" if shards.paired else "clean patches"
        raise ValueError(f"noise is {config.noise}, and the shards hold {kind}; allowed: leave it out")
    from raydenoise.model.precision import resolve

    precision = resolve(config.precision)
    recipe = config.recipe(
        steps=1,
        architecture=started.card.architecture,
        paired=shards.paired,
        precision="bfloat16" if precision == "bfloat16" else "float32",
    )
    return replace(recipe, arguments=started.card.arguments)  # a bundle's own with --init


def fingerprint(shards: ShardSet) -> dict[str, Any]:
    """What a resumed run's shards are known by."""
    files = {
        split: [[file.path.name, file.rows, file.bytes] for file in files] for split, files in shards.files.items()
    }
    return {"root": str(shards.root), "patch": shards.patch, "paired": shards.paired, "files": files}


def _files(started: "Bundle") -> ModelFiles:
    from raydenoise.model import bundle

    with tempfile.TemporaryDirectory() as folder:
        bundle.write(started, Path(folder))
        return ModelFiles.read(Path(folder))


def _open(config: TrainConfig, root: Path, facts: dict[str, Any]) -> None:
    """Check that RUN is new, or with `--resume` that it is the same run.

    Raises:
        ValueError: it is not.
    """
    if not config.resume:
        try:
            check_empty(root)
        except ValueError as error:
            raise ValueError(f"{error}; or --resume to go on with a run") from error
        return
    try:
        before = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"output {str(root)!r} holds no run to resume: {error}; leave out --resume") from error
    kind = before.get("kind") if isinstance(before, dict) else type(before).__name__
    if kind != KIND:
        raise ValueError(f"output {str(root)!r} holds no run to resume: its {MANIFEST} is of {kind!r}, not of {KIND!r}")
    if before.get("status") == "finished":
        raise ValueError(f"output {str(root)!r} holds a finished run; allowed: one that was stopped")
    for name, now in facts.items():
        if before.get(name) != now:
            then = before.get(name)
            both = isinstance(now, dict) and isinstance(then, dict)
            changed = ", ".join(key for key in now if then.get(key) != now[key]) if both else then
            raise ValueError(
                f"output {str(root)!r} holds a run with another {name} ({changed}); allowed: the same as before"
            )


def write_manifest(root: Path, content: dict[str, Any]) -> None:
    """Replace RUN/manifest.json."""
    publish_json(root / MANIFEST, content)


def finish(config: TrainConfig, task: Task, started: "Bundle", checkpoint: Path) -> dict[str, Any]:
    """Write the bundle of the best checkpoint with its card, and the learning curve; returns the summary."""
    from raydenoise.model import bundle
    from raydenoise.training import state

    root, recipe = task.run, task.recipe
    before = _scores(started.model, task.shards) if config.init is not None else {}
    weights, facts = state.averaged(checkpoint, count=len(started.model.weights))
    started.model.set_weights(weights)
    scores: dict[str, Any] = {"step": facts.step, **_scores(started.model, task.shards)}
    for split, reached in before.items():
        scores[split] |= {key.replace("denoised", "init"): value for key, value in reached.items() if "denoised" in key}
    sigma_range = started.card.sigma_range
    card = replace(
        started.card,
        name=root.name,
        sigma_range=recipe.sigma_range if sigma_range and recipe.noise == "awgn" else sigma_range,
        training={
            "command": command(config),
            "recipe": asdict(recipe),
            "init": config.init,
            "frozen_encoder": config.freeze_encoder,
            "patches": task.shards.rows("train"),
            "duration_s": round(facts.seconds),
            "workers": config.workers,
            "hardware": _hardware(task),
        },
        scores=scores,
    )
    bundle.write(bundle.Bundle(started.model, card), root / BUNDLE)
    if card.architecture.startswith("autoencoder"):
        write_h5(started.model, card.architecture, card.arguments, root / "autoencoder.h5")
    learning_curve(root / METRICS, path=root / CURVE)
    return {"output": str(root), "steps": recipe.steps, "seconds": round(facts.seconds, 1), **scores}


def _scores(model: Any, shards: ShardSet) -> dict[str, dict[str, float]]:
    return {split: score(model, shards, split) for split in ("validation", "test") if shards.rows(split)}


def score(model: Any, shards: ShardSet, split: Any) -> dict[str, float]:
    """Mean PSNR in dB of the noisy and the denoised patches of a split, at each validation level or of the pairs."""
    from raydenoise.training.batches import VALIDATION_SIGMAS, mean_psnr, validation_pairs

    inputs, channels = model.input_shape[-1], model.output_shape[-1]
    found = []
    for sample in held_out(shards, split=split, part=slice(None)):
        levels = validation_pairs(sample, inputs=inputs, channels=channels)
        noisy, clean = (np.stack(arrays) for arrays in zip(*levels, strict=True))
        denoised = np.asarray(model.predict_on_batch(noisy))
        found.append(
            [
                (
                    mean_psnr(clean[i : i + 1], noisy[i : i + 1, ..., :channels]),
                    mean_psnr(clean[i : i + 1], denoised[i : i + 1]),
                )
                for i in range(len(levels))
            ]
        )
    means = np.mean(found, axis=0)
    names = [f"_{sigma:g}" for sigma in VALIDATION_SIGMAS] if len(means) > 1 else [""]
    return {
        f"{what}{name}": round(float(means[level, index]), 3)
        for level, name in enumerate(names)
        for index, what in enumerate(("psnr_noisy", "psnr_denoised"))
    }


def write_h5(model: Any, architecture: str, arguments: dict[str, Any], path: Path) -> None:
    """Write the notebook's `autoencoder.h5`: the network at its own input size, compiled as it was there."""
    from raydenoise.model import networks

    fixed = networks.build(architecture, **arguments).model
    fixed.set_weights(model.get_weights())
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # Keras warns that the format is old, which is why it is written
    try:
        fixed.save(path)
    finally:
        absl.setLevel(level)


def command(config: TrainConfig) -> str:
    """Write down the command line of a run; where its folders lie is nobody's business."""
    words = ["raydenoise", "train", "$SHARDS", "--output", "$RUN"]
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in NOT_RECORDED or value == entry.default or (entry.name == "model_args" and not value):
            continue
        words.append("--" + entry.name.replace("_", "-"))
        if isinstance(value, dict):
            words += assignments(value)
        elif value is not True:
            words.append(shown(value, entry.metadata["comma"]) or "none")
    return " ".join(shlex.quote(word) if word not in ("$SHARDS", "$RUN") else word for word in words)


def _hardware(task: Task) -> str:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0) for node in nodes)
    return f"{platform.machine()}, {len(nodes)} nodes, {gpus:g} GPUs, {task.threads or 'all'} threads a worker"

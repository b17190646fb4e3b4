"""The end of a training: the bundle with its card and scores, the learning curve."""

import logging
import platform
import shlex
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from raydenoise.config import TrainConfig
from raydenoise.config.options import assignments, shown
from raydenoise.data.schema import SPLITS, Split
from raydenoise.data.shards import ShardSet
from raydenoise.data.storage import publish_folder
from raydenoise.model.card import fit_name
from raydenoise.pipelines.group import Task
from raydenoise.pipelines.runlog import METRICS
from raydenoise.pipelines.samples import Levels, held_out
from raydenoise.report.curves import learning_curve

if TYPE_CHECKING:
    from raydenoise.model.bundle import Bundle

BUNDLE, CURVE = "bundle", "learning-curve.png"  # in RUN
NOT_RECORDED = ("shards", "output", "resume", "address", "quiet", "json", "verbose")  # in a card's command


def finish(config: TrainConfig, task: Task, started: "Bundle", checkpoint: Path) -> dict[str, Any]:
    """Write the bundle of the best checkpoint with its card, and the learning curve; returns the summary."""
    from raydenoise.model import bundle
    from raydenoise.training import state

    root, recipe = task.run, task.recipe
    before = _scores(started.model, task) if config.init is not None else {}
    weights, facts = state.averaged(checkpoint, count=len(started.model.weights))
    started.model.set_weights(weights)
    scores: dict[str, Any] = {"step": facts.step, **_scores(started.model, task)}
    for split, reached in before.items():
        scores[split] |= {key.replace("denoised", "init"): value for key, value in reached.items() if "denoised" in key}
    sigma_range = started.card.sigma_range
    card = replace(
        started.card,
        name=fit_name(root.name),
        sigma_range=recipe.levels if sigma_range and recipe.noise != "paired" else sigma_range,
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
        versions=bundle.writers(),
    )
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        bundle.write(bundle.Bundle(started.model, card), local / BUNDLE)
        if card.architecture.startswith("autoencoder"):
            write_h5(started.model, card.architecture, card.arguments, local / "autoencoder.h5")
        publish_folder(local, root)
    learning_curve(root / METRICS, path=root / CURVE)
    return {"output": str(root), "steps": recipe.steps, "seconds": round(facts.seconds, 1), **scores}


def _scores(model: Any, task: Task) -> dict[str, dict[str, float]]:
    return {
        split: score(model, task.shards, split, levels=task.source.levels)
        for split in SPLITS
        if split != "train" and task.shards.rows(split)
    }


def score(model: Any, shards: ShardSet, split: Split, *, levels: Levels | None) -> dict[str, float]:
    """Mean PSNR in dB of the noisy and the denoised patches of a split, at each validation level or of the pairs."""
    from raydenoise.training.batches import VALIDATION_SIGMAS, mean_psnr, validation_pairs

    inputs, channels = model.input_shape[-1], model.output_shape[-1]
    found = []
    for sample in held_out(shards, split=split, part=slice(None), levels=levels):
        pairs = validation_pairs(sample, inputs=inputs, channels=channels)
        noisy, clean = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        denoised = np.asarray(model.predict_on_batch(noisy))
        found.append(
            [
                (
                    mean_psnr(clean[i : i + 1], noisy[i : i + 1, ..., :channels]),
                    mean_psnr(clean[i : i + 1], denoised[i : i + 1]),
                )
                for i in range(len(pairs))
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

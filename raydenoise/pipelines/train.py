"""Data-parallel training on Ray Train: shards -> workers -> checkpoints -> bundle."""

import json
import logging
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.tensorflow import TensorflowTrainer

from raydenoise.config import TrainConfig
from raydenoise.data.lease import Claim, LeaseLostError, check_free, held
from raydenoise.data.manifest import TRAINING_KIND, recorded, versions
from raydenoise.data.place import Remote, place
from raydenoise.data.shards import MANIFEST, ShardSet, read_manifest
from raydenoise.pipelines.checks import (
    begin,
    fingerprint,
    known_precision,
    make_recipe,
    open_run,
    short_run,
    trained_in,
)
from raydenoise.pipelines.displays import TrainDisplay, say
from raydenoise.pipelines.finish import finish
from raydenoise.pipelines.group import Resources, Task, ask_precision, local_cpus, plan
from raydenoise.pipelines.process import ModelFiles, set_environment
from raydenoise.pipelines.samples import Source
from raydenoise.pipelines.session import cluster_address, here, session, waiting_for_nodes
from raydenoise.pipelines.sharing import check_shared
from raydenoise.training.recipe import Recipe, TrainingPrecision

if TYPE_CHECKING:
    from raydenoise.model.bundle import Bundle

CHECKPOINTS = "checkpoints"  # in RUN
PSNR = "psnr"  # the metric that chooses the best checkpoint
ATTEMPTS = 2  # at the same checkpoint, of a worker that fails by itself
FAILURES = 100  # worker groups that may be lost before the command gives up; --resume goes on from there
EPOCHS = 10  # where neither epochs nor steps are given
# Of the workers, which keep all cores busy: as that of Ray's own processes. With Ray's default these stop a worker at
# each of their 2,000 wake-ups a second, and the threads of a step wait for the one that was stopped.
NICENESS = 0
CHECKPOINT_STEPS = 500  # at most between two checkpoints, unless told otherwise


@dataclass(frozen=True)
class Ready:
    """A training whose arguments were checked: all that needs no Ray."""

    config: TrainConfig
    shards: ShardSet
    started: "Bundle"
    recipe: Recipe
    source: Source

    def computed_in(self, precision: str) -> "Ready":
        """The same where its workers compute this fast."""
        return replace(self, recipe=replace(self.recipe, precision=trained_in(precision)))

    def facts(self) -> dict[str, Any]:
        """What must stay the same with `--resume`, as the manifest holds it."""
        facts = {
            "recipe": asdict(self.recipe),
            "shards": fingerprint(self.shards),
            "init": self.config.init,
            "freeze_encoder": self.config.freeze_encoder,
        }
        return dict(json.loads(json.dumps(facts)))

    def task(self, resources: Resources, *, files: ModelFiles, claim: Claim) -> Task:
        """Put together what the workers do with these resources; `files` are those of the network."""
        epoch = self.source.order.steps
        return Task(
            run=place(self.config.output),
            claim=claim,
            files=files,
            frozen=self.config.freeze_encoder,
            recipe=self.recipe,
            shards=self.shards,
            source=self.source,
            checkpoint_every=self.config.checkpoint_every or min(epoch, CHECKPOINT_STEPS),
            validate_every=self.config.validate_every or epoch,
            threads=resources.threads,
            read_cpus=resources.read_cpus,
        )


def run(config: TrainConfig) -> dict[str, Any]:
    """Train a network and return the summary.

    Raises:
        ValueError: an argument is not allowed or does not fit the shards, or the cluster's machines do not share a
            local folder; nothing was trained.
        RuntimeError: the job broke, or the loss became NaN.
    """
    root = place(config.output, argument="output")
    shards = read_manifest(config.shards)
    address = cluster_address(config.address)
    precision = known_precision(config, root, private=address is None)
    ready = settle(config, shards, begin(config, shards), precision=precision)
    check_output = partial(open_run, config, root, ready.facts())
    check_output()
    free = check_free(root)
    with session(
        address,
        cpus=local_cpus(config),
        gpus=config.gpus_per_worker,
        niceness=NICENESS,
        verbose=config.verbose,
    ):
        resources = plan(config, private=address is None)
        check_shared([str(shards.root / MANIFEST)] if isinstance(shards.root, Path) else [], output=root)
        if precision is None:
            ready = ready.computed_in(ask_precision(resources, quiet=config.quiet))
        manifest = {
            "kind": TRAINING_KIND,
            **ready.facts(),
            "config": asdict(config),
            "resources": asdict(resources),
            "ray": address or "local",
            "versions": versions(),
        }
        if (short := short_run(ready.recipe)) is not None:
            say(short, quiet=config.quiet)
        with held(root, free=free, check=check_output) as lease, recorded(root, manifest, allowed=lease.check):
            task = ready.task(resources, files=model_files(ready.started), claim=lease.claim)
            best, manifest["workers"] = fit(config, task, resources)
            lease.check()  # before a bundle is written
            if any(shards.rows(split) for split in ("validation", "test")):
                say("measuring the best checkpoint on the validation and test patches", quiet=config.quiet)
            with best.as_directory() as checkpoint:
                summary = finish(config, task, ready.started, Path(checkpoint))
            manifest["summary"] = summary
    return summary


def settle(config: TrainConfig, shards: ShardSet, started: "Bundle", *, precision: TrainingPrecision | None) -> Ready:
    """Choose the recipe, the order of the samples and the number of steps.

    Where the precision is not known yet, `Ready.computed_in` settles it later.

    Raises:
        ValueError: an argument does not fit the shards.
    """
    recipe = make_recipe(config, shards, started, precision=precision or "float32")
    source = Source.of(
        shards,
        batch_size=recipe.batch_size,
        patch=recipe.patch,
        seed=recipe.seed,
        levels=started.card.sigma_range,
    )
    steps = config.steps or (config.epochs or EPOCHS) * source.order.steps
    return Ready(config, shards, started, replace(recipe, steps=steps), source)


def fit(
    config: TrainConfig, task: Task, resources: Resources, *, callbacks: Sequence[ray.train.UserCallback] = ()
) -> tuple[ray.train.Checkpoint, dict[str, str]]:
    """Run the worker group to the end; returns the best checkpoint, and where the last group ran.

    Raises:
        RuntimeError: it failed for good, or the loss became NaN.
        LeaseLostError: another job goes on with the run.
    """
    # Beside the driver: it must outlive every other node.
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here()).remote()
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
            storage_path=task.run.path if isinstance(task.run, Remote) else str(task.run),
            storage_filesystem=task.run.filesystem if isinstance(task.run, Remote) else None,
            callbacks=list(callbacks) or None,
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                # The best one and the last one; where none is the best, the one before the last, which may be spoiled
                # before its loss can tell.
                num_to_keep=1 if validated else 2,
                checkpoint_score_attribute=PSNR if validated else None,
            ),
        ),
    )
    waiting = partial(waiting_for_nodes, cpus=resources.cpus, gpus=resources.gpus, processes=config.workers)
    with TrainDisplay(
        task.recipe.steps,
        quiet=config.quiet,
        read=lambda: ray.get(board.read.remote(), timeout=5),
        waiting=waiting,
    ):
        try:
            with _own_interrupts():
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            task.claim.check()  # a checkpoint that is gone may be another job's doing
            raise RuntimeError(f"training failed: {error}; --resume goes on from the last checkpoint") from error
    news = ray.get(board.read.remote())
    if "taken" in news:
        raise LeaseLostError(news["taken"])
    if news.get("broken"):
        raise RuntimeError(f"a worker failed {ATTEMPTS} times at the same place: {news['error']}")
    if "diverged" in news:
        kept = "the last good checkpoint is kept in" if result.checkpoint else "there was no checkpoint yet in"
        raise RuntimeError(f"{news['diverged']}; {kept} {task.run / CHECKPOINTS}; a lower --learning-rate may help")
    if result.checkpoint is None:
        raise RuntimeError("training ended without a checkpoint")
    known = [(metrics.get(PSNR, nan), checkpoint) for checkpoint, metrics in result.best_checkpoints]
    scored = [entry for entry in known if isfinite(entry[0])]
    best = max(scored, key=lambda entry: entry[0])[1] if scored else result.checkpoint
    return best, news["workers"]


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Put back how this process takes Ctrl-C: Ray Train's way stays behind its workers, and ends a process with 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if error.code:  # not Ctrl-C, but SIGTERM: of Ray's driver
            raise
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


def work(given: dict[str, Any]) -> None:
    """What Ray calls in each worker process: sets the environment, then lets TensorFlow begin."""
    set_environment()
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


def model_files(started: "Bundle") -> ModelFiles:
    """Turn a network into bytes that travel to the workers."""
    from raydenoise.model import bundle

    with tempfile.TemporaryDirectory() as folder:
        bundle.write(started, Path(folder))
        return ModelFiles.read(Path(folder))

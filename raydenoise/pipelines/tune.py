"""Hyperparameter search on Ray Tune: space -> combinations -> trials of `train` -> table, plot, best config."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from raydenoise import tuning
from raydenoise.config import TrainConfig, TuneConfig
from raydenoise.config.space import Space
from raydenoise.data.lease import Claim, check_free, held
from raydenoise.data.manifest import recorded, versions
from raydenoise.data.place import Remote, place
from raydenoise.data.shards import MANIFEST, read_manifest
from raydenoise.pipelines.checks import fingerprint, open_run, trained_in
from raydenoise.pipelines.combinations import Checked, check
from raydenoise.pipelines.displays import TuneDisplay
from raydenoise.pipelines.group import Resources, Task, ask_precision, local_cpus, plan
from raydenoise.pipelines.session import cluster_address, node_types, nodes_up, possible_resources, session
from raydenoise.pipelines.sharing import check_shared
from raydenoise.pipelines.train import CHECKPOINTS, NICENESS, PSNR, fit

KIND = "raydenoise tuning"  # of the manifest
EXPERIMENT = "ray-tune"  # in TUNE: what Ray Tune needs to go on
DRIVER_CPUS = 0.1  # logical CPUs of the process that drives a trial: it waits for its workers
LOST = 3  # times that a trial whose process or machine was lost is tried again, from its last checkpoint
SETTINGS = (
    "epochs",
    "steps",
    "validate_every",
    "scheduler",
    "grace",
    "reduction",
    "concurrent",
)  # with --resume the same as before
PERCENT = "percent"  # what asha goes by: trials of other batch sizes may have other numbers of steps


@dataclass(frozen=True)
class Shares:
    """The workers of all trials that run at once; see `group.Request`."""

    workers: int
    cpus_per_worker: float | None
    gpus_per_worker: float | None


@dataclass(frozen=True)
class Job:
    """What the trials of a tuning do.

    Attributes:
        root: TUNE.
        configs: of the trainings, by number.
        tasks: of their workers. Trials of one network share its bytes, also where Ray pickles this.
        resources: of each worker.
    """

    root: Path
    configs: tuple[TrainConfig, ...]
    tasks: tuple[Task, ...]
    resources: Resources

    @classmethod
    def of(cls, root: Path, checked: Sequence[Checked], resources: Resources, *, claim: Claim) -> "Job":
        """Put together what was checked and what the Ray gives."""
        tasks = tuple(one.ready.task(resources, files=one.files, claim=claim) for one in checked)
        return cls(root, tuple(one.ready.config for one in checked), tasks, resources)


def run(config: TuneConfig) -> dict[str, Any]:
    """Draw combinations, train them, write what came of it, and return the summary.

    Raises:
        ValueError: an argument is not allowed, a combination is none that could be trained, or the cluster's machines
            do not share a local folder; nothing was trained.
        RuntimeError: the job broke, or no trial has a validation.
    """
    started = time.monotonic()
    root = place(config.output, argument="output")
    if isinstance(root, Remote):
        raise ValueError(f"output is {str(root)!r}; allowed: a local folder")
    config = replace(config, output=str(root))
    shards = read_manifest(config.shards)
    space = Space.read(Path(config.space))
    combinations = space.draw(config.trials, seed=config.seed)
    checked = check(config, shards, space, combinations)
    facts = {
        "drawing": [tuning.plain(combination) for combination in combinations],
        "fixed": tuning.plain(space.fixed),
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "shards": fingerprint(shards),
    }
    check_output = partial(open_run, config, root, facts, kind=KIND, noun="tuning")
    check_output()
    free = check_free(root)
    address = cluster_address(config.address)
    # Without a dashboard Ray Train never learns that a trial was stopped, and keeps its workers' CPUs for ever.
    with session(
        address,
        cpus=_local_cpus(config),
        gpus=config.gpus_per_worker,
        dashboard=True,
        niceness=NICENESS,
        verbose=config.verbose,
    ):
        check_shared([str(shards.root / MANIFEST)] if isinstance(shards.root, Path) else [], output=root)
        concurrent = config.concurrent or _concurrent(config, private=address is None)
        resources = _plan(config, concurrent=concurrent, private=address is None)
        precision = _precision(config, root, checked, resources, private=address is None)
        manifest = {
            "kind": KIND,
            **facts,
            "config": asdict(config),
            "concurrent": concurrent,
            "resources": asdict(resources),
            "precision": precision,
            "ray": address or "local",
            "versions": versions(),
        }
        with held(root, free=free, check=check_output) as lease, recorded(root, manifest, allowed=lease.check):
            job = Job.of(root, [one.computed_in(precision) for one in checked], resources, claim=lease.claim)
            results = search(config, job, combinations, concurrent=concurrent)
            lease.check()  # before trials are noted as stopped, and checkpoints go
            note_ends(job, results)
            ended = tuning.read_trials(root, combinations)
            summary = conclude(root, space, ended, seconds=time.monotonic() - started)
            manifest["summary"] = summary
    return summary


def search(
    config: TuneConfig, job: Job, combinations: Sequence[Mapping[str, Any]], *, concurrent: int
) -> ray.tune.ResultGrid:
    """Train what has not ended yet, on Ray Tune."""
    _quieten(verbose=config.verbose)
    with TuneDisplay(job.root, combinations, quiet=config.quiet):
        return tuner(config, job, concurrent=concurrent).fit()


def note_ends(job: Job, results: ray.tune.ResultGrid) -> None:
    """Give every trial that has none a note of how it ended."""
    for result in results:
        if result.error is not None and result.config:  # its process was lost more often than we try
            tuning.record(job.root, result.config["trial"], status="error", error=str(result.error)[-300:])
    for number in range(len(job.configs)):
        tuning.record(job.root, number, status="stopped")


def tuner(config: TuneConfig, job: Job, *, concurrent: int) -> ray.tune.Tuner:
    """Set up Ray Tune: the numbers of the trials are its search space, since they are drawn and checked already."""
    trainable = ray.tune.with_resources(ray.tune.with_parameters(trial, job=job), {"CPU": DRIVER_CPUS})
    folder = str(job.root / EXPERIMENT)
    if config.resume and ray.tune.Tuner.can_restore(folder):
        return ray.tune.Tuner.restore(folder, trainable=trainable, resume_unfinished=True)
    asha = ASHAScheduler(
        time_attr=PERCENT,
        max_t=101,  # percent: a trial that reaches 100 ends by itself and says so
        grace_period=100 * config.grace,
        reduction_factor=config.reduction,
    )
    return ray.tune.Tuner(
        trainable,
        param_space={"trial": ray.tune.grid_search(list(range(len(job.configs))))},
        tune_config=ray.tune.TuneConfig(
            metric=PSNR,
            mode="max",
            scheduler=asha if config.scheduler == "asha" else None,
            max_concurrent_trials=concurrent,
        ),
        run_config=ray.tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(job.root),
            callbacks=[Outcomes(job.root)],
            failure_config=ray.tune.FailureConfig(max_failures=LOST),
            verbose=2 if config.verbose else 0,
        ),
    )


def trial(drawn: dict[str, Any], *, job: Job) -> None:
    """What Ray Tune calls in the process of each trial: a training, and a note of how it ended.

    An error of the training is its row, not the end of the job; what is tried again is a lost process, or a trial of a
    tuning that another job took, which changes nothing there.
    """
    number = drawn["trial"]
    claim = job.tasks[number].claim
    claim.check()
    if tuning.ended(job.root, number):  # before Ray Tune could note it
        return
    status, told = "finished", None
    try:
        fit(job.configs[number], job.tasks[number], job.resources, callbacks=[TuneReportCallback()])
    except Exception as error:
        status, told = "error", f"{type(error).__name__}: {error}"
    claim.check()  # else the row is another job's to write
    tuning.record(job.root, number, status=status, error=told)


class Outcomes(ray.tune.Callback):  # type: ignore[misc]  # ray has no type stubs
    """Notes that the scheduler stopped a trial. Ray Tune pickles this: it holds the folder alone."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Called by Ray Tune, also where a trial ended by itself and noted it."""
        tuning.record(self._root, trial.config["trial"], status="stopped")


def conclude(root: Path, space: Space, ended: Sequence[tuning.Trial], *, seconds: float) -> dict[str, Any]:
    """Write tables, plot and best config, drop the checkpoints, and make the summary.

    Raises:
        RuntimeError: no trial has a validation.
    """
    best = tuning.best_of(ended)
    tuning.write(root, ended, options=space.options(best.drawn) if best else None)
    failed = [one for one in ended if one.status == "error"]
    if best is None or best.best is None:
        first = next((one.error for one in failed), "none was validated")
        raise RuntimeError(f"no trial has a validation PSNR; the first error: {first}; see {root / tuning.TABLE}")
    tuning.drop(root, CHECKPOINTS, count=len(ended))
    return {
        "output": str(root),
        "trials": len(ended),
        "finished": sum(one.status == "finished" for one in ended),
        "stopped": sum(one.status == "stopped" for one in ended),
        "failed": len(failed),
        "seconds": round(seconds, 1),
        "best": {
            "trial": best.number,
            "psnr": round(best.best[1], 3),
            "step": best.best[0],
            **tuning.plain(best.drawn),
        },
        "first_failures": [{"key": f"trial {one.number}", "error": one.error} for one in failed[:5]],
    }


def _local_cpus(config: TuneConfig) -> int:
    """Declare for all trials at once what `train` does for one, and a part for each that drives a trial."""
    concurrent = config.concurrent or 1
    return local_cpus(_shares(config, concurrent)) + math.ceil(DRIVER_CPUS * concurrent)


def _shares(config: TuneConfig, concurrent: int) -> Shares:
    return Shares(config.workers * concurrent, config.cpus_per_worker, config.gpus_per_worker)


def _concurrent(config: TuneConfig, *, private: bool) -> int:
    """As many trials at once as there are GPUs for, else as there are machines for."""
    gpus = (ray.cluster_resources() if private else possible_resources()).get("GPU", 0)
    up = sum(bool(node.resources.get("CPU")) for node in nodes_up())
    # Of a cluster that is scaled to zero what it can launch. Else `plan` would pack as many on what is up.
    machines = up or sum(one.count for one in node_types() if one.resources.get("CPU"))
    places = gpus if gpus and config.gpus_per_worker != 0 else machines
    return max(1, min(config.trials, int(places // config.workers)))


def _plan(config: TuneConfig, *, concurrent: int, private: bool) -> Resources:
    try:
        return plan(_shares(config, concurrent), private=private, reserved=DRIVER_CPUS * concurrent)
    except ValueError as error:
        raise ValueError(f"{concurrent} trials at once: {error}") from error


def _precision(
    config: TuneConfig, root: Path, checked: Sequence[Checked], resources: Resources, *, private: bool
) -> str | None:
    """What `--precision auto` of the trials means, also where the tuning goes on elsewhere; None where none has it."""
    known = [one.ready.recipe.precision for one in checked if one.ready.config.precision == "auto"]
    if not known:
        return None
    before = json.loads((root / MANIFEST).read_bytes()).get("precision") if config.resume else None
    if before is not None:
        return str(before)
    return known[0] if private else trained_in(ask_precision(resources, quiet=config.quiet))


def _quieten(*, verbose: bool) -> None:
    """Set what Ray Tune reads: no logs of its own, and Ctrl-C ends the job as it does elsewhere."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # a run has its own rows and events
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that fails at once has no PSNR
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "1" if verbose else "0"  # the new one prints a table at verbosity 0 too
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)

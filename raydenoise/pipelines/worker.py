"""One Ray Train worker: the distribution strategy around `training.loop`, and what flows in and out of it.

Imported in worker processes alone, once their environment is set: it imports TensorFlow.
"""

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import ray
import ray.train
import ray.train.collective
import tensorflow as tf

from raydenoise.data.lease import Claim, LeaseLostError
from raydenoise.model import bundle
from raydenoise.model.networks import Network
from raydenoise.model.precision import layers_of
from raydenoise.pipelines.group import Task
from raydenoise.pipelines.process import assigned_gpus, worker_name
from raydenoise.pipelines.runlog import RunLog
from raydenoise.pipelines.samples import held_out, samples
from raydenoise.training import loop, state
from raydenoise.training.batches import (
    VALIDATION_SIGMAS,
    Batch,
    FloatPixels,
    prefetched,
    training_batch,
    validation_pairs,
)
from raydenoise.training.dormant import RENEWED, SEEN, firing, hidden, renew
from raydenoise.training.objective import loss, optimizer
from raydenoise.training.recipe import Recipe
from raydenoise.training.step import freeze_encoder, models

# What a collective raises where another worker is gone: the group starts again, as often as it takes. Rings raised
# UnavailableError whenever a worker was killed or ended (TensorFlow 2.21, tests/pipelines/test_worker.py).
PEER_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
# InternalError may come from anywhere; of a peer it says that gRPC failed while it brought data or was asked for its
# health (the words that TensorFlow adds to any status of gRPC's), or that the look at the peers' health broke
# (`_check_health` of tensorflow/python/distribute/collective_all_reduce_strategy.py).
PEER_SAID = re.compile(
    r"remote target /job:\S+ while calling /tensorflow\.WorkerService/(RecvBuf|GetStatus)|exception in check alive"
)


def work(task: Task, board: Any) -> None:
    """Train as one rank of the group, from the group's last checkpoint on."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    board.join.remote(rank=rank, name=worker_name())
    try:
        _check_claim(task.claim, first=rank == 0)  # before a checkpoint is read, which the other job may have removed
    except LeaseLostError as error:
        ray.get(board.post.remote(taken=str(error)))
        return
    # Before anything else of TensorFlow runs.
    strategy = join_group(workers, threads=task.threads, gpus=bool(assigned_gpus()), seed=task.recipe.seed)
    engine = MirroredEngine(read_network(task), task.recipe, strategy=strategy)
    facts = _restored(engine)
    if ray.get(board.gives_up.remote(step=facts.step)):
        return
    inputs, channels = engine.model.input_shape[-1], engine.model.output_shape[-1]
    share = task.recipe.batch_size // workers

    def batches() -> Iterator[Batch]:
        for part in samples(
            task.source,
            slots=range(rank * share, (rank + 1) * share),
            first=facts.step,
            last=task.recipe.steps,
            cpus=task.read_cpus,
        ):
            yield training_batch(part, recipe=task.recipe, inputs=inputs, channels=channels)

    validation = [
        validation_pairs(sample, inputs=inputs, channels=channels)
        for sample in held_out(
            task.shards, split="validation", part=slice(rank, None, workers), levels=task.source.levels
        )
    ]
    log = RunLog(task.run, first=facts.step) if rank == 0 else None
    psnr = facts.psnr

    def report(progress: loop.Progress) -> None:
        nonlocal psnr
        if progress.validated and task.shards.rows("validation"):
            psnr = _validate(engine, validation)
            if progress.step <= RENEWED * task.recipe.steps:
                _renew(engine, validation[: max(1, SEEN // workers)], seed=progress.step)
        if log is not None:
            log.add(progress, psnr if progress.validated else {})
            news = {"step": progress.step, "loss": progress.loss, "rate": progress.patches_per_s, "psnr": psnr}
            board.post.remote(**news, batch_size=task.recipe.batch_size)
        if progress.checkpoint:
            _check_claim(task.claim, first=rank == 0)
            if log is not None:
                log.publish()  # before the checkpoint: rows beyond the last one are taken back, missing ones are not
            done = state.Facts(progress.step, progress.seconds, psnr)
            told = asdict(progress) | {"percent": 100 * progress.step / task.recipe.steps}
            _checkpoint(engine, done, first=rank == 0, metrics=told | (psnr if progress.validated else {}))

    try:
        loop.train(
            engine,
            prefetched(batches),
            recipe=task.recipe,
            cadence=loop.Cadence(loop.REPORT_EVERY, task.checkpoint_every, task.validate_every),
            first=facts.step,
            seconds=facts.seconds,
            on_report=report,
        )
    except loop.DivergedError as error:  # every rank has the same loss; trying again would not help
        ray.get(board.post.remote(diverged=str(error)))
    except LeaseLostError as error:  # so do all ranks end here
        ray.get(board.post.remote(taken=str(error)))
    except Exception as error:
        if not peer_lost(error, workers=workers):
            ray.get(board.fail.remote(step=facts.step, rank=rank, error=f"{type(error).__name__}: {error}"))
        raise
    finally:
        if log is not None:
            log.close()


def _check_claim(claim: Claim, *, first: bool) -> None:
    """Raise LeaseLostError on all ranks, which meet here, where the first one sees that another job has the run."""
    taken = None
    if first:
        try:
            claim.check()
        except LeaseLostError as error:
            taken = str(error)
    taken = ray.train.collective.broadcast_from_rank_zero(taken)
    if taken:
        raise LeaseLostError(taken)


def peer_lost(error: Exception, *, workers: int) -> bool:
    """Tell whether an error says that another worker of the group is gone, and not that this one failed."""
    if workers == 1:
        return False
    if isinstance(error, tf.errors.InternalError):
        return PEER_SAID.search(str(error)) is not None
    return isinstance(error, PEER_LOST)


def read_network(task: Task) -> Network:
    """Load the network to begin with."""
    with tempfile.TemporaryDirectory() as folder:
        task.files.write(Path(folder))
        loaded = bundle.load(folder, vetted=True)
    if task.frozen:
        freeze_encoder(loaded.model)
    return loaded.network


def join_group(workers: int, *, threads: int | None, gpus: bool, seed: int) -> tf.distribute.Strategy:
    """Settle the threads of this process and join the group that TF_CONFIG names.

    Args:
        workers: of the group; 1 needs no TF_CONFIG.
        threads: of the processor; None for TensorFlow's choice.
        gpus: this process has one.
        seed: of what Keras draws.
    """
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    if not gpus:  # on a CPU it costs nothing; a GPU would lose speed
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    if workers == 1:
        return tf.distribute.get_strategy()
    kind = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=kind.NCCL if gpus else kind.RING)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class MirroredEngine:
    """The training step on all workers at once: same weights everywhere, the gradient of the global batch.

    Keras' `fit` does not run under MultiWorkerMirroredStrategy (facts: it builds from per-replica values and reduces
    scalars along an axis), and its optimizers clip each worker's gradient before the reduction. So the step is written
    out: gradient, reduction, clipping, update.
    """

    def __init__(self, network: Network, recipe: Recipe, *, strategy: tf.distribute.Strategy) -> None:
        self._strategy, self._recipe, self._loss = strategy, recipe, loss(recipe)
        with strategy.scope():
            self.model, self.averaged = models(network, recipe)
            self.optimizer = optimizer(recipe, clip=False)
            self.optimizer.build(self.model.trainable_variables)
        # Keras would sum the gradients over the workers once more.
        self.optimizer._all_reduce_sum_gradients = lambda pairs: pairs
        normalizations = (one for one in layers_of(self.model) if isinstance(one, keras.layers.BatchNormalization))
        self._statistics = [v for layer in normalizations if layer.trainable for v in layer.non_trainable_variables]
        self._step = tf.function(self._global_step)
        self._sum = tf.function(lambda values: strategy.run(_all_reduced, (values,)))
        self._predict = tf.function(lambda noisy: self.averaged(noisy, training=False), reduce_retracing=True)

    def step(self, noisy: FloatPixels, clean: FloatPixels) -> Any:
        """Move the weights once; returns the loss of the global batch."""
        return self._step(tf.convert_to_tensor(noisy), tf.convert_to_tensor(clean))

    def predict(self, noisy: FloatPixels) -> FloatPixels:
        """Denoise with the averaged weights, on this worker alone."""
        return np.asarray(self._predict(tf.convert_to_tensor(noisy)))

    def sum_over_workers(self, values: FloatPixels) -> FloatPixels:
        """Add up the workers' arrays of one shape; all workers call it."""
        return np.asarray(self._sum(tf.convert_to_tensor(values)))

    def _global_step(self, noisy: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        return self._strategy.run(self._replica_step, (noisy, clean))

    def _replica_step(self, noisy: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            own = self._loss(clean, self.model(noisy, training=True)) + sum(self.model.losses)  # regularizers' last
            share = own / self._strategy.num_replicas_in_sync
        gradients = tape.gradient(share, [variable.value for variable in self.model.trainable_variables])
        context = tf.distribute.get_replica_context()
        total, *gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, [share, *gradients])
        if self._recipe.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._recipe.clip_norm)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        if self._statistics:  # of a part of the batch, where the weights are of all of it
            placed = [tf.identity(variable.value) for variable in self._statistics]  # see _all_reduced
            for variable, added in zip(
                self._statistics, context.all_reduce(tf.distribute.ReduceOp.SUM, placed), strict=True
            ):
                variable.assign(added / self._strategy.num_replicas_in_sync)
        return total


def _all_reduced(values: tf.Tensor) -> tf.Tensor:
    placed = tf.identity(values)  # on the worker's device: the reduction goes where its value is
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)


def _restored(engine: MirroredEngine) -> state.Facts:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return state.Facts()
    with checkpoint.as_directory() as folder:
        return state.load(Path(folder), engine)


def _validate(engine: MirroredEngine, pictures: list[list[Batch]]) -> dict[str, float]:
    """Mean PSNR in dB over all workers' pictures: at each sigma, or of the pairs; and the mean of these."""
    levels: dict[int, list[float]] = defaultdict(list)
    for levels_of_one in pictures:
        for index, value in enumerate(loop.psnrs(engine, levels_of_one)):
            levels[index].append(value)
    sums = np.array([[sum(levels[i]), len(levels[i])] for i in range(len(VALIDATION_SIGMAS))], np.float32)
    totals = engine.sum_over_workers(sums)
    return loop.psnr_metrics([float(total / count) for total, count in totals if count])


def _renew(engine: MirroredEngine, pictures: list[list[Batch]], *, seed: int) -> None:
    """Begin units afresh that fire on no worker's pictures; all workers call it and do the same."""
    widths = [entry.before.filters for entry in hidden(engine.model)]
    if not widths:
        return
    sums = np.zeros(sum(widths) + 1, np.float32)  # the last one counts the pictures
    for levels in pictures:
        noisy, _ = levels[len(levels) // 2]
        sums += np.concatenate([*firing(engine.model, noisy[None]), [1]])
    *shares, count = engine.sum_over_workers(sums)
    if count:
        parts = np.split(np.array(shares) / count, np.cumsum(widths)[:-1])
        renew(engine.model, engine.optimizer, parts, seed=seed)


def _checkpoint(engine: MirroredEngine, facts: state.Facts, *, first: bool, metrics: dict[str, Any]) -> None:
    """Hand a checkpoint to Ray Train; all ranks meet here, the first one brings the files."""
    if not first:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), engine, facts)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

"""Laws of the distributed step, on real MultiWorkerMirroredStrategy processes without Ray between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from raydenoise.pipelines.worker import peer_lost
from tests.test_jobs import free_ports

STEPS, BATCH = 5, 8

PROGRAM = """
import json, os, sys
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
rank, workers, runs = json.loads(sys.argv[1])
from raydenoise.model import networks
from raydenoise.training.recipe import Recipe
strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else tf.distribute.get_strategy()
import keras
from raydenoise.pipelines.worker import MirroredEngine, _renew
from raydenoise.training.dormant import firing, hidden, renew
from raydenoise.training.step import LocalEngine, average
for engine_name, clip, optimizer, out in runs:
    keras.utils.set_random_seed(0)
    network = networks.build("resunet", filters=(24, 24), depth=1)
    recipe = Recipe(steps=50, batch_size=8, optimizer=optimizer, learning_rate=1e-3, warmup_steps=0, clip_norm=clip)
    if engine_name == "mirrored":
        engine = MirroredEngine(network, recipe, strategy=strategy)
    else:
        engine = LocalEngine(network, recipe)
    rng = np.random.default_rng(0)
    share = 8 // workers
    losses = []
    for step in range(5):
        noisy = rng.random((8, 16, 16, 4), np.float32) * (1 + np.arange(8, dtype=np.float32))[:, None, None, None]
        clean = rng.random((8, 16, 16, 3), np.float32)
        mine = slice(rank * share, (rank + 1) * share)
        losses.append(float(np.asarray(engine.step(noisy[mine], clean[mine]))))
        if step == 2:  # three units die and begin afresh
            kernel = keras.ops.convert_to_numpy(hidden(engine.model)[1].before.kernel).copy()
            kernel[..., :3] = 0
            hidden(engine.model)[1].before.kernel.assign(kernel)
            if engine_name == "mirrored":
                _renew(engine, [[(picture, None)] for picture in noisy[mine]], seed=step)
            else:
                renew(engine.model, engine.optimizer, firing(engine.model, noisy), seed=step)
            assert np.any(keras.ops.convert_to_numpy(hidden(engine.model)[1].before.kernel)[..., :3])
    average(engine, recipe)
    sums = engine.sum_over_workers(np.array([rank + 1.0, 1.0], np.float32)) if engine_name == "mirrored" else [1, 1]
    arrays = [np.asarray(v) for v in [*engine.model.weights, *engine.averaged.weights]]
    np.savez(out, *arrays, losses=losses, sums=sums)
"""


NORMALIZED = """
import json, sys
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
rank = int(sys.argv[1])
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras
from raydenoise.model.networks import Network
from raydenoise.pipelines.worker import MirroredEngine
from raydenoise.training.recipe import Recipe
pixels = keras.Input((None, None, 3))
normalized = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, padding="same")(pixels))
model = keras.Model(pixels, keras.layers.Conv2D(3, 3, padding="same")(normalized))
engine = MirroredEngine(Network(model, 1, 2, False), Recipe(steps=5, batch_size=2, optimizer="adam"), strategy=strategy)
batch = np.random.default_rng(rank).random((1, 16, 16, 3), np.float32)
for _ in range(3):
    engine.step(batch, batch)
print(json.dumps([v.numpy().tolist() for v in engine.model.non_trainable_variables]), flush=True)
"""


LOSE = """
import json, os, signal, sys, threading
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
rank = int(sys.argv[1])
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from raydenoise.pipelines.worker import MirroredEngine, peer_lost
from raydenoise.model import networks
from raydenoise.training.recipe import Recipe
network = networks.build("resunet", filters=(8, 8), depth=1)
engine = MirroredEngine(network, Recipe(steps=5, batch_size=2, optimizer="adam"), strategy=strategy)
batch = tf.zeros((1, 16, 16, 4)), tf.zeros((1, 16, 16, 3))
engine.step(*batch)
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    while True:
        engine.step(*batch)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error), peer_lost(error, workers=2)]), flush=True)
    os._exit(0)
"""


def test_all_workers_hold_one_set_of_batch_statistics() -> None:
    answers = []
    for process in started(NORMALIZED, [[0], [1]]):
        answer, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-3000:]
        answers.append(json.loads(answer.splitlines()[-1]))
    assert answers[0] == answers[1]
    means, variances = answers[0]
    assert 0 not in means
    assert 1 not in variances


@pytest.mark.slow
def test_a_killed_peer_is_lost_and_no_failure_of_ones_own() -> None:
    survivor, killed = started(LOSE, [[0], [1]])
    answer, said = survivor.communicate(timeout=240)
    killed.communicate(timeout=60)
    assert survivor.returncode == 0, said.decode()[-3000:]
    name, text, lost = json.loads(answer)
    assert lost, f"{name}: {text}"


GRPC = (
    "Collective ops is aborted by: Socket closed\nAdditional GRPC error information from remote target "
    "/job:worker/replica:0/task:1 while calling /tensorflow.WorkerService/{call}:\n:UNKNOWN:Error received from peer"
)


@pytest.mark.parametrize(
    ("kind", "text", "workers", "lost"),
    [
        (tf.errors.UnavailableError, GRPC.format(call="RecvBuf"), 2, True),
        (tf.errors.InternalError, GRPC.format(call="RecvBuf"), 2, True),
        (tf.errors.InternalError, GRPC.format(call="GetStatus"), 2, True),
        (tf.errors.InternalError, "Collective ops is aborted by: unexpected exception in check alive: x", 2, True),
        (tf.errors.InternalError, GRPC.format(call="RecvBuf"), 1, False),
        (tf.errors.InternalError, GRPC.format(call="CompleteInstance"), 2, False),  # this group never agrees
        (tf.errors.InternalError, "Failed to launch a kernel: CUDA_ERROR_ILLEGAL_ADDRESS", 2, False),
        (tf.errors.ResourceExhaustedError, "OOM when allocating tensor", 2, False),
        (OSError, GRPC.format(call="RecvBuf"), 2, False),
    ],
)
def test_an_error_of_ones_own_is_not_laid_on_a_peer(
    kind: type[Exception],
    text: str,
    workers: int,
    lost: bool,
) -> None:
    error = kind(None, None, text) if issubclass(kind, tf.errors.OpError) else kind(text)
    assert peer_lost(error, workers=workers) is lost


def started(program: str, arguments: list[list]) -> list[subprocess.Popen]:
    """Start a group of one process for each list of arguments."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(len(arguments))]}
    processes = []
    for rank, given in enumerate(arguments):
        config = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"}
        if len(arguments) > 1:
            env["TF_CONFIG"] = json.dumps(config)
        command = [sys.executable, "-c", program, *map(str, given)]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return processes


def trained(folder: Path, *runs: tuple[str, float, str], workers: int = 1) -> list[list[dict]]:
    """Run five steps on the same global batches with so many workers, once for each engine, clip norm and optimizer;
    what each rank holds afterwards."""
    given, outs = [], []
    for rank in range(workers):
        outs.append([folder / f"{workers}-{rank}-{index}.npz" for index in range(len(runs))])
        named = [[*run, str(out)] for run, out in zip(runs, outs[-1], strict=True)]
        given.append([json.dumps([rank, workers, named])])
    for process in started(PROGRAM, given):
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-3000:]
    return [[dict(np.load(out)) for out in ranks] for ranks in outs]


def distance(one: dict, other: dict) -> float:
    names = [name for name in one if name.startswith("arr")]
    assert len(names) > 10
    return max(float(np.abs(one[name] - other[name]).max()) for name in names)


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [
        ("adam", 0.05),
        pytest.param("adam", 0.0, marks=pytest.mark.slow),
        pytest.param("muon", 0.05, marks=pytest.mark.slow),
    ],
)
def test_two_workers_do_what_one_does(tmp_path: Path, optimizer: str, clip: float) -> None:
    run = ("mirrored", clip, optimizer)
    ((alone,),) = trained(tmp_path, run)
    (first,), (second,) = trained(tmp_path, run, workers=2)
    assert distance(first, second) == 0, "all ranks hold identical weights"
    assert distance(alone, first) < 1e-5
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-4)
    np.testing.assert_allclose(first["sums"], [3.0, 2.0])
    assert alone["losses"][0] != alone["losses"][-1]


def test_clipping_changes_the_weights_and_is_that_of_one_process(tmp_path: Path) -> None:
    ((clipped, free, local),) = trained(
        tmp_path, ("mirrored", 0.05, "muon"), ("mirrored", 0.0, "muon"), ("local", 0.05, "muon")
    )
    assert distance(clipped, free) > 1e-4
    assert distance(clipped, local) < 1e-5

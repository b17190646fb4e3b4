"""Laws of the distributed step, on real MultiWorkerMirroredStrategy processes without Ray between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_jobs import free_ports

STEPS, BATCH = 5, 8

PROGRAM = """
import json, os, sys
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
rank, workers, clip, optimizer, engine_name, out = json.loads(sys.argv[1])
from raydenoise.model import networks
from raydenoise.training.recipe import Recipe
strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else tf.distribute.get_strategy()
import keras
from raydenoise.pipelines.worker import MirroredEngine, _renew
from raydenoise.training.dormant import firing, hidden, renew
from raydenoise.training.step import LocalEngine, average
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
            renew(engine.model, firing(engine.model, noisy), seed=step)
        assert np.any(keras.ops.convert_to_numpy(hidden(engine.model)[1].before.kernel)[..., :3])
average(engine, recipe)
sums = engine.sum_over_workers(np.array([rank + 1.0, 1.0], np.float32)) if engine_name == "mirrored" else [1, 1]
arrays = [np.asarray(v) for v in [*engine.model.weights, *engine.averaged.weights]]
np.savez(out, *arrays, losses=losses, sums=sums)
"""


def trained(folder: Path, *, workers: int, clip: float, optimizer: str, engine: str = "mirrored") -> list[dict]:
    """Run five steps on the same global batches with so many workers; what each rank holds afterwards."""
    ports = free_ports(workers)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    processes = []
    for rank in range(workers):
        out = folder / f"{engine}-{workers}-{rank}-{clip}-{optimizer}.npz"
        config = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"}
        if workers > 1:
            env["TF_CONFIG"] = json.dumps(config)
        command = [sys.executable, "-c", PROGRAM, json.dumps([rank, workers, clip, optimizer, engine, str(out)])]
        processes.append((subprocess.Popen(command, env=env, stderr=subprocess.PIPE), out))
    results = []
    for process, out in processes:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-3000:]
        results.append(dict(np.load(out)))
    return results


def distance(one: dict, other: dict) -> float:
    names = [name for name in one if name.startswith("arr")]
    assert len(names) > 10
    return max(float(np.abs(one[name] - other[name]).max()) for name in names)


@pytest.mark.parametrize(
    ("optimizer", "clip"), [("adam", 0.0), ("adam", 0.05), pytest.param("muon", 0.05, marks=pytest.mark.slow)]
)
def test_two_workers_do_what_one_does(tmp_path: Path, optimizer: str, clip: float) -> None:
    (alone,) = trained(tmp_path, workers=1, clip=clip, optimizer=optimizer)
    first, second = trained(tmp_path, workers=2, clip=clip, optimizer=optimizer)
    assert distance(first, second) == 0, "all ranks hold identical weights"
    assert distance(alone, first) < 1e-5
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-4)
    np.testing.assert_allclose(first["sums"], [3.0, 2.0])
    assert alone["losses"][0] != alone["losses"][-1]


def test_clipping_changes_the_weights_and_is_that_of_one_process(tmp_path: Path) -> None:
    (clipped,) = trained(tmp_path, workers=1, clip=0.05, optimizer="muon")
    (free,) = trained(tmp_path, workers=1, clip=0.0, optimizer="muon")
    (local,) = trained(tmp_path, workers=1, clip=0.05, optimizer="muon", engine="local")
    assert distance(clipped, free) > 1e-4
    assert distance(clipped, local) < 1e-5

"""Training under Ray Train against the bare step, on the same machine in the same run; and the data path alone.

    python tests/benchmarks/training.py --shards SHARDS [--repeats 3] [--steps 160] [--threads N] [--rows ROW ...]

Each row is a process of its own (two where it says so) with the default network, the same global batch and precision:
bare step          the step again and again on one batch that lies in memory, all cores (`--threads 1`: one of them)
with data path     the same process reads the shards and makes the batches, in a thread; no Ray
in Ray Train       the bare step in a worker of Ray Train: nothing read, no batch made
1 worker           `raydenoise train`, one worker
two halves         two processes with half the cores and half the batch each, in memory; they share nothing
with collective    the same two under MultiWorkerMirroredStrategy: they sum their gradients
2 workers          `raydenoise train`, two workers that share the batch and the cores
data path          shards -> Ray Data -> batches, nothing trained
pyarrow            reading the same files' row groups, nothing else
A rate is that of all steps after the first `WARMING`, waits included. The rows take turns, `--repeats` times over, and
each figure is printed as a JSON line once it is known, with the median and the spread (largest less smallest) of its
runs so far: the last line of a name counts. A ratio is that of two rows of the same turn.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydenoise.data.shards import MANIFEST, read_manifest

WARMING = 40  # steps
READ = 10  # times as many steps where nothing is trained: tasks read ahead while the first ones warm up
TRAINED = {"1 worker": 1, "2 workers": 2}  # rows of `raydenoise train`
SHARED = ("bare step", "with data path", "in Ray Train", "1 worker")  # rows that --threads is for
ALONE = ("bare step", "with data path", "in Ray Train", "data path")  # rows of one process
PROCESSES = {**dict.fromkeys(ALONE, 1), "two halves": 2, "with collective": 2}
ROWS = (
    *("bare step", "with data path", "in Ray Train", "1 worker"),
    *("two halves", "with collective", "2 workers", "data path", "pyarrow"),
)
RATIOS = {  # what a ratio tells: below 1 is what it costs
    ("with data path", "bare step"): "reading, noise and augmentation",
    ("in Ray Train", "bare step"): "Ray beside it, one worker",
    ("1 worker", "with data path"): "Ray, one worker",
    ("1 worker", "bare step"): "all of it, one worker",
    ("two halves", "bare step"): "half-size batches on half the cores",
    ("with collective", "two halves"): "the collective",
    ("2 workers", "with collective"): "Ray and the data path, two workers",
    ("2 workers", "bare step"): "all of it, two workers",
    ("data path", "bare step"): "how often the data path feeds the step",
}


def main() -> None:
    """Run the rows in turn and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--threads", type=int, help="of a row of one process or worker; default: a core each")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--child", choices=PROCESSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps < 2 * WARMING:
        parser.error(f"--steps is {arguments.steps}; allowed: at least {2 * WARMING}, of which {WARMING} warm up")
    if arguments.threads is not None and (arguments.threads < 1 or any(row not in SHARED for row in arguments.rows)):
        parser.error(f"--threads is {arguments.threads}; allowed: 1 or more, with --rows of {', '.join(SHARED)}")
    if arguments.child:
        print(json.dumps(child(arguments)))
        return
    runs: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        arguments.shards = training_alone(Path(arguments.shards), Path(folder) / "shards")
        stored = stored_bytes(arguments)
        for _ in range(arguments.repeats):
            turn = {}
            for row in arguments.rows:
                turn[row] = measure(row, arguments)
                say(row, turn[row], runs, unit="patches/s", arguments=arguments)
                if row in ("data path", "pyarrow"):
                    say(f"{row}, stored pixels", turn[row] * stored / 1e6, runs, unit="MB/s", arguments=arguments)
            for (row, base), told in RATIOS.items():
                if row in turn and base in turn:
                    say(f"{row} / {base}: {told}", turn[row] / turn[base], runs, unit="ratio", arguments=arguments)


def say(name: str, value: float, runs: dict[str, list[float]], *, unit: str, arguments: argparse.Namespace) -> None:
    """Print one figure, with what its runs so far make of it."""
    runs[name].append(value)
    values = runs[name]
    told = {"value": value, "median": statistics.median(values), "spread": max(values) - min(values)}
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    line = {"name": name, "unit": unit, "runs": len(values), **{key: round(found, 3) for key, found in told.items()}}
    hardware = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    facts = {"steps": arguments.steps, "commit": revision.stdout.strip(), "hardware": hardware}
    print(json.dumps(line | facts), flush=True)


def training_alone(shards: Path, folder: Path) -> str:
    """Name the same training files without the other splits: no row validates or scores anything."""
    content = json.loads((shards / MANIFEST).read_bytes())
    for split in ("validation", "test"):
        content["splits"][split]["files"] = []
    folder.mkdir()
    (folder / "train").symlink_to((shards / "train").resolve())
    (folder / MANIFEST).write_text(json.dumps(content))
    return str(folder)


def measure(row: str, arguments: argparse.Namespace) -> float:
    """Run one row once: its rate in patches/s."""
    if row == "pyarrow":
        return pyarrow_rate(arguments)
    return under_ray(arguments, TRAINED[row]) if row in TRAINED else run_children(arguments, row)


def run_children(arguments: argparse.Namespace, row: str) -> float:
    """Run the processes of a row side by side; the sum of their rates."""
    command = [sys.executable, __file__, *own_flags(arguments), "--rows", "bare step", "--child", row]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(PROCESSES[row])]}
    processes = []
    for index in range(PROCESSES[row]):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        given = env | ({"TF_CONFIG": json.dumps(task)} if row == "with collective" else {})
        processes.append(
            subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    told = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, told, strict=True):
        if process.returncode:
            raise SystemExit(f"{row} failed:\n{errors[-3000:]}")
    return sum(json.loads(output.splitlines()[-1]) for output, _ in told)


def free_ports(count: int) -> list[int]:
    """Find ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def flags(arguments: argparse.Namespace) -> list[str]:
    """The options that every row shares."""
    values = ("shards", "steps", "batch_size", "patch")
    return [word for name in values for word in ("--" + name.replace("_", "-"), str(getattr(arguments, name)))]


def own_flags(arguments: argparse.Namespace) -> list[str]:
    """The options of a process of this benchmark."""
    threads = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    return flags(arguments) + threads


def under_ray(arguments: argparse.Namespace, workers: int) -> float:
    """Train by the command; its own log tells the rate."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "raydenoise.cli", "train", *flags(arguments)[1:], "--output", str(run)]
        far = str(arguments.steps)  # no checkpoint in between: the bare step makes none
        command += ["--workers", str(workers), "--checkpoint-every", far, "--validate-every", far, "--quiet"]
        command += [] if arguments.threads is None else ["--cpus-per-worker", str(arguments.threads)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = pq.read_table(run / "metrics").sort_by("step").select(["step", "seconds"]).to_pylist()
    warm, last = next(row for row in rows if row["step"] >= WARMING), rows[-1]
    return (last["step"] - warm["step"]) * arguments.batch_size / (last["seconds"] - warm["seconds"])


def child(arguments: argparse.Namespace) -> float:
    """One process of a row without `raydenoise train`: its rate in patches/s."""
    if arguments.child == "in Ray Train":
        return in_ray_train(arguments)
    from raydenoise.config import TrainConfig
    from raydenoise.pipelines import train
    from raydenoise.pipelines.samples import Source, read_chunk, to_samples
    from raydenoise.training.batches import prefetched, training_batch

    shards = read_manifest(arguments.shards)
    processes = PROCESSES[arguments.child]
    batch_size = arguments.batch_size // processes
    config = TrainConfig(shards=arguments.shards, output="-", batch_size=batch_size, patch=arguments.patch, quiet=True)
    strategy = strategy_of(arguments.child, arguments.threads)  # before anything else of TensorFlow runs
    started = train.begin(config, shards)
    precision = train.known_precision(config, Path("-"), private=True)
    recipe = train.settle(config, shards, started, precision=precision).recipe
    source = Source.of(shards, batch_size=batch_size, patch=recipe.patch, seed=0, levels=None)

    def read() -> Iterator[list[Any]]:
        for first in range(0, arguments.steps, 32):
            bounds = pa.table({"first": [first], "last": [min(first + 32, arguments.steps)]})
            rows = read_chunk(bounds, source=source, slots=range(batch_size))
            for at in range(0, len(rows), batch_size):
                yield to_samples(rows.slice(at, batch_size), side=recipe.patch)

    def batches(stream: Iterator[list[Any]]) -> Iterator[Any]:
        for part in stream:
            yield training_batch(part, recipe=recipe, inputs=4, channels=3)

    if arguments.child == "data path":
        return drained(lambda: batches(by_ray_data(arguments, source)), batch_size=batch_size)
    made = prefetched(lambda: batches(read()))
    stream = made if arguments.child == "with data path" else repeat(next(made), arguments.steps)
    return stepped(started.network, recipe, strategy, stream)


def strategy_of(row: str, threads: int | None) -> Any:
    """Settle the threads as a worker would; TensorFlow's own for the rows of one process, where none are given."""
    from raydenoise.pipelines.worker import join_group

    if PROCESSES[row] == 2:
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
    return join_group(2 if row == "with collective" else 1, threads=threads, gpus=False, seed=0)


def in_ray_train(arguments: argparse.Namespace) -> float:
    """Let a worker of Ray Train do the bare step, with the threads that `raydenoise train` gives it."""
    import ray.train
    from ray.train.tensorflow import TensorflowTrainer

    from raydenoise.pipelines.session import session
    from raydenoise.pipelines.train import NICENESS

    cores = len(os.sched_getaffinity(0))
    bare = argparse.Namespace(**{**vars(arguments), "child": "bare step", "threads": arguments.threads or cores})
    with (
        tempfile.TemporaryDirectory() as folder,
        session(None, cpus=cores + 1, gpus=None, niceness=NICENESS, verbose=False),
    ):
        told = Path(folder) / "rate"

        def work() -> None:
            os.environ["KERAS_BACKEND"] = "tensorflow"
            told.write_text(str(child(bare)))

        TensorflowTrainer(
            work,
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": bare.threads}),
            run_config=ray.train.RunConfig(storage_path=folder),
        ).fit()
        return float(told.read_text())


def stepped(network: Any, recipe: Any, strategy: Any, stream: Iterator[Any]) -> float:
    """Train on batches: patches/s of this process."""
    from raydenoise.pipelines.worker import MirroredEngine
    from raydenoise.training.loop import REPORT_EVERY

    engine = MirroredEngine(network, recipe, strategy=strategy)
    marks = []
    for step, batch in enumerate(stream, start=1):
        loss = engine.step(*batch)
        if step % REPORT_EVERY == 0:
            assert np.isfinite(float(loss))
            marks.append((step, time.monotonic()))
    (first, begun), (last, ended) = marks[WARMING // REPORT_EVERY - 1], marks[-1]
    return (last - first) * recipe.batch_size / (ended - begun)


def by_ray_data(arguments: argparse.Namespace, source: Any) -> Iterator[list[Any]]:
    """The samples as a worker gets them, with as many CPUs as the machine has."""
    import ray

    from raydenoise.pipelines.samples import samples

    cpus = len(os.sched_getaffinity(0))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    last = READ * arguments.steps
    yield from samples(source, slots=range(source.order.batch), first=0, last=last, cpus=float(cpus))


def drained(batches: Any, *, batch_size: int) -> float:
    """Take batches that nobody trains on: patches/s."""
    from raydenoise.training.batches import prefetched

    made = prefetched(batches)
    for _ in range(WARMING):  # the first task starts worker processes
        next(made)
    begun = time.monotonic()
    return sum(1 for _ in made) * batch_size / (time.monotonic() - begun)


def stored_bytes(arguments: argparse.Namespace) -> int:
    """Of the pixels of one stored patch."""
    shards = read_manifest(arguments.shards)
    return shards.patch**2 * shards.pixel_bytes


def pyarrow_rate(arguments: argparse.Namespace) -> float:
    """Stored patches a second that one pyarrow reader takes out of the training files."""
    begun, rows = time.monotonic(), 0
    for file in read_manifest(arguments.shards).files["train"]:
        with pq.ParquetFile(file.path) as opened:
            for group in range(len(file.groups)):
                rows += len(opened.read_row_group(group, columns=["pixels"]))
    return rows / (time.monotonic() - begun)


if __name__ == "__main__":
    main()

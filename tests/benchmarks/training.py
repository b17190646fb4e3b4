"""Training under Ray Train against the bare step, on the same machine in the same run; and the data path alone.

    python tests/benchmarks/training.py --shards SHARDS [--steps 160] [--batch-size 32] [--patch 64] [--model-args ...]

Each row is a process of its own with the same network, global batch and precision:
bare step          the step again and again on one batch that lies in memory, all cores
with data path     the same process reads the shards and makes the batches, in a thread; no Ray
1 worker           `raydenoise train`, one worker
2 workers          `raydenoise train`, two workers that share the batch and the cores
data path          shards -> Ray Data -> batches, nothing trained
pyarrow            reading the same files' row groups, nothing else
Rates are medians over the reports after the first `SKIPPED`. Each figure is one JSON line.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from raydenoise.data.shards import read_manifest

SKIPPED = 2  # reports (40 steps) of warming up
CHILDREN = ("bare step", "with data path", "data path")


def main() -> None:
    """Run every row, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments)))
        return
    rates = {"bare step": run_child(arguments, "bare step"), "with data path": run_child(arguments, "with data path")}
    rates |= {f"{workers} worker" + "s" * (workers > 1): under_ray(arguments, workers) for workers in (1, 2)}
    data = run_child(arguments, "data path")
    for name, rate in rates.items():
        say(name, rate["patches_per_s"], "patches/s", arguments)
    bare = rates["bare step"]["patches_per_s"]
    for name in ("with data path", "1 worker", "2 workers"):
        say(f"{name} / bare step", rates[name]["patches_per_s"] / bare, "ratio", arguments)
    say("data path", data["patches_per_s"], "patches/s", arguments)
    say("data path / bare step", data["patches_per_s"] / bare, "ratio", arguments)
    stored = stored_bytes(arguments)
    say("data path, stored pixels", data["patches_per_s"] * stored / 1e6, "MB/s", arguments)
    say("pyarrow, stored pixels", pyarrow_rate(arguments) / 1e6, "MB/s", arguments)


def say(name: str, value: float, unit: str, arguments: argparse.Namespace) -> None:
    """Print one figure."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    line = {"name": name, "value": round(value, 3), "unit": unit, "steps": arguments.steps, "runs": 1}
    hardware = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(json.dumps({**line, "commit": revision.stdout.strip(), "hardware": hardware}), flush=True)


def run_child(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    """Run one row in a process of its own."""
    command = [sys.executable, __file__, *flags(arguments), "--child", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def flags(arguments: argparse.Namespace) -> list[str]:
    """The options that every row shares."""
    values = ("shards", "steps", "batch_size", "patch")
    return [word for name in values for word in ("--" + name.replace("_", "-"), str(getattr(arguments, name)))]


def under_ray(arguments: argparse.Namespace, workers: int) -> dict[str, float]:
    """Train by the command; its own log tells the rate."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [words for name, words in pairs(arguments) if name != "shards"]
        command = [sys.executable, "-m", "raydenoise.cli", "train", arguments.shards, "--output", str(run), "--quiet"]
        command += [word for pair in words for word in pair]
        far = str(arguments.steps)  # no checkpoint in between: the bare step makes none
        command += ["--workers", str(workers), "--checkpoint-every", far, "--validate-every", far]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = pq.read_table(run / "metrics").sort_by("step")["patches_per_s"].to_pylist()
    return {"patches_per_s": statistics.median(rows[SKIPPED:])}


def pairs(arguments: argparse.Namespace) -> list[tuple[str, tuple[str, str]]]:
    """Name, flag and value of the shared options."""
    words = flags(arguments)
    return [(flag[2:], (flag, value)) for flag, value in zip(words[::2], words[1::2], strict=True)]


def child(arguments: argparse.Namespace) -> dict[str, float]:
    """One row without Ray Train."""
    import ray
    import tensorflow as tf

    from raydenoise.config import TrainConfig
    from raydenoise.pipelines import train
    from raydenoise.pipelines.samples import Source, read_chunk, samples, to_samples
    from raydenoise.pipelines.worker import MirroredEngine
    from raydenoise.training.batches import prefetched, stacked, training_pair
    from raydenoise.training.loop import REPORT_EVERY

    shards = read_manifest(arguments.shards)
    config = TrainConfig(
        shards=arguments.shards, output="-", batch_size=arguments.batch_size, patch=arguments.patch, quiet=True
    )
    network = train.begin(config, shards)
    recipe = train.make_recipe(config, shards, network)
    source = Source.of(shards, batch_size=recipe.batch_size, patch=recipe.patch, seed=0, estimate=False)
    slots = range(recipe.batch_size)

    def read():
        for first in range(0, arguments.steps, 32):
            import pyarrow as pa

            last = min(first + 32, arguments.steps)
            rows = read_chunk(pa.table({"first": [first], "last": [last]}), source=source, slots=slots)
            for at in range(0, len(rows), len(slots)):
                yield to_samples(rows.slice(at, len(slots)), side=recipe.patch)

    def batches(stream):
        for part in stream:
            yield stacked(training_pair(sample, recipe=recipe, inputs=4, channels=3) for sample in part)

    if arguments.child == "data path":
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        stream = samples(
            source, slots=slots, first=0, last=arguments.steps, stored_bytes=stored_bytes(arguments), cpus=2.0
        )
        made = prefetched(lambda: batches(stream))
        for _ in range(REPORT_EVERY):  # the first task starts worker processes
            next(made)
        begun = time.monotonic()
        count = sum(1 for _ in made)
        return {"patches_per_s": count * recipe.batch_size / (time.monotonic() - begun)}
    engine = MirroredEngine(network.network, recipe, strategy=tf.distribute.get_strategy())
    made = prefetched(lambda: batches(read()))
    fixed = next(made)
    stream = made if arguments.child == "with data path" else (fixed for _ in range(arguments.steps - 1))
    rates, begun = [], time.monotonic()
    for step, batch in enumerate(stream, start=1):
        loss = engine.step(*batch)
        if step % REPORT_EVERY == 0:
            assert np.isfinite(float(loss))
            rates.append(REPORT_EVERY * recipe.batch_size / (time.monotonic() - begun))
            begun = time.monotonic()
    return {"patches_per_s": statistics.median(rates[SKIPPED:])}


def stored_bytes(arguments: argparse.Namespace) -> int:
    """Of the pixels of one stored patch."""
    shards = read_manifest(arguments.shards)
    return shards.patch**2 * max(shards.channels) * (1 + shards.paired) * (2 if "uint16" in shards.dtypes else 1)


def pyarrow_rate(arguments: argparse.Namespace) -> float:
    """Bytes of pixels a second that one pyarrow reader takes out of the training files."""
    shards = read_manifest(arguments.shards)
    begun, total = time.monotonic(), 0
    for file in shards.files["train"]:
        with pq.ParquetFile(file.path) as opened:
            for group in range(len(file.groups)):
                total += opened.read_row_group(group, columns=["pixels"])["pixels"].nbytes
    return total / (time.monotonic() - begun)


if __name__ == "__main__":
    main()

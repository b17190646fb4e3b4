"""Kill what runs, again and again, and count what is wrong afterwards: rows, duplicates, missing, differing bytes.

    python tests/benchmarks/chaos.py [--images 300] [--kills 6] [--seed 1] [--bucket] [--three-processes]
        [--model default]

A calm run, then the same pictures with random kills (SIGKILL) at random moments: of denoising actors, of other worker
processes, of a whole node's raylet with all that runs on it, and of the driver, after which the same command runs
again. The cluster is three raylets on this machine; a killed one is replaced. With --bucket, INPUT and OUT are in a
bucket of a real S3 endpoint on loopback. With --three-processes the raylets declare a GPU each, which is not there: so
pictures are decoded, denoised and written by processes of their own, as before GPUs, and one picture in twenty has more
than 16 MiB of pixels. One JSON line: counts, which must all be zero, and the time against the calm run. Rows and files
of both runs are held against the inputs, the files of one against those of the other.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import PIL.Image
import psutil
import ray
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from raydenoise.data import storage
from raydenoise.data.manifest import Output
from raydenoise.data.place import Place, place

KINDS = ("actor", "worker", "node", "driver")
LARGE = (2000, 3000)  # 17 MiB of pixels
LARGE_EVERY = 20
LEAST, MOST = 4.0, 12.0  # seconds between two kills


def main() -> None:
    """Run calmly, then in chaos, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bucket", action="store_true")
    parser.add_argument("--three-processes", action="store_true")
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder:
        root = bucket() if arguments.bucket else place(folder)
        rng_of_input = np.random.default_rng(arguments.seed)
        large = LARGE_EVERY if arguments.three_processes else 0
        wanted = write_input(root / "in", count=arguments.images, large_every=large, rng=rng_of_input)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
        # An actor takes a CPU beside its GPU, and the other one decodes or writes.
        node = {"num_cpus": 2, "num_gpus": 1} if arguments.three_processes else {"num_cpus": 1}
        nodes = [cluster.add_node(**node) for _ in range(2)]
        command = [
            *(sys.executable, "-m", "raydenoise.cli", "denoise", str(root / "in"), "--address", cluster.address),
            *("--model", arguments.model, "--sigma", "25", "--allow-failed", "all", "--quiet"),
            *(("--gpus-per-actor", "1", "--actors", "2") if arguments.three_processes else ()),
        ]
        calm = run([*command, "--output", str(root / "calm")])
        chaos = Chaos(cluster, nodes, node=node, rng=rng)
        seconds = chaos.run([*command, "--output", str(root / "out")], kills=arguments.kills)
        found = compare(root / "calm", root / "out", wanted=wanted)
        cluster.shutdown()
    line = {
        "name": "chaos",
        "where": "bucket" if arguments.bucket else "disk",
        "processes": 3 if arguments.three_processes else 1,
        "images": arguments.images,
        "seed": arguments.seed,
        "kills": chaos.counts,
        **found,
        "calm_s": round(calm, 1),
        "chaos_s": round(seconds, 1),
        "ratio": round(seconds / calm, 2),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    print(json.dumps(line))
    sys.exit(any(found[name] for name in ("duplicates", "missing", "foreign", "differing", "left_over")))


def bucket() -> Place:
    """A bucket of a fresh endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="chaos")
    return place("s3://chaos")


def write_input(folder: Place, *, count: int, large_every: int, rng: np.random.Generator) -> dict[str, str]:
    """Noisy pictures of several sizes, and a broken file among every fifty; returns key -> status of the row."""
    status = {}
    for index in range(count):
        large = large_every and index % large_every == large_every - 1
        height, width = LARGE if large else rng.integers(120, 320, 2)
        clean = np.full((height, width, 3), rng.integers(40, 215, 3))
        pixels = np.clip(np.rint(clean + rng.normal(0, 25, clean.shape)), 0, 255).astype(np.uint8)
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            PIL.Image.fromarray(pixels).save(file.name)
            data = Path(file.name).read_bytes()
        broken = index % 50 == 7
        key = f"{index % 7}/{index:05d}.png"
        storage.publish(folder / key, data[: len(data) // 2] if broken else data)
        status[key] = "error" if broken else "ok"
    return status


def run(command: list[str]) -> float:
    """Run to the end; seconds."""
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began


class Chaos:
    """Kills at random."""

    def __init__(self, cluster: Any, nodes: list[Any], *, node: dict[str, int], rng: random.Random) -> None:
        self._cluster, self._nodes, self._node, self._rng = cluster, nodes, node, rng
        self.counts = dict.fromkeys(KINDS, 0)

    def run(self, command: list[str], *, kills: int) -> float:
        """Run a command to its end, again where its driver was killed; seconds."""
        began = time.monotonic()
        left = kills
        kinds = [KINDS[index % len(KINDS)] for index in range(kills)]
        self._rng.shuffle(kinds)
        while True:
            process = subprocess.Popen(command)
            while process.poll() is None:
                due = time.monotonic() + self._rng.uniform(LEAST, MOST)
                while process.poll() is None and time.monotonic() < due:
                    time.sleep(0.1)
                if process.poll() is None and left:
                    left -= self._kill(kinds[kills - left], process)
            if process.returncode == 0 and not left:
                return time.monotonic() - began
            if process.returncode == 0:
                raise SystemExit(f"the job ended before {left} kills: more --images")
            if process.returncode != -9:
                raise SystemExit(f"the job broke with {process.returncode} after {self.counts}")

    def _kill(self, kind: str, driver: subprocess.Popen[bytes]) -> bool:
        """Kill one; False where there is none of its kind now."""
        if kind == "driver":
            driver.kill()
            driver.wait()
        elif kind == "node":
            self._cluster.remove_node(self._nodes.pop(self._rng.randrange(len(self._nodes))), allow_graceful=False)
            self._nodes.append(self._cluster.add_node(**self._node))
        else:
            below = psutil.Process().children(recursive=True)  # of these raylets: another Ray may run beside
            named = [p for p in below if self._is(kind, p)]
            if not named:
                return False
            self._rng.choice(named).kill()
        self.counts[kind] += 1
        return True

    def _is(self, kind: str, process: psutil.Process) -> bool:
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            return False
        if not name.startswith("ray::") or "Agent" in name:  # without its agents a raylet ends: that is a node
            return False
        return ("FusedActor" in name or "DenoiseActor" in name) == (kind == "actor")


def compare(calm: Place, out: Place, *, wanted: dict[str, str]) -> dict[str, int]:
    """What is wrong with two runs: with each against the inputs, and with the files of one against the other's.

    Args:
        calm: OUT of one.
        out: OUT of the other.
        wanted: key of each input -> the status of its row; what it is written as has its name.
    """
    counts = dict.fromkeys(("duplicates", "missing", "foreign", "differing", "left_over"), 0)
    expected = {key for key, status in wanted.items() if status == "ok"}
    files = []
    for root in (calm, out):
        keys = [row["key"] for row in rows(root)]
        status = {row["key"]: row["status"] for row in rows(root)}
        pictures = set(storage.walk(Output(root).images))
        counts["duplicates"] += len(keys) - len(status)
        counts["missing"] += len(wanted.keys() - status.keys()) + len(expected - pictures)
        counts["foreign"] += len(status.keys() - wanted.keys()) + len(pictures - expected)
        counts["differing"] += sum(status[key] != wanted[key] for key in status.keys() & wanted.keys())
        counts["left_over"] += sum(".partial" in key for key in storage.walk(root))
        files.append(pictures)
    same = files[0] & files[1]
    images = [Output(root).images for root in (calm, out)]
    counts["differing"] += sum((images[0] / key).read_bytes() != (images[1] / key).read_bytes() for key in same)
    return {"rows": len(rows(out)), **counts}


def rows(root: Place) -> list[dict[str, Any]]:
    """The committed rows of a run."""
    return storage.read_parquet(Output(root).metrics).to_pylist()


if __name__ == "__main__":
    main()
    ray.shutdown()

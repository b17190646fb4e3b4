"""The job against a bare loop on the same machine in the same run: images/s, time to the first image, memory.

    python tests/benchmarks/throughput.py [--pictures $CBSD68] [--images 500] [--many 2000] [--model default]

Input: PNG pictures (CBSD68, or without --pictures 481x321 cuts of scikit-image's photographs) under many names, with
noise of sigma 25 as 8-bit files hold it. The bare loop is one process that decodes, denoises with the same Denoiser
(sigma "auto") and encodes; its model is loaded and warm before the clock starts. The job's rate is that from its first
finished image to its last. Memory is the PSS of the whole process tree, Ray's processes included, sampled each second.
Each figure is one JSON line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import skimage.data

from raydenoise.core.image import decode
from raydenoise.core.metrics import as_float
from raydenoise.core.noise import add_awgn, quantize
from raydenoise.data.inputs import list_sources
from raydenoise.data.storage import read

CUT = (321, 481)  # the size of CBSD68's pictures


def main() -> None:
    """Run the loop and the job, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="folder of clean pictures")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--many", type=int, default=0, help="images of a second job, for the memory's growth")
    parser.add_argument("--model", default="default")
    parser.add_argument("--loop", type=Path, nargs=2, help=argparse.SUPPRESS)  # the child process of the bare loop
    arguments = parser.parse_args()
    if arguments.loop:
        bare_loop(*arguments.loop, model=arguments.model)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_input(root / "in", count=arguments.images, pictures=arguments.pictures)
        child = [sys.executable, __file__, "--model", arguments.model, "--loop", str(root / "in"), str(root / "loop")]
        loop = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
        job = run_job(root / "in", root / "out", model=arguments.model)
        say("bare loop", loop, "images/s", images=arguments.images)
        say("job, once started", job["rate"], "images/s", images=arguments.images)
        say("job / bare loop", job["rate"] / loop, "ratio", images=arguments.images)
        say("job, start to first image", job["first"], "s", images=arguments.images)
        say("job, peak PSS", job["pss"] / 1e6, "MB", images=arguments.images)
        if arguments.many:
            write_input(root / "many", count=arguments.many, pictures=arguments.pictures)
            many = run_job(root / "many", root / "many-out", model=arguments.model)
            say("job, once started", many["rate"], "images/s", images=arguments.many)
            say("job, peak PSS", many["pss"] / 1e6, "MB", images=arguments.many)
            say("peak PSS, many / few", many["pss"] / job["pss"], "ratio", images=arguments.many)


def say(name: str, value: float, unit: str, *, images: int) -> None:
    """Print one figure."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    line = {"name": name, "value": round(value, 3), "unit": unit, "images": images, "runs": 1}
    hardware = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(json.dumps({**line, "commit": revision.stdout.strip(), "hardware": hardware}), flush=True)


def write_input(folder: Path, *, count: int, pictures: str | None) -> None:
    """Write `count` noisy PNG files from the clean pictures, in turn, each with noise of its own up to 68 of them."""
    folder.mkdir()
    if pictures:
        clean = [decode(read(source.uri)).pixels for source in list_sources(pictures)]
    else:
        photographs = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "rocket")]
        clean = [photograph[: CUT[0], : CUT[1]] for photograph in photographs]
    encoded: list[bytes] = []
    for index in range(count):
        if index < max(len(clean), 30):
            noise = np.random.default_rng(index)
            noisy = quantize(add_awgn(as_float(clean[index % len(clean)]), sigma=25, rng=noise))
            path = folder / f"{index:06d}.png"
            PIL.Image.fromarray(np.rint(noisy * 255).astype(np.uint8)).save(path, compress_level=1)
            encoded.append(path.read_bytes())
        else:
            (folder / f"{index:06d}.png").write_bytes(encoded[index % len(encoded)])


def bare_loop(source: Path, target: Path, *, model: str) -> None:
    """Decode, denoise, encode one picture after another; prints images/s."""
    from raydenoise import Denoiser
    from raydenoise.core.image import Image, encode

    target.mkdir()
    denoiser = Denoiser.load(model)
    paths = sorted(source.iterdir())
    denoiser(decode(paths[0].read_bytes()).pixels)  # warm
    started = time.perf_counter()
    for path in paths:
        picture = decode(path.read_bytes())
        result: Image = type(picture)(**{**vars(picture), "pixels": denoiser(picture.pixels)})
        (target / path.name).write_bytes(encode(result, format="png"))
    print(len(paths) / (time.perf_counter() - started))


def run_job(source: Path, output: Path, *, model: str) -> dict[str, float]:
    """Run `raydenoise denoise`; watch its first image and its memory."""
    command = [sys.executable, "-m", "raydenoise.cli", "denoise", str(source), "--output", str(output), "--quiet"]
    started, first, peak, sampled = time.monotonic(), None, 0, 0.0
    process = subprocess.Popen([*command, "--model", model])
    while process.poll() is None:
        if first is None and any((output / "images").glob("*.png")):
            first = time.monotonic() - started
        if time.monotonic() - sampled >= 1:
            sampled = time.monotonic()
            peak = max(peak, tree_pss(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0, f"the job ended with {process.returncode}"
    assert first is not None
    finished = sorted(pq.read_table(output / "metrics", columns=["finished_at"])["finished_at"].to_pylist())
    seconds = (finished[-1] - finished[0]).total_seconds()
    return {"rate": (len(finished) - 1) / seconds, "first": first, "pss": float(peak)}


def tree_pss(root: int) -> int:
    """Summed PSS of a process and all below it, bytes."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
            parents.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        waiting += parents.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


if __name__ == "__main__":
    main()

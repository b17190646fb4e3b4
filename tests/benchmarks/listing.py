"""What a long listing costs the driver: time to the first image and memory, of 1,000 rows and of 1,000,000.

    python tests/benchmarks/listing.py [--rows 1000 1000000] [--model default]
    python tests/benchmarks/listing.py --folder --rows 1000 200000

Each job reads a parquet listing of distinct rows, whose first 1,000 pictures are there, or with --folder a folder of so
many pictures, a thousand in each of its folders, and is stopped (Ctrl-C) after 100 images. Memory is the peak RSS of
the driver's own process. Each figure is one JSON line.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

THERE = 1_000  # pictures
STOP = 100  # images
LINKS = 50_000  # of one file; a disk allows about so many


def main() -> None:
    """Measure each length, the shortest once more at first to warm up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--model", default="default")
    parser.add_argument("--folder", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pictures = root / "a-bucket-with-a-name" / "photographs" / "2026"
        pictures.mkdir(parents=True)
        noise = np.random.default_rng(0).normal(0, 25, (160, 240, 3))
        PIL.Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8)).save(root / "one.png")
        for index in range(THERE):
            (pictures / f"{index:09d}.png").hardlink_to(root / "one.png")
        for rows in [min(arguments.rows), *arguments.rows]:
            if arguments.folder:
                source = [str(fill(root / f"in-{rows}", rows, picture=root / "one.png"))]
            else:
                source = ["--list", str(root / f"{rows}.parquet")]
                uris = [str(pictures / f"{index:09d}.png") for index in range(rows)]
                pq.write_table(pa.table({"uri": uris}), source[1])
            figures = measure(source, root / f"out-{time.monotonic_ns()}", model=arguments.model)
            name = "folder" if arguments.folder else "listing"
            print(json.dumps({"name": name, "rows": rows, **figures, "hardware": platform.machine()}), flush=True)


def fill(folder: Path, count: int, *, picture: Path) -> Path:
    """So many names of a picture, unless they are there."""
    for index in range(0 if folder.exists() else count):
        if index % LINKS == 0:
            data = picture.parent / f"copy-{count}-{index}.png"
            shutil.copyfile(picture, data)
        inside = folder / "a-folder-with-a-name" / f"{index // 1000:06d}"
        if index % 1000 == 0:
            inside.mkdir(parents=True)
        (inside / f"{index:09d}.png").hardlink_to(data)
    return folder


def measure(source: list[str], out: Path, *, model: str) -> dict[str, float]:
    """Run a job until its hundredth image; seconds to the first one, MB of the driver."""
    began = time.monotonic()
    command = [sys.executable, "-m", "raydenoise.cli", "denoise", *source, "--output", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen([*command, "--model", model, "--quiet"], env=environment)
    first, peak = None, 0.0
    while process.poll() is None:
        images = sum(len(files) for _, _, files in os.walk(out / "images"))
        if images and first is None:
            first = time.monotonic() - began
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak = float(found[1]) / 1000 if found else peak
        if images >= STOP:
            process.send_signal(signal.SIGINT)
            process.wait()
        time.sleep(0.05)
    if first is None:
        raise SystemExit(f"the job ended with {process.returncode} before its first image")
    return {"first_image_s": round(first, 1), "driver_peak_mb": round(peak)}


if __name__ == "__main__":
    main()

"""What a long listing costs the driver: time to the first image and memory, of 1,000 rows and of 1,000,000.

    python tests/benchmarks/listing.py [--rows 1000 1000000] [--model default]

Each job reads a parquet listing of distinct rows, whose first 1,000 pictures are there, and is stopped (Ctrl-C) after
100 images. Memory is the peak RSS of the driver's own process. Each figure is one JSON line.
"""

import argparse
import json
import os
import platform
import re
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


def main() -> None:
    """Measure each length, the shortest once more at first to warm up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--model", default="default")
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
            file = root / f"{rows}.parquet"
            pq.write_table(pa.table({"uri": [str(pictures / f"{index:09d}.png") for index in range(rows)]}), file)
            out = root / f"out-{time.monotonic_ns()}"
            figures = measure(file, out, model=arguments.model)
            print(json.dumps({"name": "listing", "rows": rows, **figures, "hardware": platform.machine()}), flush=True)


def measure(listing: Path, out: Path, *, model: str) -> dict[str, float]:
    """Run a job until its hundredth image; seconds to the first one, MB of the driver."""
    began = time.monotonic()
    command = [sys.executable, "-m", "raydenoise.cli", "denoise", "--list", str(listing), "--output", str(out)]
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

"""The report of a run of a million pictures: time and memory.

    python tests/benchmarks/report.py [--rows 1000000] [--few 1000]

The rows are made up, 10,000 a file as a job writes them, with failures of a dozen types, references and outliers; the
few pictures that the page shows are real files of 512x512. `raydenoise report` runs in a process of its own, three
times; its peak resident memory is what the kernel counted. A report of few rows beside it tells what the rows cost.
Each figure is one JSON line.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from raydenoise.data.manifest import DENOISING_KIND, PART_ROWS
from raydenoise.data.schema import METRICS

RUNS = 3
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
RATE = 50  # pictures a second that the made-up job finished


def main() -> None:
    """Make the rows, report on them, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=1_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for rows in (arguments.few, arguments.rows):
            root = Path(folder) / str(rows)
            write(root, count=rows)
            measured = [report(root) for _ in range(RUNS + 1)][1:]  # the first one warms the page cache
            for name, unit in (("seconds", "s"), ("peak RSS", "MB")):
                say(f"report, {name}", [run[name] for run in measured], unit, rows=rows)
        parquet = sum(path.stat().st_size for path in (root / "metrics").iterdir())
        say("metrics read", [parquet / 1e6], "MB", rows=arguments.rows)
        say("page written", [(root / "report.html").stat().st_size / 1e6], "MB", rows=arguments.rows)


def say(name: str, values: list[float], unit: str, *, rows: int) -> None:
    """Print one figure."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    line = {"name": name, "value": round(statistics.median(values), 2), "unit": unit, "rows": rows}
    spread = {"runs": len(values), "spread": round(max(values) - min(values), 2)}
    hardware = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(json.dumps({**line, **spread, "commit": revision.stdout.strip(), "hardware": hardware}), flush=True)


def report(root: Path) -> dict[str, float]:
    """Run the command once."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "raydenoise.cli", "report", str(root), "--quiet"])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"the report ended with {status}"
    return {"seconds": time.monotonic() - started, "peak RSS": usage.ru_maxrss / 1e3}


def write(root: Path, *, count: int) -> None:
    """Write OUT."""
    rng = np.random.default_rng(0)
    for name in ("noisy", "denoised"):
        root.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (512, 512, 3), np.uint8)).save(root / f"{name}.png")
    (root / "metrics").mkdir()
    for part, first in enumerate(range(0, count, PART_ROWS)):
        table = made_up(root, first, min(PART_ROWS, count - first), rng)
        pq.write_table(table, root / "metrics" / f"part-{part:05d}.parquet", compression="zstd")
    manifest = {
        "kind": DENOISING_KIND,
        "status": "finished",
        "started_at": STARTED.isoformat(),
        "config": {"sigma": "auto", "strength": 1.0},
        "summary": {"seconds": count / RATE},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))


def made_up(root: Path, first: int, count: int, rng: np.random.Generator) -> pa.Table:
    """Make up some rows: one in a hundred failed, one in a thousand got worse."""
    failed = rng.random(count) < 0.01
    sigma = rng.gamma(4, 5, count).astype(np.float32)
    noisy = 48.13 - 20 * np.log10(np.maximum(sigma, 0.1))
    gain = np.where(rng.random(count) < 0.001, -1.0, rng.normal(8, 1.5, count))
    micros = np.int64(STARTED.timestamp() * 1e6) + (first + np.arange(count)) * (1_000_000 // RATE)
    keys = [f"folder-{index // 1000:05d}/{index:08d}.png" for index in range(first, first + count)]

    def ok(values: Any) -> pa.Array:
        return pa.array(values, mask=failed)

    def same(value: object) -> pa.Array:
        return ok(np.full(count, value))

    types = np.array(["truncated", "corrupt", "empty", "not_an_image", "too_large", "unsupported"])
    columns: dict[str, Any] = {
        "uri": pa.array([str(root / "noisy.png")] * count),
        "key": pa.array(keys),
        "output_uri": same(str(root / "denoised.png")),
        "status": pa.array(np.where(failed, "error", "ok")),
        "error_type": pa.array(rng.choice(types, count), mask=~failed),
        "error_message": pa.array([f"it ends after {index} bytes" for index in range(count)], mask=~failed),
        "format": same("png"),
        "height": same(512),
        "width": same(512),
        "channels": same(3),
        "bit_depth": same(8),
        "bytes_in": same(600_000),
        "bytes_out": same(400_000),
        "model": same("default"),
        "model_sha256": same("0" * 64),
        "sigma": ok(np.minimum(sigma, 75)),
        "sigma_in_estimate": ok(sigma),
        "sigma_out_estimate": ok(rng.gamma(2, 0.3, count).astype(np.float32)),
        "psnr_noisy": ok(noisy),
        "psnr_denoised": ok(noisy + gain),
        "ssim_noisy": ok(rng.random(count)),
        "ssim_denoised": ok(rng.random(count)),
        "mse_noisy": ok(10 ** (-noisy / 10)),
        "mse_denoised": ok(10 ** (-(noisy + gain) / 10)),
        "tiles": same(1),
        "decode_s": pa.array(rng.gamma(4, 0.005, count)),
        "infer_s": ok(rng.gamma(4, 0.05, count)),
        "encode_s": ok(rng.gamma(4, 0.01, count)),
        "worker": same("host/1"),
        "finished_at": pa.array(micros, pa.timestamp("us", tz="UTC")),
        "precision": same("float32"),
        "note": pa.nulls(count, pa.string()),
    }
    return pa.table([columns[name].cast(METRICS.field(name).type) for name in METRICS.names], schema=METRICS)


if __name__ == "__main__":
    main()

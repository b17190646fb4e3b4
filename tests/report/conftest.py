"""Folders as the other verbs leave them, made without Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydenoise.data.manifest import DENOISING_KIND, EVALUATION_KIND, TRAINING_KIND
from raydenoise.data.schema import EVALUATION, METRICS, TRAINING, metrics_table
from raydenoise.data.shards import HEAD, MANIFEST, Patch, write_shard
from raydenoise.data.storage import publish_json
from raydenoise.report.sheets import patch_sheet
from tests.report.rows import STARTED, MakeOut


@pytest.fixture
def make_out(tmp_path: Path) -> MakeOut:
    """Write an OUT: rows in parts of three, and a manifest."""

    def make(rows: list[dict[str, Any]], *, name: str = "out", **manifest: Any) -> Path:
        root = tmp_path / name
        (root / "metrics").mkdir(parents=True)
        for first in range(0, max(1, len(rows)), 3):
            part = metrics_table(rows[first : first + 3]) if rows else METRICS.empty_table()
            pq.write_table(part, root / "metrics" / f"part-{first:05d}.parquet")
        content = {
            "kind": DENOISING_KIND,
            "status": "finished",
            "started_at": STARTED.isoformat(),
            "config": {"sigma": "auto", "strength": 1.0},
            "model": {"name": "tiny"},
            "summary": {"seconds": 20.0},
            **manifest,
        }
        (root / "manifest.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, str]:
    """A picture before (left half red) and after (left half green): the columns that say where they are."""
    before, after = np.full((300, 420, 3), 128, np.uint8), np.full((300, 420, 3), 128, np.uint8)
    before[:, :210] = (200, 0, 0)
    after[:, :210] = (0, 200, 0)
    PIL.Image.fromarray(before).save(tmp_path / "before.png")
    PIL.Image.fromarray(after).save(tmp_path / "after.png")
    return {"uri": str(tmp_path / "before.png"), "output_uri": str(tmp_path / "after.png"), "key": "both.png"}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of a few patches, with their sheets."""
    root = tmp_path / "shards"
    splits = {}
    for split, count in (("train", 12), ("validation", 0), ("test", 3)):
        rng = np.random.default_rng(count)
        patches = [Patch("/in/a.png", "a.png", 0, 0, rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(count)]
        files = []
        if patches:
            file = write_shard(root / split / "part-00000.parquet", patches, split=split)  # type: ignore[arg-type]
            patch_sheet([file], path=root / f"{split}.png")
            files = [{"name": f"{split}/part-00000.parquet", "rows": count, "bytes": file.bytes}]
        splits[split] = {"images": min(count, 1), "patches": count, "files": files}
    publish_json(
        root / MANIFEST,
        {
            **HEAD,
            "status": "finished",
            "patch": 32,
            "paired": False,
            "seed": 0,
            "config": {"patch": 32},
            "versions": {"raydenoise": "0.1.0"},
            "dtypes": ["uint8"],
            "channels": [3],
            "splits": splits,
            "images": {"listed": 4, "failed": 1, "skipped": 1},
            "failures": [{"uri": "/in/b.png", "error_type": "empty", "error_message": "the file is empty"}],
            "skipped": [{"uri": "/in/c.png", "error_type": "flat", "error_message": "all patches are flat"}],
        },
    )
    return root


@pytest.fixture
def training(tmp_path: Path, shards: Path) -> Path:
    """A finished training of 2,000 rows from those shards."""
    root = tmp_path / "run"
    (root / "metrics").mkdir(parents=True)
    steps = range(20, 40_001, 20)
    rows = [
        {
            "step": step,
            "loss": 1 / (10 + step),
            "learning_rate": 1e-3,
            "patches_per_s": 100.0,
            "seconds": step / 10,
            **(dict.fromkeys(("psnr", "psnr_15", "psnr_25", "psnr_50"), 30 + step / 40000) if not step % 4000 else {}),
        }
        for step in steps
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRAINING), root / "metrics" / "step-000040000.parquet")
    scores = {"step": 40_000, "test": {"psnr_noisy_25": 20.5, "psnr_denoised_25": 30.75}}
    manifest = {
        "kind": TRAINING_KIND,
        "status": "finished",
        "recipe": {"architecture": "resunet", "steps": 40_000, "precision": "float32"},
        "shards": {"root": str(shards)},
        "config": {"model": "resunet"},
        "summary": scores,
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "bundle").mkdir()
    card = {
        "name": "run",
        "architecture": "resunet",
        "channels": 3,
        "halo": 56,
        "training": {"command": "raydenoise train $SHARDS --output $RUN", "hardware": "x86_64, 1 nodes"},
        "scores": scores,
    }
    (root / "bundle" / "card.json").write_text(json.dumps(card))
    return root


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """An evaluation of two methods on ten pictures at two levels, as `raydenoise evaluate` leaves it."""
    root = tmp_path / "eval"
    (root / "results").mkdir(parents=True)
    rows, sets = [], []
    for sigma in (15.0, 50.0):
        methods = []
        for method, gain, source in (("default", 9.0, "known"), ("median", 2.0, None), ("noisy", 0.0, None)):
            for index in range(10):
                lost = 5.0 if (method, index) == ("median", 7) else 0.0
                rows.append(
                    {
                        "key": f"{index}.png",
                        "status": "ok",
                        "method": method,
                        "sigma": sigma,
                        "sigma_source": source,
                        "psnr": 20 + gain - lost,
                        "psnr_noisy": 20.0,
                        "ssim": 0.8,
                        "mse": 0.01,
                    }
                )
            methods.append(
                {
                    "method": method,
                    "sigma_source": source,
                    "images": 10,
                    "psnr": 20 + gain,
                    "gain": {"mean": gain, "low": gain - 0.25, "high": gain + 0.25} if gain else None,
                    "ssim": 0.8,
                    "mse": 0.01,
                    "megapixels_per_s": 1.5 if gain else None,
                }
            )
        verdict = "default is better than median by 7.00 dB, 95% interval 6.80 to 7.20, on 10 images"
        first, second = ({name: entry[name] for name in ("method", "sigma_source")} for entry in methods[:2])
        found = {"first": first, "second": second, "verdict": verdict, "better": first}
        sets.append({"sigma": sigma, "methods": methods, "comparisons": [found]})
    rows.append({"key": "broken.png", "status": "error"})
    pq.write_table(pa.Table.from_pylist(rows, schema=EVALUATION), root / "results" / "part-00000.parquet")
    failures = [{"key": "broken.png", "error": "no byte"}]
    summary = {"images": 11, "ok": 10, "failed": 1, "sets": sets, "first_failures": failures}
    (root / "summary.json").write_text(json.dumps(summary))
    models = {"default": {"kind": "network", "architecture": "resunet"}, "median": {"kind": "classical"}}
    manifest = {"kind": EVALUATION_KIND, "status": "finished", "config": {"strength": 1.0}, "models": models}
    (root / "manifest.json").write_text(json.dumps(manifest))
    PIL.Image.fromarray(np.full((60, 200, 3), 200, np.uint8)).save(root / "sheet.png")
    return root

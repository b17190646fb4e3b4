"""Prepare, train and evaluate from a bucket to a bucket; real endpoints of Amazon's and Google's API, a real Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import skimage.data

from raydenoise.data import storage
from raydenoise.data.place import Place, place
from raydenoise.model import bundle


def run(verb: str, *arguments: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "raydenoise.cli", verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(root: Place) -> dict[str, bytes]:
    return {key: (root / key).read_bytes() for key in storage.walk(root)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["bucket", "gs_bucket"])
def test_shards_run_and_evaluation_in_a_bucket(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    bucket = request.getfixturevalue(kind)
    there = place(bucket)
    for name in ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins"):
        (tmp_path / "in").mkdir(exist_ok=True)
        PIL.Image.fromarray(getattr(skimage.data, name)()[:256, :256]).save(tmp_path / "in" / f"{name}.png")
        storage.publish(there / "in" / f"{name}.png", (tmp_path / "in" / f"{name}.png").read_bytes())

    cut = ["--patch", 64, "--count", 8, "--split", "0.5,0.25,0.25", "--seed", 1]
    run("prepare", tmp_path / "in", "--output", tmp_path / "shards", *cut)
    run("prepare", f"{bucket}/in", "--output", f"{bucket}/shards", *cut)
    local, remote = files(tmp_path / "shards"), files(there / "shards")
    assert remote.keys() == local.keys()
    sheets = [name for name in local if name.endswith(".png")]
    assert sheets
    assert all(remote[name] == local[name] for name in sheets), "the same patches"

    small = ["--model-args", "filters=8,8", "depth=1", "--steps", 12, "--batch-size", 4, "--checkpoint-every", 4]
    run("train", f"{bucket}/shards", "--output", f"{bucket}/run", *small, "--cpus-per-worker", 1)
    held = files(there / "run")
    assert {"manifest.json", "learning-curve.png", "bundle/card.json", "bundle/model.keras"} <= held.keys()
    assert any(name.startswith("metrics/step-") for name in held)
    assert any(name.startswith("tensorboard/") for name in held)
    assert any(name.startswith("checkpoints/") for name in held)
    assert json.loads(held["manifest.json"])["status"] == "finished"
    for name in ("model.keras", "card.json"):
        (tmp_path / name).write_bytes(held[f"bundle/{name}"])
    assert len(bundle.load(tmp_path).model.weights) > 4

    said = run("evaluate", f"{bucket}/in", "--output", f"{bucket}/eval", "--models", "median", "--sigma", 25, "--json")
    summary = json.loads(said)
    assert summary["ok"] == 6
    assert {"summary.json", "summary.md", "sheet.png", "manifest.json"} <= files(there / "eval").keys()
    for folder in ("shards", "run", "eval"):
        run("report", f"{bucket}/{folder}")
        assert b"</html>" in (there / folder / "report.html").read_bytes()
    assert not any(b"a-secret-key" in data for data in {**held, **files(there / "eval")}.values())

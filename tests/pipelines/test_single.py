"""The single-process training, as it makes the shipped models."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import skimage.data

from raydenoise.model import bundle
from raydenoise.model.denoiser import Denoiser
from raydenoise.pipelines import single
from raydenoise.training.recipe import Recipe


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        picture = PIL.Image.fromarray(skimage.data.astronaut()[index * 50 : index * 50 + 200, :220])
        picture.save(tmp_path / "pictures" / f"{index}.png")
    PIL.Image.fromarray(skimage.data.camera()).save(tmp_path / "pictures" / "grey.png")
    return str(tmp_path / "pictures")


# Keras itself imports TensorFlow where it is installed, whatever the backend: pretend that it is not.
WITHOUT_TENSORFLOW = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "tensorflow" else find(name, *rest)
"""
OPTIONS = ["--patch", "32", "--batch-size", "2", "--steps", "2", "--warmup-steps", "1", "--validate-every", "2"]


def test_the_command_makes_a_bundle_from_folders(tmp_path: Path, folder: str) -> None:
    run = tmp_path / "run"
    assert single.main(["--pictures", folder, "--shrunk", folder, "--output", str(run), *OPTIONS]) == 0
    card = bundle.load(run / "bundle").card
    assert card.training["command"].startswith("python -m raydenoise.pipelines.single --pictures")
    assert str(tmp_path) not in card.training["command"].replace(str(run), "")
    assert card.training["pictures"] == 6
    assert (card.architecture, card.sigma_range, card.halo) == ("resunet", (0.0, 75.0), 56)
    assert card.scores["validation"]["step"] == 2
    (row,) = pq.read_table(run / "metrics").to_pylist()
    assert row["step"] == 2
    assert row["psnr"] == pytest.approx(np.mean([row[f"psnr_{sigma}"] for sigma in (15, 25, 50)]))
    assert Denoiser.load(run / "bundle")(skimage.data.coffee()[:30, :40]).shape == (30, 40, 3)


def test_the_notebooks_autoencoder_trains_on_any_patch(tmp_path: Path, folder: str) -> None:
    arguments = ["--pictures", folder, "--output", str(tmp_path / "run"), "--architecture", "autoencoder", *OPTIONS]
    assert single.main([*arguments, "--optimizer", "adam", "--loss", "mse"]) == 0
    assert bundle.load(tmp_path / "run" / "bundle").card.architecture == "autoencoder"


def test_the_network_takes_arguments(tmp_path: Path, folder: str) -> None:
    words = ["--pictures", folder, "--output", str(tmp_path / "run"), *OPTIONS]
    assert single.main([*words, "--model-args", "filters=8,16", "depth=1"]) == 0
    assert bundle.load(tmp_path / "run" / "bundle").card.arguments == {"filters": [8, 16], "depth": 1}


def test_it_begins_with_a_bundle(tmp_path: Path, folder: str, tiny_bundle: Path) -> None:
    still = ["--learning-rate", "1e-12", "--weight-decay", "0"]
    init = ["--init", str(tiny_bundle), "--sigma-range", "5", "80"]
    arguments = ["--pictures", folder, "--output", str(tmp_path / "run"), *init, *OPTIONS, *still]
    assert single.main(arguments) == 0
    before, after = bundle.load(tiny_bundle), bundle.load(tmp_path / "run" / "bundle")
    for one, other in zip(before.model.weights, after.model.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert after.card.arguments == before.card.arguments
    assert (before.card.sigma_range, after.card.sigma_range) == ((0, 75), (0, 80))
    assert after.card.training["init"] == str(tiny_bundle)


def test_the_card_tells_the_levels_of_photon_noise(tmp_path: Path, folder: str) -> None:
    noise = ["--noise", "poisson-gaussian", "--sigma-range", "0", "10", "--peak-range", "255", "2550"]
    arguments = ["--pictures", folder, "--output", str(tmp_path / "run"), *noise, *OPTIONS]
    assert single.main([*arguments, "--model-args", "filters=8,8", "depth=1"]) == 0
    card = bundle.load(tmp_path / "run" / "bundle").card
    assert card.sigma_range == (0, pytest.approx(np.hypot(10, np.sqrt(255))))


def test_pairs_are_refused(tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        single.main(["--pictures", folder, "--output", str(tmp_path / "run"), "--noise", "paired"])
    assert "noise is paired; allowed: awgn, poisson-gaussian; raydenoise train" in capsys.readouterr().err


def test_pictures_smaller_than_the_patch_are_refused(tmp_path: Path) -> None:
    pictures = [np.zeros((70, 80, 3), np.uint8)] * 3 + [np.zeros((60, 80, 3), np.uint8)]
    with pytest.raises(ValueError, match="1 of 4 training pictures are smaller than the patch of 64 pixels"):
        single.fit(Recipe(patch=64), pictures, pictures, folder=tmp_path, validate_every=1)


def test_without_a_large_held_out_picture_nothing_starts(tmp_path: Path) -> None:
    pictures = [np.zeros((70, 80, 3), np.uint8)] * 4
    with pytest.raises(ValueError, match="none of the 4 validation pictures is 192 pixels"):
        single.fit(
            Recipe(patch=64, arguments={"filters": (8, 8)}), pictures, pictures, folder=tmp_path, validate_every=1
        )


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend_runs_it_without_ray(tmp_path: Path, folder: str, backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    program = (
        f"{'' if backend == 'tensorflow' else WITHOUT_TENSORFLOW}import sys, json; "
        "from raydenoise.pipelines import single; status = single.main(sys.argv[1:]); "
        "print(json.dumps([status, sorted({'ray', 'tensorflow'} & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", program, "--pictures", folder, "--output", str(tmp_path / "run"), *OPTIONS]
    done = subprocess.run(
        command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    status, loaded = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    assert loaded == (["tensorflow"] if backend == "tensorflow" else [])
    assert (tmp_path / "run" / "bundle" / "card.json").is_file()

"""Laws of the trial: what only Keras sees in a bundle is seen before a job begins."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest

from raydenoise.model import trial
from raydenoise.model.card import CARD_FILE, MODEL_FILE, file_sha256
from raydenoise.model.trial import tried
from raydenoise.model.vetting import vet


@pytest.fixture
def misfit(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose description and weights do not fit each other: a kernel has another size."""
    folder = tmp_path / "misfit"
    folder.mkdir()
    with zipfile.ZipFile(tiny_bundle / MODEL_FILE) as old, zipfile.ZipFile(folder / MODEL_FILE, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                layers = [layer for layer in config["config"]["layers"] if layer["class_name"] == "Conv2D"]
                layers[0]["config"]["kernel_size"] = [1, 1]
                data = json.dumps(config).encode()
            new.writestr(name, data)
    card = json.loads((tiny_bundle / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps({**card, "sha256": file_sha256(folder / MODEL_FILE)}))
    return folder


def copied(bundle: Path, folder: Path) -> None:
    for name in (CARD_FILE, MODEL_FILE):
        shutil.copyfile(bundle / name, folder / name)


def test_a_bundle_that_only_keras_sees_through_is_refused(misfit: Path, tiny_bundle: Path) -> None:
    vet(misfit / MODEL_FILE)  # passes
    said = (
        "^model bad cannot be loaded: model.keras cannot be loaded as a Keras model: .*; allowed: a network that Keras"
    )
    bundles = {"tiny": partial(copied, tiny_bundle), "bad": partial(copied, misfit)}
    with tried(bundles) as wait, pytest.raises(ValueError, match=said):
        wait()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "it broke its process: SIGSEGV; allowed: ",
        ),
        ("import time; time.sleep(60)", "no end after 1 s; allowed"),
        ("raise SystemExit(5)", "its process ended with 5; allowed"),
    ],
)
def test_what_breaks_the_process_is_refused(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(trial.subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", code], **options))
    monkeypatch.setattr(trial, "_SECONDS", 1.0)
    if "sleep" not in code:
        monkeypatch.setattr(trial, "_SECONDS", 60.0)
    with tried({"m": lambda _: None}) as wait, pytest.raises(ValueError, match=f"^model m cannot be loaded: {said}"):
        wait()


@pytest.mark.slow
def test_denoise_refuses_it_before_any_work(misfit: Path, photographs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raydenoise.cli", "denoise", str(photographs), "--output", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [*command, "--model", str(misfit)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert "error: model tiny cannot be loaded: model.keras cannot be loaded as a Keras model: " in done.stderr
    assert not (tmp_path / "out").exists()

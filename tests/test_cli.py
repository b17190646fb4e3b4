"""Laws of the command: exit statuses, and refusals before any work starts."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import PIL.Image
import pytest

import raydenoise
from raydenoise import cli
from raydenoise.model.card import CARD_FILE, MODEL_FILE, Card, file_sha256, write_card


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """The command sets variables for its workers: take them back."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A bundle as the driver sees it: a card, and a file of the right hash that names nothing bad."""
    return write_bundle(tmp_path / "model", description={})


def write_bundle(folder: Path, *, description: dict[str, object]) -> Path:
    folder.mkdir()
    weights = io.BytesIO()
    h5py.File(weights, "w").close()
    with zipfile.ZipFile(folder / MODEL_FILE, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(description))
        archive.writestr("model.weights.h5", weights.getvalue())
    card = Card(
        name="tiny",
        architecture="unknown",
        arguments={},
        channels=3,
        noise_map=True,
        sigma_range=(0, 50),
        alignment=4,
        radius=6,
        halo=8,
        fixed_size=None,
        sha256=file_sha256(folder / MODEL_FILE),
    )
    write_card(card, folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    PIL.Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(folder / "a.png")
    return folder


def check_refused(capsys: pytest.CaptureFixture[str], message: str, *argv: object, verb: str = "denoise") -> None:
    """Status 2, one line on stderr, no Ray."""
    assert cli.main([verb, *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"raydenoise {verb}: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not sys.modules["ray"].is_initialized()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"raydenoise {raydenoise.__version__}\n"


def test_no_verb_is_a_bad_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: raydenoise {prepare,")


@pytest.mark.parametrize("verb", ["denois", "--verbose", ""])
def test_an_unknown_verb_is_a_bad_argument(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"raydenoise: error: {verb!r} is unknown; allowed: prepare, ")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "denoise" in captured.out


def test_bad_flags_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["denoise", "in"])
    assert "raydenoise denoise: error: output missing" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_refused(
    tmp_path: Path, pictures: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    message = (
        f"output '{tmp_path}/out' already holds something (images) and no manifest of a run; allowed: another folder"
    )
    check_refused(capsys, message, pictures, "--output", tmp_path / "out", "--model", model)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


def test_a_missing_input_is_refused(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"input '{tmp_path}/gone' holds no files; allowed: a folder, a glob or a file"
    check_refused(capsys, message, tmp_path / "gone", "--output", tmp_path / "out", "--model", model)
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_refused(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(capsys, "model 'nosuch' is not found; allowed: ", pictures, "--output", tmp_path, "--model", "nosuch")


def test_a_changed_model_is_refused(
    tmp_path: Path, pictures: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / MODEL_FILE).write_bytes(b"another network")
    message = "is not the file that its card describes: sha256 differs"
    check_refused(capsys, message, pictures, "--output", tmp_path / "out", "--model", model)


def test_a_card_that_is_none_is_refused(
    tmp_path: Path, pictures: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / CARD_FILE).write_text("{}")
    message = "is no model card of this version"
    check_refused(capsys, message, pictures, "--output", tmp_path / "out", "--model", model)


def test_a_hostile_model_is_refused(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_bundle(tmp_path / "model", description={"class_name": "Lambda", "config": {}})
    arguments = (pictures, "--output", tmp_path / "out", "--model")
    for path in (model, model / MODEL_FILE):
        check_refused(capsys, "model.keras cannot be loaded as a Keras model: it asks for 'Lambda'", *arguments, path)
    card = json.loads((model / CARD_FILE).read_text())
    (model / CARD_FILE).write_text(json.dumps({**card, "halo": 10**9}))
    check_refused(capsys, "card of this version: halo is 1000000000; allowed: a whole number", *arguments, model)
    assert not (tmp_path / "out").exists()


def test_a_driver_looks_at_a_bundle_without_keras(model: Path) -> None:
    code = (
        "import sys; from raydenoise.pipelines.process import read_files\n"
        "for name in sys.argv[1:]: read_files(name)\n"
        "assert not {'keras', 'tensorflow', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, model, "default"], check=True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sigma", "60"], "sigma is 60.0; allowed for tiny: auto, or 0 to 50 8-bit grey levels"),
        (["--tile", "30"], "tile is 30; allowed for this model: a multiple of 4, at least 20 pixels"),
        (["--reference", "gone"], "reference 'gone' is not a folder; allowed: a folder of pictures"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    argv: list[str],
    message: str,
    tmp_path: Path,
    pictures: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_refused(capsys, message, pictures, "--output", tmp_path / "out", "--model", model, *argv)
    assert not (tmp_path / "out").exists()


def test_prepare_refuses_an_output_that_holds_anything(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    message = f"output '{tmp_path}/out' already holds something (notes.txt); allowed: a new or an empty folder"
    check_refused(capsys, message, pictures, "--output", tmp_path / "out", verb="prepare")


def test_prepare_refuses_inputs_that_are_not_there(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"input '{tmp_path}/gone' holds no files; allowed: a folder, a glob or a file"
    check_refused(capsys, message, pictures, tmp_path / "gone", "--output", tmp_path / "out", verb="prepare")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("noisy", "clean", "message"),
    [
        ("gone", "in", "noisy 'gone' is not a folder; allowed: a folder of pictures"),
        ("in", "gone", "clean 'gone' is not a folder; allowed: a folder of pictures"),
        ("in", "other", "clean 'other' holds no picture with the path of an input, such as 'a.png'"),
    ],
)
def test_prepare_refuses_folders_that_are_no_pair(
    noisy: str,
    clean: str,
    message: str,
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").hardlink_to(pictures / "a.png")
    monkeypatch.chdir(tmp_path)
    check_refused(capsys, message, "--noisy", noisy, "--clean", clean, "--output", "out", verb="prepare")


def test_train_refuses_a_folder_without_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"shards '{tmp_path}/gone' is no folder; allowed: the output folder of raydenoise prepare"
    check_refused(capsys, message, tmp_path / "gone", "--output", tmp_path / "run", verb="train")
    message = f"shards '{tmp_path}' holds no manifest.json; allowed: the output folder of raydenoise prepare"
    check_refused(capsys, message, tmp_path, "--output", tmp_path / "run", verb="train")
    assert not (tmp_path / "run").exists()


def test_bad_flags_of_train_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["train", "shards"])
    assert "raydenoise train: error: output missing" in capsys.readouterr().err


def test_a_broken_job_tells_what_native_code_said_but_not_how_tensorflow_starts(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raydenoise.pipelines import prepare

    start_up = (
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:1764014400.123456   12345 port.cc:153] oneDNN custom operations are on.\n"
        b"W0000 00:00:1764014400.123457   12345 gpu_device.cc:2342] Cannot dlopen some GPU libraries.\n"
        b"2026-11-24 20:00:00.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] This binary is optimized\n"
        b"To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with ...\n"
    )
    said = b"E0000 00:00:1764014401.5   12345 cuda_driver.cc:28] out of memory\n[2026-11-24 20:00:01 E 7 7] node died\n"

    def broken(_: object) -> dict[str, object]:
        os.write(2, start_up + said)
        raise RuntimeError("no more memory")

    monkeypatch.setattr(prepare, "run", broken)
    assert cli.main(["prepare", str(pictures), "--output", str(tmp_path / "out")]) == 1
    message = f"{said.decode()}raydenoise prepare: the job broke: RuntimeError: no more memory\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("verbose", [False, True])
def test_neither_rows_nor_messages_hold_the_password_of_an_endpoint(
    verbose: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raydenoise.pipelines import denoise
    from raydenoise.pipelines.stages import described

    error = OSError("no answer from http://user:a-secret@127.0.0.1:1/a.png")

    def broken(_: object) -> None:
        raise error

    assert described(error)["error_message"] == "no answer from http://***@127.0.0.1:1/a.png"
    monkeypatch.setattr(denoise, "run", broken)
    arguments = ["denoise", str(tmp_path), "--output", str(tmp_path / "out"), *(["--verbose"] if verbose else [])]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert "a-secret" not in said
    assert said.endswith("the job broke: OSError: no answer from http://***@127.0.0.1:1/a.png\n")
    assert ("Traceback" in said) == verbose

"""Laws of `raydenoise inspect`: what it says stands in the model, and it needs no Ray."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from raydenoise import cli
from raydenoise.data.place import place
from raydenoise.data.storage import publish_folder
from raydenoise.model import networks
from raydenoise.model.card import locate, read_card


def test_a_bundle_is_described(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny_bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    card = read_card(tiny_bundle)
    assert (told["name"], told["radius"], told["halo"], told["sha256"]) == ("tiny", card.radius, card.halo, card.sha256)
    assert told["parameters"] == sum(layer["parameters"] for layer in told["layers"]) > 0
    assert told["macs_per_pixel"] == pytest.approx(sum(layer["macs"] for layer in told["layers"]))
    assert told["macs_per_pixel_in_tiles"]["512"] > told["macs_per_pixel_in_tiles"]["1024"] > told["macs_per_pixel"]


def test_the_default_is_described_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "default"]) == 0
    told = capsys.readouterr().out
    scores = read_card(locate("default")).scores["rows"]["CBSD68"]
    for line in (
        "RGB pictures and the noise level, sigma 0 to 75",
        "1,023,744",
        "kMAC per pixel; 200.4 in tiles of 512, 154.2 in tiles of 1024 (halo included)",
        "54 pixels around a cell of 4x4; halo 56",
        "H/2 x W/2 x 64",
        "CBSD68: " + ", ".join(f"{sigma} {psnr}" for sigma, psnr in scores.items()),
        "command: python -m raydenoise.pipelines.single",
    ):
        assert line in told, line


def test_a_bare_file_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks.build("autoencoder", filters=(4, 8), size=32).model.save(tmp_path / "mine.keras")
    assert cli.main(["inspect", str(tmp_path / "mine.keras")]) == 0
    told = capsys.readouterr().out
    assert "RGB pictures; no noise level" in told
    assert "MaxPooling2D" in told
    assert "scores" not in told


def test_text_of_a_stranger_is_printed_as_it_is(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    card["versions"] = {"keras": "3.15 [/x] [link=x]y"}
    (tmp_path / "bundle" / "card.json").write_text(json.dumps(card))
    assert cli.main(["inspect", str(tmp_path / "bundle")]) == 0
    assert "keras 3.15 [/x] [link=x]y" in capsys.readouterr().out


def test_a_network_of_one_size_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    keras.Model(inputs, keras.layers.Add()([inputs, pooled])).save(tmp_path / "pooled.keras")
    assert cli.main(["inspect", str(tmp_path / "pooled.keras")]) == 0
    assert "RGB pictures of 32x32 pixels alone; no noise level" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["bucket", "gs_bucket"])
def test_a_model_in_a_bucket_is_described(
    kind: str, tiny_bundle: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(tiny_bundle), "--json"]) == 0
    told = capsys.readouterr().out
    there = place(request.getfixturevalue(kind)) / "mine"
    publish_folder(tiny_bundle, there)
    assert cli.main(["inspect", str(there), "--json"]) == 0
    assert capsys.readouterr().out == told
    assert cli.main(["inspect", f"{there}-not"]) == 2
    assert f"model '{there}-not' cannot be read: " in capsys.readouterr().err
    (there / "model.keras").write_bytes(b"no model")
    assert cli.main(["inspect", str(there)]) == 2
    assert capsys.readouterr().err.startswith(f"raydenoise inspect: error: {there}/model.keras ")


def test_no_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "nosuch"]) == 2
    assert capsys.readouterr().err.startswith(
        "raydenoise inspect: error: model 'nosuch' is not found; allowed: default"
    )


def test_it_imports_no_ray() -> None:
    code = (
        "import sys; from raydenoise import cli; cli.main(['inspect', 'default', '--json'])\n"
        "print('ray' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "False"
    assert json.loads(done.stdout)["name"] == "default"

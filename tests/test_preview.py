"""Laws of `raydenoise preview`: the sheet shows what `denoise` would give of the pictures it names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from raydenoise import cli, preview
from raydenoise.config import PreviewConfig, parse
from raydenoise.core.metrics import quality
from raydenoise.data.place import place
from raydenoise.data.storage import publish_folder
from raydenoise.model.denoiser import Denoiser
from tests.conftest import noisy_pixels

CROP = 64


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Nine pictures of several sizes and kinds; the clean ones beside them."""
    for folder in ("noisy", "clean"):
        (tmp_path / folder).mkdir()
    for number in range(9):
        pixels = noisy_pixels(150 + number, 190, seed=number)
        clean = noisy_pixels(150 + number, 190, seed=100)
        if number == 4:
            pixels, clean = pixels[..., 0], clean[..., 0]
        PIL.Image.fromarray(pixels).save(tmp_path / "noisy" / f"{number}.png")
        PIL.Image.fromarray(clean).save(tmp_path / "clean" / f"{number}.png")
    return tmp_path / "noisy"


def drawn(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as sheet:
        return np.asarray(sheet)


def cells(sheet: np.ndarray, *, row: int, columns: int) -> list[np.ndarray]:
    """The crops of a row of square ones."""
    top = preview.GAP + 2 * preview.LINE + row * (2 * preview.LINE + CROP + preview.GAP) + preview.LINE
    lefts = [preview.GAP + column * (CROP + preview.GAP) for column in range(columns)]
    return [sheet[top : top + CROP, left : left + CROP] for left in lefts]


def test_a_cell_holds_the_pixels_that_denoise_would_write(pictures: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    argv = ["--models", str(tiny_bundle), "--sigma", "auto,30", "--strength", "0.5,1", "--crop", str(CROP)]
    argv += ["--pictures", "3", "--precision", "float32", "--output", str(out), "--quiet"]
    assert cli.main(["preview", str(pictures), *argv]) == 0
    denoiser = Denoiser.load(tiny_bundle, precision="float32")
    for row, name in enumerate(("0.png", "4.png", "8.png")):  # evenly spread
        with PIL.Image.open(pictures / name) as file:
            pixels = np.asarray(file)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        top, left = (pixels.shape[0] - CROP) // 2, (pixels.shape[1] - CROP) // 2
        whole = [pixels, *(denoiser(pixels, sigma, strength) for sigma in ("auto", 30) for strength in (0.5, 1))]
        for found, expected in zip(cells(drawn(out), row=row, columns=5), whole, strict=True):
            crop = expected[top : top + CROP, left : left + CROP].astype(int)
            assert np.abs(found - crop).max() <= 1  # a sum in another order may round the other way


def test_a_model_in_a_bucket_draws_the_same_sheet(
    pictures: Path, tiny_bundle: Path, tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = place(bucket) / "tiny"
    publish_folder(tiny_bundle, there)
    sheets = {tmp_path / "here.png": tiny_bundle, tmp_path / "there.png": there}
    for sheet, model in sheets.items():
        argv = ["--models", str(model), "--pictures", "1", "--output", str(sheet), "--quiet"]
        assert cli.main(["preview", str(pictures), *argv]) == 0
    np.testing.assert_array_equal(*map(drawn, sheets))
    capsys.readouterr()
    assert cli.main(["preview", str(pictures), "--models", str(there), "--sigma", "200"]) == 2
    assert "sigma is 200" in capsys.readouterr().err


def test_the_summary_names_pictures_settings_and_psnr(
    pictures: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    argv = [str(pictures), "--models", str(tiny_bundle), "--reference", str(pictures.parent / "clean")]
    argv += ["--pictures", "2", "--crop", str(CROP), "--output", str(out)]
    assert cli.main(["preview", *argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [picture["key"] for picture in told["pictures"]] == ["0.png", "8.png"]
    assert told["settings"] == ["tiny, sigma auto, strength 1"]
    before, _, clean = cells(drawn(out), row=0, columns=3)
    assert told["pictures"][0]["psnr_noisy"] == quality(clean, before).psnr
    assert cli.main(["preview", *argv]) == 0  # an earlier sheet is replaced
    told = capsys.readouterr().out
    assert f"{out}: 2 of 9 pictures, 1 settings" in told
    assert "PSNR of the crops, mean of 2: " in told
    assert "dB) by tiny, sigma auto, strength 1" in told


def test_what_cannot_be_read_is_skipped_and_said(
    pictures: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "0.png").write_bytes(b"no picture")
    (pictures.parent / "clean" / "8.png").unlink()
    argv = ["--models", str(tiny_bundle), "--pictures", "3", "--crop", "64", "--output", str(tmp_path / "sheet.png")]
    assert cli.main(["preview", str(pictures), *argv, "--reference", str(pictures.parent / "clean")]) == 3
    told = capsys.readouterr()
    assert "skipped: 0.png: " in told.err
    assert "8.png: no reference" in told.out
    assert "2 of 9 pictures" in told.out


def test_nothing_readable_is_a_broken_job(
    pictures: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in pictures.iterdir():
        path.write_bytes(b"")
    argv = ["--models", str(tiny_bundle), "--output", str(tmp_path / "sheet.png")]
    assert cli.main(["preview", str(pictures), *argv]) == 1
    assert "none of 4 pictures could be read; 0.png: the file is empty: 0 bytes" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_a_network_without_a_noise_level_is_shown_once(tmp_path: Path, tiny_bundle: Path, pictures: Path) -> None:
    from raydenoise.model import networks

    networks.build("autoencoder", filters=(4,), size=None).model.save(tmp_path / "plain.keras")
    models = (str(tiny_bundle), str(tmp_path / "plain.keras"))
    sheet = str(tmp_path / "s.png")
    config = PreviewConfig(input=str(pictures), models=models, sigma=(15.0, 25.0), pictures=1, crop=64, output=sheet)
    assert preview.run(config)["settings"] == [
        "tiny, sigma 15, strength 1",
        "tiny, sigma 25, strength 1",
        "plain, takes no sigma, strength 1",
    ]


def test_small_and_large_pictures_fit(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(noisy_pixels(20, 30)).save(tmp_path / "in" / "a.png")
    deep = (noisy_pixels(90, 300).astype(np.uint16) * 257)[..., 0]
    PIL.Image.fromarray(deep).save(tmp_path / "in" / "b.png")
    config = PreviewConfig(
        input=str(tmp_path / "in"), models=(str(tiny_bundle),), crop=64, output=str(tmp_path / "s.png")
    )
    assert len(preview.run(config)["pictures"]) == 2
    assert drawn(tmp_path / "s.png").shape[1] == preview.GAP + 2 * (64 + preview.GAP)


def test_models_of_one_name_are_told_apart(pictures: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    models = []
    for run in ("a", "b"):
        models.append(str(shutil.copytree(tiny_bundle, tmp_path / run / "bundle")))
    given = {"input": str(pictures), "pictures": 1, "crop": 64, "output": str(tmp_path / "s.png")}
    assert preview.run(PreviewConfig(**given, models=(models[0],)))["settings"] == ["tiny, sigma auto, strength 1"]
    both = preview.run(PreviewConfig(**given, models=tuple(models)))["settings"]
    assert both == [f"{model}, sigma auto, strength 1" for model in models]


def test_means_are_over_the_crops_that_have_a_psnr(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*pictures: tuple[float | None, list[float | None]]) -> list[str]:
        shown = [{"psnr_noisy": noisy, "psnr": psnr} for noisy, psnr in pictures]
        summary = {"output": "s.png", "pictures": shown, "listed": 3, "settings": ["a", "b"]}
        preview.show({**summary, "notes": [], "first_failures": []})
        return capsys.readouterr().out.splitlines()[1:]

    assert told((20.0, [30.0, None]), (24.0, [31.0, None]), (None, [None, 50.0])) == [
        "  PSNR of the crops, mean of 2: 22.00 dB before",
        "  30.50 dB (+8.50 dB) by a",
    ]
    assert told((20.0, [30.0, None]), (24.0, [31.0, 35.0])) == [
        "  PSNR of the crops, mean of 2: 22.00 dB before",
        "  30.50 dB (+8.50 dB) by a",
        "  35.00 dB (+11.00 dB, mean of 1) by b",
    ]
    assert told((None, [None, None])) == []


def test_a_sheet_in_a_bucket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["preview", "none", "--output", "s3://bucket/sheet.png"]) == 2
    assert "error: output is 's3://bucket/sheet.png'; allowed: a local file\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"mine", None])
def test_only_a_sheet_is_replaced(
    pictures: Path, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.png"
    if content is None:
        PIL.Image.fromarray(noisy_pixels(5, 5)).save(out)
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    assert cli.main(["preview", str(pictures), "--output", str(out)]) == 2
    assert f"output '{out}' exists and is no preview; allowed: another name" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_level_beyond_a_model_is_refused(
    pictures: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--models", str(tiny_bundle), "--sigma", "90", "--output", str(tmp_path / "s.png")]
    assert cli.main(["preview", str(pictures), *argv]) == 2
    assert "sigma is 90.0; allowed for tiny: auto, or 0 to 75 8-bit grey levels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "sheet.jpg"], "output is 'sheet.jpg'; allowed: a name that ends in .png"),
        (["--sigma", "25,x"], "'x' is no noise level; allowed: auto, or 8-bit grey levels"),
        (["--sigma", "25,25"], "sigma is '25.0,25.0'; allowed: one or more, each once"),
        (["--sigma=-1"], "sigma is -1.0; allowed: auto, or 0 and more 8-bit grey levels"),
        (["--strength", "2"], "strength is 2.0; allowed: 0 to 1"),
        (["--strength", "a"], "'a' are no strengths; allowed: such as 0.5,1"),
        (["--models", "a,"], "models is 'a,'; allowed: one or more, each once"),
        (["--pictures", "0"], "pictures is 0; allowed: 1 or more"),
        (["--crop", "10"], "crop is 10; allowed: 64 or more pixels"),
    ],
)
def test_what_preview_refuses(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parse(PreviewConfig, ["in", *argv], prog="raydenoise preview", description="")
    assert message in capsys.readouterr().err


def test_it_imports_no_ray(pictures: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    argv = ["preview", str(pictures), "--models", str(tiny_bundle), "--output", str(tmp_path / "s.png"), "--quiet"]
    code = f"import sys; from raydenoise import cli; cli.main({argv!r}); print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert (tmp_path / "s.png").exists()

"""The last section of docs/training.md, run as it stands on small pairs."""

import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import ray
import skimage.data
from scipy.ndimage import gaussian_filter

from raydenoise import cli
from raydenoise.data.manifest import Output
from raydenoise.model.card import read_card
from raydenoise.pipelines import denoise, prepare, train
from raydenoise.report.sheets import read_metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
HEADING = "## Fine-tuning the default model on your own pairs"
PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
SIDE = 256
SIGMA = 20  # 8-bit grey levels
BLUR = 0.7  # pixels: noise of neighbours is then alike, as after demosaicing; default knows white noise alone

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")


def commands() -> list[list[str]]:
    """The words of each command of the section, without `raydenoise`."""
    section = PAGE.read_text().split(HEADING + "\n")[1]
    assert "\n## " not in section, "the page ends with this section"
    block = re.findall(r"```\n(.*?)```", section, re.DOTALL)[0].replace("\\\n", "")
    words = [shlex.split(line) for line in block.splitlines()]
    assert all(line[0] == "raydenoise" for line in words)
    return [line[1:] for line in words]


def correlated(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise that the neighbours share, clipped and rounded."""
    noise = gaussian_filter(rng.normal(0, 1, clean.shape), (BLUR, BLUR, 0))
    return np.clip(np.rint(clean + SIGMA * noise / noise.std()), 0, 255).astype(np.uint8)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The folders that the section speaks of: clean, noisy, and new ones to denoise."""
    rng = np.random.default_rng(0)
    for name in PICTURES:
        picture = getattr(skimage.data, name)()
        y, x = ((extent - SIDE) // 2 for extent in picture.shape[:2])
        clean = picture[y : y + SIDE, x : x + SIDE]
        for folder, pixels in (("clean", clean), ("noisy", correlated(clean, rng))):
            (tmp_path / folder).mkdir(exist_ok=True)
            PIL.Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "new").mkdir()
    PIL.Image.fromarray(correlated(skimage.data.coffee()[:70, :90], rng)).save(tmp_path / "new" / "cup.png")
    return tmp_path


@pytest.fixture
def one_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One Ray for the three commands, as a private local one would be: each start takes 10 s."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for verb in (prepare, train, denoise):
        monkeypatch.setattr(verb, "session", lambda *_, **__: nullcontext())
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_the_commands_beat_the_default_model_on_pairs_it_never_saw(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pairs)
    for words in commands():
        assert cli.main(words) == 0, capsys.readouterr().err
    scores = read_card(pairs / "tuned" / "bundle").scores["test"]
    assert scores["psnr_init"] > scores["psnr_noisy"]
    assert scores["psnr_denoised"] > scores["psnr_init"] + 0.5
    assert f"init {scores['psnr_init']:.2f} dB" in capsys.readouterr().out
    (row,) = read_metrics(Output(pairs / "denoised"))
    assert (row["status"], row["key"]) == ("ok", "cup.png")

"""The evaluation as a person runs it: the command, a real local Ray, real files; and what it refuses before that."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import skimage.data

from raydenoise.config import EvaluateConfig
from raydenoise.core.image import decode
from raydenoise.core.metrics import as_float, quality
from raydenoise.core.noise import add_awgn
from raydenoise.data import storage
from raydenoise.data.layout import generator
from raydenoise.data.lease import FOLDER, LeaseLostError, check_free, held
from raydenoise.data.schema import EVALUATION
from raydenoise.data.shards import HEAD, MANIFEST, Patch, write_shard
from raydenoise.data.storage import publish_json
from raydenoise.model import bundle, networks
from raydenoise.model.denoiser import Denoiser
from raydenoise.pipelines import evaluate
from raydenoise.pipelines.evaluator import NOISY, Evaluator, Task, classical, network
from raydenoise.pipelines.session import Plan

SIDE = 32


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `raydenoise evaluate` with a private Ray."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "raydenoise.cli", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def results(output: Path) -> list[dict[str, Any]]:
    table = pq.read_table(output / "results")
    assert table.schema.equals(EVALUATION)
    return table.to_pylist()


def save_bundle(folder: Path, name: str, **arguments: Any) -> Path:
    """A new network as a bundle: a resunet then changes nothing."""
    made = networks.build(name, **arguments)
    facts: dict[str, Any] = {"sigma_range": (0.0, 75.0), "training": {}, "scores": {}}
    bundle.save(made, folder, name=folder.name, architecture=name, arguments=arguments, **facts)
    return folder


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("models") / "identity", "resunet", filters=(8, 8), depth=1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven clean pictures, one of them grey, and a corrupt file."""
    folder = tmp_path / "clean"
    folder.mkdir()
    for index in range(6):
        crop = skimage.data.astronaut()[40 * index : 40 * index + 48, 100:164]
        PIL.Image.fromarray(crop).save(folder / f"{index}.png")
    PIL.Image.fromarray(skimage.data.camera()[:40, :50]).save(folder / "grey.png")
    (folder / "corrupt.png").write_bytes((folder / "0.png").read_bytes()[:100])
    return folder


def write_shards(root: Path, *, paired: bool = False) -> Path:
    """What `raydenoise prepare` would leave: two patches of each of eight pictures for test, none for training."""
    photograph, rng = skimage.data.astronaut(), np.random.default_rng(0)
    patches = []
    for index in range(8):
        for x in (0, SIDE):
            clean = np.ascontiguousarray(photograph[40 * index : 40 * index + SIDE, 100 + x : 100 + x + SIDE])
            noisy = np.clip(np.rint(clean + rng.normal(0, 20, clean.shape)), 0, 255).astype(np.uint8)
            patches.append(Patch(f"/gone/{index}.png", f"{index}.png", 0, x, clean, noisy if paired else None))
    file = write_shard(root / "test" / "part-00000.parquet", reversed(patches), split="test")
    listed = {"name": "test/part-00000.parquet", "rows": file.rows, "bytes": file.bytes}
    splits = {"train": {"files": []}, "validation": {"files": []}, "test": {"files": [listed]}}
    facts = {"patch": SIDE, "paired": paired, "dtypes": ["uint8"], "channels": [3], "seed": 0}
    publish_json(root / MANIFEST, {**HEAD, "status": "finished", **facts, "splits": splits})
    return root


def test_one_job_at_a_time_writes_an_evaluation(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "eval"
    config = EvaluateConfig(input=str(pictures), output=str(root), models=("median",), gpus_per_actor=0.0)
    with held(root), pytest.raises(ValueError, match="is being written by process"):
        evaluate.run(config)

    declared: list[float | None] = []
    monkeypatch.setattr(evaluate, "session", lambda *_, gpus, **__: nullcontext(declared.append(gpus)))
    monkeypatch.setattr(evaluate, "check_shared", lambda *_, **__: None)
    monkeypatch.setattr(evaluate, "make_plan", lambda *_, **__: Plan(1, 1, 0.0, 1, 1))
    monkeypatch.setattr(evaluate, "_execute", lambda *_, **__: storage.create(root / FOLDER / "000003.json", b"{}"))
    monkeypatch.setattr(evaluate, "_publish", lambda *_, **__: {"images": 0, "ok": 0, "failed": 0})
    with pytest.raises(LeaseLostError, match="took over"):
        evaluate.run(config)
    assert declared == [0.0]
    assert json.loads((root / "manifest.json").read_text())["status"] == "running"


def test_a_set_is_evaluated_as_one_process_does_alone(
    tmp_path: Path, pictures: Path, identity: Path, tiny_bundle: Path
) -> None:
    output = tmp_path / "eval"
    models = f"{tiny_bundle},median,{identity}"

    done = run(
        pictures, "--output", output, "--models", models, "--sigma", "25,15", "--actors", 2, "--precision", "float32"
    )

    assert done.returncode == 3, done.stderr
    assert check_free(output) == 1
    found = results(output)
    (bad,) = [row for row in found if row["status"] == "error"]
    assert (bad["key"], bad["method"]) == ("corrupt.png", None)
    assert bad["error_type"] in ("truncated", "corrupt")
    good = {(row["key"], row["method"], row["sigma"], row["sigma_source"]): row for row in found if row is not bad}
    assert len(good) == len(found) - 1 == 7 * 2 * (1 + 3 * 2), "noisy, and three methods told the level twice"

    config = EvaluateConfig(input=str(pictures), output="unused", precision="float32")
    task = Task(config, sigmas=(15.0, 25.0), sources=("known", "auto"), shown=None)
    tiny = network("tiny", Denoiser.load(tiny_bundle, precision="float32"), strength=1.0, tta=1)
    alone = Evaluator(task, [tiny, classical("median", strength=1.0)], worker="here")
    listed, _ = evaluate.list_sources(config)
    for source in listed.to_pylist()[:2] + listed.to_pylist()[-1:]:
        for row in alone(source):
            there = good[row["key"], row["method"], row["sigma"], row.get("sigma_source")]
            for name in ("psnr", "psnr_noisy", "ssim", "mse", "sigma_given"):
                value = row.get(name)
                assert there[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name
    for (key, method, sigma, _), row in good.items():
        clean = as_float(decode((pictures / key).read_bytes()).pixels)
        noisy = add_awgn(clean, sigma=sigma, rng=generator(0, "noise", key, repr(sigma)))
        assert row["psnr_noisy"] == pytest.approx(quality(clean, np.clip(noisy, 0, 1)).psnr, rel=1e-6)
        if method == "identity":
            assert row["psnr"] == pytest.approx(row["psnr_noisy"], abs=1e-4)

    summary = json.loads((output / "summary.json").read_text())
    assert (summary["images"], summary["ok"], summary["failed"]) == (8, 7, 1)
    assert [part["sigma"] for part in summary["sets"]] == [15, 25]
    for part in summary["sets"]:
        assert len(part["comparisons"]) == 3 + 3 + 3, "pairs of the same source, and each method against itself"
        for entry in part["methods"]:
            rows = [
                row["psnr"]
                for key, row in good.items()
                if key[1:] == (entry["method"], part["sigma"], entry["sigma_source"])
            ]
            assert entry["psnr"] == pytest.approx(np.mean(rows))
            assert (entry["megapixels_per_s"] is None) == (entry["method"] == NOISY)
    text = (output / "summary.md").read_text()
    assert "is better than identity by " in text
    assert "on 7 images." in text
    assert "is better than identity by " in done.stdout
    assert "8: 7 evaluated, 1 failed" in done.stdout
    assert "failed: corrupt.png: " in done.stdout
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["models"]["tiny"]["sha256"] == tiny.sha256
    assert manifest["config"]["sigma"] == [25, 15]
    assert manifest["ray"]["plan"]["actors"] == 2
    with PIL.Image.open(output / "sheet.png") as sheet:
        assert sheet.width == 5 * 160 + 10, "clean, noisy and three methods side by side"
    assert sorted(path.name for path in output.iterdir()) == [
        "lease",
        "manifest.json",
        "results",
        "sheet.png",
        "summary.json",
        "summary.md",
    ]


def test_two_autoencoders_on_the_test_split_of_shards(tmp_path: Path) -> None:
    runs = [
        save_bundle(tmp_path / name, "autoencoder", filters=width)
        for name, width in (("a", (4, 4, 4)), ("b", (6, 6, 6)))
    ]
    output = tmp_path / "eval"

    done = run(
        write_shards(tmp_path / "shards"), "--output", output, "--models", ",".join(map(str, runs)), "--sigma", 25
    )

    assert done.returncode == 0, done.stderr
    found = results(output)
    assert len(found) == 16 * 3
    assert {(row["method"], row["sigma_source"], row["sigma_given"]) for row in found} == {
        ("noisy", None, None),
        ("a", None, None),
        ("b", None, None),
    }, "these networks take no level"
    first = min(found, key=lambda row: row["key"])
    assert (first["key"], first["uri"], first["height"], first["bit_depth"]) == ("0.png@0,0", "/gone/0.png", SIDE, 8)
    (part,) = json.loads((output / "summary.json").read_text())["sets"]
    (compared,) = part["comparisons"]
    assert (compared["images"], compared["pictures"]) == (16, 8)
    assert "on 16 patches of 8 pictures" in compared["verdict"]
    assert compared["verdict"] in done.stdout
    assert (output / "sheet.png").is_file()


def listed(source: Path, **options: Any) -> tuple[list[dict[str, Any]], bool]:
    rows, paired = evaluate.list_sources(EvaluateConfig(input=str(source), output="out", **options))
    return rows.to_pylist(), paired


def test_pairs_are_compared_as_they_are(tmp_path: Path, pictures: Path) -> None:
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    for index in range(3):
        with PIL.Image.open(pictures / f"{index}.png") as clean:
            clean.point(lambda value: min(value + 10, 255)).save(noisy / f"{index}.tif")
    sources, paired = listed(pictures, noisy=str(noisy), limit=4)
    assert paired
    config = EvaluateConfig(input=str(pictures), output="out", noisy=str(noisy))
    task = evaluate.make_task(config, {}, paired=True)
    rows = [row for source in sources for row in Evaluator(task, [classical("nlm", strength=1.0)], worker="w")(source)]
    assert [(row["key"], row.get("method"), row.get("sigma_source")) for row in rows] == [
        *((f"{index}.png", *what) for index in range(3) for what in (("noisy", None), ("nlm", "auto"))),
        ("3.png", None, None),
    ]
    before, after, unpaired = rows[0], rows[1], rows[-1]
    clean, changed = (decode(path.read_bytes()).pixels for path in (pictures / "0.png", noisy / "0.tif"))
    assert before["psnr"] == pytest.approx(quality(clean, changed).psnr, rel=1e-6)
    assert (before["sigma"], after["sigma"]) == (None, None)
    assert after["sigma_given"] >= 0
    assert unpaired["error_type"] == "unpaired"


def test_pairs_of_shards_are_used_as_pairs(tmp_path: Path) -> None:
    sources, paired = listed(write_shards(tmp_path / "shards", paired=True), limit=3)
    assert paired
    assert [source["key"] for source in sources] == ["0.png@0,0", "0.png@0,32", "1.png@0,0"]
    config = EvaluateConfig(input="in", output="out")
    evaluator = Evaluator(evaluate.make_task(config, {}, paired=True), [], worker="w")
    (row,) = evaluator(sources[0])
    assert 20 < row["psnr"] < 24, "sigma 20"
    assert row["sigma"] is None


def test_the_sheet_shows_pictures_from_all_over_the_set(pictures: Path) -> None:
    rows, _ = listed(pictures, sheet=3)
    assert [row["key"] for row in rows if row["shown"]] == ["0.png", "3.png", "grey.png"]
    rows, _ = listed(pictures, sheet=0)
    assert not any(row["shown"] for row in rows)


def test_what_does_not_go_together_is_refused(tmp_path: Path, pictures: Path) -> None:
    pairs = write_shards(tmp_path / "pairs", paired=True)
    with pytest.raises(ValueError, match=r"split is 'test'; allowed: with a folder of shards, and '.*clean' is none"):
        listed(pictures, split="test")
    with pytest.raises(ValueError, match=r"hold no patch for train; allowed: a split with patches: train 0, .*test 16"):
        listed(pairs, split="train")
    with pytest.raises(ValueError, match="noisy given with shards; allowed: pairs that raydenoise prepare"):
        listed(pairs, noisy="noisy")
    with pytest.raises(ValueError, match="sigma given, and the shards hold pairs; allowed: leave it out"):
        listed(pairs, sigma=(25.0,))
    with pytest.raises(ValueError, match="sigma_source is 'known', and the shards hold pairs; allowed: auto"):
        listed(pairs, sigma_source="known")
    with pytest.raises(ValueError, match="noisy 'gone' is not a folder; allowed: a folder of pictures"):
        listed(pictures, noisy="gone")


def read(*models: str, **options: Any) -> evaluate.Models:
    config = EvaluateConfig(input="in", output="out", models=models, **options)
    found = evaluate.read_models(config)
    evaluate.make_task(config, found, paired=False)
    return found


def test_models_that_are_not_there_or_do_not_fit_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model 'medain' is not found; allowed: default, .*; or a classical method: median, wav"
    ):
        read("medain")
    with pytest.raises(ValueError, match=r"model tiny: sigma is 90.0; allowed for tiny: auto, or 0 to 75"):
        read(str(tiny_bundle), sigma=(25.0, 90.0))
    read(str(tiny_bundle), sigma=(25.0, 90.0), sigma_source="auto")
    with pytest.raises(ValueError, match="model tiny: tile is 7; allowed for this model: a multiple of 4"):
        read(str(tiny_bundle), tile=7)


def test_models_are_named_by_their_cards_and_by_their_paths_where_two_share_one(tmp_path: Path, identity: Path) -> None:
    other = save_bundle(tmp_path / "identity", "autoencoder", filters=(4, 4, 4))
    named_like_the_baseline = save_bundle(tmp_path / "noisy", "autoencoder", filters=(4, 4, 4))
    assert list(read(str(identity), "median")) == ["identity", "median"]
    assert list(read(str(identity), str(other))) == [str(identity), str(other)]
    assert list(read(str(named_like_the_baseline))) == [str(named_like_the_baseline)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_a_fixed_size_and_one_plane_works_on_any_picture(
    tmp_path: Path, pictures: Path, channels: int
) -> None:
    inputs = keras.Input((16, 16, channels))
    dense = keras.layers.Dense(16 * 16 * channels)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, keras.layers.Reshape((16, 16, channels))(dense)).save(tmp_path / "fixed.keras")
    ((name, model),) = read(str(tmp_path / "fixed.keras")).items()
    assert model is not None
    assert (model[1].fixed_size, model[1].channels) == (16, channels)
    method = network(name, Denoiser.load(tmp_path / "fixed.keras", precision="float32"), strength=1.0, tta=8)
    config = EvaluateConfig(input=str(pictures), output="out")
    evaluator = Evaluator(Task(config, (25.0,), ("known",), None), [method], worker="w")
    for source in (listed(pictures)[0][index] for index in (0, -1)):
        assert [row["status"] for row in evaluator(source)] == ["ok", "ok"]

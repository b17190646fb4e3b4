"""The job as a person runs it: the installed command, a real local Ray, real files."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from raydenoise.config import DenoiseConfig
from raydenoise.core.image import decode
from raydenoise.core.metrics import quality
from raydenoise.data import storage
from raydenoise.data.lease import FOLDER, Lease, LeaseLostError
from raydenoise.data.ledger import Commits
from raydenoise.data.manifest import DENOISING_KIND, Output, part_name
from raydenoise.data.schema import METRICS
from raydenoise.model.denoiser import Denoiser
from raydenoise.pipelines import denoise
from raydenoise.pipelines.denoise import Job
from raydenoise.pipelines.session import Plan


def run(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `raydenoise denoise` with a private Ray."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "raydenoise.cli", "denoise", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def metrics(output: Path) -> dict[str, dict]:
    table = pq.read_table(output / "metrics")
    assert table.schema.equals(METRICS)
    rows = {row["key"]: row for row in table.to_pylist()}
    assert len(rows) == len(table), "one row per picture"
    return rows


def test_a_collection_is_denoised_as_the_denoiser_does_alone(
    tmp_path: Path, photographs: Path, tiny_bundle: Path
) -> None:
    clean = tmp_path / "clean"
    (clean / "sub").mkdir(parents=True)
    for path in photographs.rglob("*.*"):  # any supported extension pairs
        with PIL.Image.open(path) as noisy:
            flat = noisy.convert("RGB").resize((3, 3)).resize(noisy.size)
        flat.save((clean / path.relative_to(photographs)).with_suffix(".png"))
    output = tmp_path / "out"

    done = run(
        photographs,
        "--output",
        output,
        "--model",
        tiny_bundle,
        "--sigma",
        20,
        "--precision",
        "float32",
        "--reference",
        clean,
        "--json",
    )

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["ok"], summary["failed"]) == (5, 5, 0)
    rows = metrics(output)
    assert sorted(rows) == ["a.png", "b.jpg", "sub/c d.webp", "sub/e.bmp", "sub/ü.tif"]
    denoiser = Denoiser.load(tiny_bundle, precision="float32")
    for key, row in rows.items():
        noisy, written = (decode(path.read_bytes()) for path in (photographs / key, output / "images" / key))
        expected = denoiser(noisy.pixels, sigma=20)
        if row["format"] in ("png", "tiff", "bmp"):
            np.testing.assert_array_equal(written.pixels, expected)
        assert (expected != noisy.pixels).any()
        assert row["format"] == noisy.format == written.format
        reference = decode((clean / key).with_suffix(".png").read_bytes()).pixels
        after, before = quality(reference, written.pixels), quality(reference, noisy.pixels)
        assert (row["psnr_denoised"], row["ssim_denoised"], row["mse_denoised"]) == pytest.approx(
            (after.psnr, after.ssim, after.mse)
        )
        assert (row["psnr_noisy"], row["mse_noisy"]) == pytest.approx((before.psnr, before.mse))
        assert (row["height"], row["width"], row["channels"], row["bit_depth"]) == (*noisy.pixels.shape, 8)
        assert row["bytes_out"] == (output / "images" / key).stat().st_size
        assert row["bytes_in"] == (photographs / key).stat().st_size
        assert (row["status"], row["model"], row["sigma"], row["tiles"]) == ("ok", "tiny", 20, 1)
        assert None not in (row["decode_s"], row["infer_s"], row["encode_s"], row["worker"], row["finished_at"])
        if row["format"] in ("png", "tiff", "bmp"):  # the others' compression leaves less of the noise
            assert row["sigma_in_estimate"] == pytest.approx(20, rel=0.2)
        assert row["sigma_out_estimate"] is not None
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["config"]["sigma"] == 20
    assert manifest["summary"]["ok"] == 5
    assert manifest["model"]["sha256"] == denoiser.card.sha256
    ours = re.compile(r"denoising 5 pictures: starting Ray and the model|\d of 5 pictures, .* images/s, 0 failed.*")
    assert [line for line in done.stderr.splitlines() if not ours.fullmatch(line)] == [], "no chatter"
    assert not list(output.rglob("*.partial"))


@pytest.fixture
def good_and_bad(photographs: Path) -> Path:
    """A hundred good pictures beside every kind of bad file."""
    for index in range(95):
        (photographs / f"copy-{index}.png").hardlink_to(photographs / "a.png")
    whole = (photographs / "a.png").read_bytes()
    bad = {
        "empty.png": b"",
        "text.jpg": b"no picture at all",
        "truncated.png": whole[: len(whole) // 2],
        "corrupt.png": whole[:60] + bytes(40) + whole[100:],
        "bomb.png": _png_claiming(50_000, 50_000),
        "zero.png": _png_claiming(0, 10),
    }
    for name, content in bad.items():
        (photographs / name).write_bytes(content)
    return photographs


def _png_claiming(width: int, height: int) -> bytes:
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_bad_files_become_rows_and_the_rest_is_done(tmp_path: Path, good_and_bad: Path, tiny_bundle: Path) -> None:
    output = tmp_path / "out"

    done = run(good_and_bad, "--output", output, "--model", tiny_bundle, "--format", "png", "--actors", 1)

    assert done.returncode == 3, done.stderr
    rows = metrics(output)
    failed = {key: row["error_type"] for key, row in rows.items() if row["status"] == "error"}
    assert failed.keys() == {"empty.png", "text.jpg", "truncated.png", "corrupt.png", "bomb.png", "zero.png"}
    assert failed["empty.png"] == "empty"
    assert failed["text.jpg"] == "not_an_image"
    assert failed["bomb.png"] == "too_large"
    assert all(rows[key]["error_message"] and rows[key]["output_uri"] is None for key in failed)
    written = sorted(path.relative_to(output / "images").as_posix() for path in (output / "images").rglob("*.*"))
    assert len(written) == 100
    assert {"a.png", "b.png", "sub/c d.png", "sub/e.png", "sub/ü.png"} <= set(written)
    assert "106: 100 denoised, 6 failed" in done.stdout
    assert "failed: bomb.png: " in done.stdout
    assert "and 1 more" in done.stdout


TWO_GPUS = """
import json
import raydenoise.pipelines.session as session
ray_init = session.ray.init
session.ray.init = lambda **options: ray_init(**{{**options, "num_gpus": 2, "num_cpus": 4}})
session.tensorflow_gpus = lambda: 2
from raydenoise.config import DenoiseConfig
from raydenoise.pipelines import denoise
print(json.dumps(denoise.run(DenoiseConfig(input={input!r}, output={output!r}, model={model!r}, quiet=True))))
"""


def test_two_declared_gpus_get_an_actor_each(tmp_path: Path, photographs: Path, tiny_bundle: Path) -> None:
    """On a Ray that declares two GPUs, each of two actors sees one; the three-stage pipeline is what runs."""
    large = np.tile(decode((photographs / "a.png").read_bytes()).pixels, (25, 18, 1))
    PIL.Image.fromarray(large).save(photographs / "large.png")
    for index in range(15):  # work enough for the second actor to start before the first has done it all
        (photographs / f"large-{index}.png").hardlink_to(photographs / "large.png")
    script = TWO_GPUS.format(input=str(photographs), output=str(tmp_path / "out"), model=str(tiny_bundle))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] == 21
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["ray"]["plan"]["gpus"] == 1
    assert manifest["ray"]["plan"]["actors"] == 2
    workers = {row["worker"] for row in metrics(tmp_path / "out").values()}
    devices = sorted(worker.rsplit("/", 1)[1] for worker in workers)
    assert devices == ["gpu0", "gpu1"], "both actors worked, each with its own CUDA_VISIBLE_DEVICES"


def test_more_gpus_than_the_cluster_has_is_said_before_any_work(
    tmp_path: Path, photographs: Path, tiny_bundle: Path
) -> None:
    done = run(photographs, "--output", tmp_path / "out", "--model", tiny_bundle, "--gpus-per-actor", 8)
    assert done.returncode == 2
    assert "gpus_per_actor is 8; allowed: at most this machine's 0 GPUs" in done.stderr
    assert not (tmp_path / "out").exists()


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a job ask Ray for nothing before its pipeline."""
    plan = Plan(actors=1, initial=1, gpus=0.0, cpus=1, rows=1)
    fakes = {"session": nullcontext(), "tried": nullcontext(lambda: None), "check_shared": None, "make_plan": plan}
    for name, value in fakes.items():
        monkeypatch.setattr(denoise, name, lambda *_, value=value, **__: value)


@pytest.mark.parametrize("end", [LeaseLostError("another job took over"), KeyboardInterrupt(), None])
def test_a_job_that_another_one_took_over_leaves_the_run_of_that_alone(
    tmp_path: Path, photographs: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException | None
) -> None:
    out = Output(tmp_path / "out")
    others = {"kind": DENOISING_KIND, "status": "running", "config": {"sigma": 50.0}}

    def slept(job: Job, *_: object) -> None:
        """Meanwhile another job came with --overwrite --sigma 50."""
        storage.create(out.root / FOLDER / f"{job.commits.lease.number + 1:06d}.json", b"{}")
        storage.publish_json(out.manifest, others)
        storage.publish(out.scratch / ".its.partial", b"half a picture")
        if end:
            raise end

    without_ray(monkeypatch)
    monkeypatch.setattr(Job, "run", slept)
    config = DenoiseConfig(input=str(photographs), output=str(out.root), model=str(tiny_bundle), sigma=25.0, quiet=True)

    with pytest.raises(type(end or LeaseLostError())):
        denoise.run(config)

    assert json.loads(out.manifest.read_bytes()) == others
    assert storage.names(out.metrics) == []
    assert (out.scratch / ".its.partial").read_bytes() == b"half a picture"


def test_a_job_that_is_refused_does_not_let_one_go_on_that_stopped(
    tmp_path: Path, photographs: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Output(tmp_path / "out")
    config = DenoiseConfig(input=str(photographs), output=str(out.root), model=str(tiny_bundle), quiet=True)
    dead = Lease(out.root, 1, seconds=30)
    dead._stop.set()  # as a machine that sleeps
    content = json.loads((out.root / FOLDER / "000001.json").read_bytes())
    storage.publish_json(out.root / FOLDER / "000001.json", content | {"pid": 2**22 + 1})  # no process has this number
    stopped = Commits(out, dead)
    its_next = out.metrics / part_name(stopped.next())
    without_ray(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no shared folder")

    monkeypatch.setattr(denoise, "check_shared", refuse)
    with pytest.raises(ValueError, match="no shared folder"):
        denoise.run(config)

    monkeypatch.setattr(dead, "check", lambda: None)  # it was stopped just behind it
    with pytest.raises(LeaseLostError, match="took over"):
        stopped.create(its_next, METRICS.empty_table())

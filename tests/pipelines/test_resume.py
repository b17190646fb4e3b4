"""A job that is stopped, killed or hurt ends with one row and one whole picture for every input, as a calm one.

The installed command, a real local Ray, real files; a disk, and a bucket behind a real S3 endpoint.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydenoise.core.image import decode
from raydenoise.data import storage
from raydenoise.data.lease import held
from raydenoise.data.manifest import Output
from raydenoise.data.place import Place, place
from raydenoise.model.denoiser import Denoiser
from tests.flaky import TROUBLES, Flaky


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "raydenoise.cli", "denoise", *map(str, arguments), "--precision", "float32"]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def run(*arguments: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run `raydenoise denoise` with a private Ray."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env=environment(), check=False
    )


def rows(root: Place) -> dict[str, dict]:
    """The metrics of OUT by key; each key once."""
    table = storage.read_parquet(Output(root).metrics)
    found = {row["key"]: row for row in table.to_pylist()}
    assert len(found) == len(table), "one row per picture"
    return found


def pictures(root: Place) -> dict[str, bytes]:
    images = Output(root).images
    return {key: (images / key).read_bytes() for key in storage.walk(images)}


def many(folder: Path, count: int) -> Path:
    """So many copies of a picture, each its own name."""
    for index in range(count):
        shutil.copyfile(folder / "a.png", folder / f"copy-{index:03d}.png")
    return folder


def fill(there: Place, photographs: Path, model: Path) -> None:
    """Put pictures and a model into a bucket."""
    for part, folder in (("in", photographs), ("model", model)):
        for key in storage.walk(folder):
            storage.publish(there / part / key, (folder / key).read_bytes())


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 240) -> None:
    since = time.monotonic()
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - since < timeout, "nothing happened"
        time.sleep(0.1)


def kill_with_its_ray(process: subprocess.Popen[str]) -> None:
    """What a machine that vanishes does to a driver and its private Ray: all of it at once, SIGKILL."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in reversed(family):
        member.kill()
    process.communicate()


def is_actor(process: psutil.Process) -> bool:
    """Whether it is a denoising process that lives."""
    try:
        return "FusedActor" in " ".join(process.cmdline())
    except psutil.Error:  # it ended, or is not yet waited for
        return False


def test_the_same_command_does_only_what_is_missing(tmp_path: Path, photographs: Path, tiny_bundle: Path) -> None:
    (photographs / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = [photographs, "--output", out, "--model", tiny_bundle, "--json"]
    first = run(*arguments, "--allow-failed", 1)
    assert first.returncode == 0, first.stderr
    before = rows(out)
    (out / "images" / "a.png").unlink()
    shutil.copyfile(photographs / "b.jpg", photographs / "new.jpg")

    again = run(*arguments)

    assert again.returncode == 3, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["images"], summary["before"], summary["ok"], summary["failed"]) == (7, 5, 6, 1)
    after = rows(out)
    assert after.keys() == {*before, "new.jpg"}
    assert {key for key in before if after[key]["finished_at"] != before[key]["finished_at"]} == {"a.png"}
    assert pictures(out).keys() == after.keys() - {"bad.png"}
    assert not (out / ".partial").exists()

    refused = run(*arguments, "--sigma", 50)
    assert refused.returncode == 2
    assert "sigma was 'auto' and is 50.0; allowed: the same settings, another folder, or --overwrite" in refused.stderr


def test_a_listing_in_a_bucket_to_a_bucket(photographs: Path, tiny_bundle: Path, bucket: str) -> None:
    (photographs / "bad.png").write_bytes(b"no picture")
    there = place(bucket)
    fill(there, photographs, tiny_bundle)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"where": [f"{bucket}/in/{key}" for key in sorted(storage.walk(photographs))]}), sink)
    storage.publish(there / "list.parquet", sink.getvalue().to_pybytes())

    done = run(
        "--list", f"{bucket}/list.parquet", "--column", "where", "--output", f"{bucket}/out", "--model",
        f"{bucket}/model", "--sigma", 20, "--allow-failed", "all",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    prefix = f"{there.path}/in/"
    found = {key.removeprefix(prefix): row for key, row in rows(there / "out").items()}
    assert found.keys() == set(storage.walk(photographs))
    assert {key for key, row in found.items() if row["status"] != "ok"} == {"bad.png"}
    written = {key.removeprefix(prefix): data for key, data in pictures(there / "out").items()}
    denoiser = Denoiser.load(tiny_bundle, precision="float32")
    for key in ("a.png", "sub/ü.tif", "sub/e.bmp"):
        expected = denoiser(decode((photographs / key).read_bytes()).pixels, sigma=20)
        np.testing.assert_array_equal(decode(written[key]).pixels, expected)
    for key in storage.walk(there / "out"):
        assert b"a-secret-key" not in (there / "out" / key).read_bytes(), key
    assert "a-secret-key" not in done.stdout + done.stderr


@pytest.mark.slow
def test_failures_are_tried_again_and_a_run_is_overwritten_on_demand(
    tmp_path: Path, photographs: Path, tiny_bundle: Path
) -> None:
    (photographs / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = [photographs, "--output", out, "--model", tiny_bundle, "--json"]
    assert run(*arguments).returncode == 3
    shutil.copyfile(photographs / "a.png", photographs / "bad.png")  # it was mended
    assert run(*arguments).returncode == 3, "a failure is done, too"
    mended = run(*arguments, "--retry-failed")
    assert mended.returncode == 0, mended.stderr
    assert rows(out)["bad.png"]["status"] == "ok"
    anew = run(*arguments, "--sigma", 50, "--overwrite", "--limit", 2)
    assert anew.returncode == 0, anew.stderr
    assert pictures(out).keys() == rows(out).keys() == {"a.png", "b.jpg"}
    assert {row["sigma"] for row in rows(out).values()} == {50}


@pytest.mark.slow
def test_a_bucket_to_a_bucket(tmp_path: Path, photographs: Path, tiny_bundle: Path, bucket: str) -> None:
    (photographs / "bad.png").write_bytes(b"no picture")
    there = place(bucket)
    fill(there, photographs, tiny_bundle)
    listing = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": [f"{bucket}/in/{key}" for key in sorted(storage.walk(photographs))]}), listing)

    local = run(photographs, "--output", tmp_path / "out", "--model", tiny_bundle, "--reference", photographs)
    remote = run(
        f"{bucket}/in", "--output", f"{bucket}/out", "--model", f"{bucket}/model", "--reference", f"{bucket}/in"
    )
    listed = run("--list", listing, "--output", f"{bucket}/listed", "--model", f"{bucket}/model", "--limit", 6)

    for done in (local, remote, listed):
        assert done.returncode == 3, done.stderr
    expected = pictures(tmp_path / "out")
    assert len(expected) == 5
    assert pictures(there / "out") == expected
    prefix = f"{there.path}/in/"
    assert {key.removeprefix(prefix): data for key, data in pictures(there / "listed").items()} == expected
    timing = {"uri", "output_uri", "decode_s", "infer_s", "encode_s", "worker", "finished_at"}
    plain = [
        {key: {name: cell for name, cell in row.items() if name not in timing} for key, row in rows(root).items()}
        for root in (tmp_path / "out", there / "out")
    ]
    assert plain[0] == plain[1]
    again = run("--list", listing, "--output", f"{bucket}/listed", "--model", f"{bucket}/model", "--json")
    assert json.loads(again.stdout)["before"] == 6, again.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bucket_of_google_to_another(photographs: Path, tiny_bundle: Path, gs_bucket: str) -> None:
    (photographs / "bad.png").write_bytes(b"no picture")
    there = place(gs_bucket)
    fill(there, photographs, tiny_bundle)
    out = there / "out"
    arguments = [f"{gs_bucket}/in", "--output", out, "--model", f"{gs_bucket}/model", "--sigma", 20, "--json"]

    first = run(*arguments)

    assert first.returncode == 3, first.stderr
    found, written = rows(out), pictures(out)
    assert {key for key, row in found.items() if row["status"] != "ok"} == {"bad.png"}
    assert written.keys() == set(storage.walk(photographs)) - {"bad.png"}
    denoiser = Denoiser.load(tiny_bundle, precision="float32")
    for key in ("a.png", "sub/ü.tif", "sub/e.bmp"):
        expected = denoiser(decode((photographs / key).read_bytes()).pixels, sigma=20)
        np.testing.assert_array_equal(decode(written[key]).pixels, expected)

    with held(out):
        refused = run(*arguments)
    assert refused.returncode == 2
    assert f"output '{out}' is being written by process {os.getpid()} on " in refused.stderr

    again = run(*arguments)
    assert again.returncode == 3, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["images"], summary["before"], summary["failed"]) == (6, 6, 1)
    assert rows(out) == found
    assert pictures(out) == written
    assert not [key for key in storage.walk(out) if ".partial" in key]

    anew = run(*arguments, "--overwrite", "--limit", 1)
    assert anew.returncode == 0, anew.stderr
    assert pictures(out).keys() == rows(out).keys() == {"a.png"}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_killed_driver_costs_time_only(
    tmp_path: Path, photographs: Path, tiny_bundle: Path, where: str, request: pytest.FixtureRequest
) -> None:
    many(photographs, 60)
    (photographs / "bad.png").write_bytes(b"no picture")
    calm = run(photographs, "--output", tmp_path / "calm", "--model", tiny_bundle)
    assert calm.returncode == 3, calm.stderr
    root = place(tmp_path / "out" if where == "disk" else f"{request.getfixturevalue('bucket')}/out")
    arguments = [photographs, "--output", root, "--model", tiny_bundle, "--actors", 2]
    for enough in (1, 25):
        process = start(*arguments)
        wait_until(lambda enough=enough: len(list(storage.walk(Output(root).images))) >= enough, process)
        kill_with_its_ray(process)

    done = run(*arguments)

    assert done.returncode == 3, done.stderr
    assert rows(root).keys() == rows(tmp_path / "calm").keys()
    assert pictures(root) == pictures(tmp_path / "calm")
    assert not [key for key in storage.walk(root) if ".partial" in key]
    assert json.loads(Output(root).manifest.read_bytes())["status"] == "finished"


@pytest.mark.slow
def test_a_second_job_is_refused_and_killed_workers_cost_time_only(
    tmp_path: Path, photographs: Path, tiny_bundle: Path
) -> None:
    large = np.tile(decode((photographs / "a.png").read_bytes()).pixels, (25, 18, 1))  # a job of some seconds
    PIL.Image.fromarray(large).save(photographs / "a.png")
    many(photographs, 60)
    calm = run(photographs, "--output", tmp_path / "calm", "--model", tiny_bundle)
    assert calm.returncode == 0, calm.stderr
    out = tmp_path / "out"
    arguments = [photographs, "--output", out, "--model", tiny_bundle, "--actors", 2]
    process = start(*arguments)
    wait_until(lambda: (out / "images").is_dir(), process)

    second = run(*arguments)
    assert second.returncode == 2
    assert f"is being written by process {process.pid} on " in second.stderr

    killed = 0
    while process.poll() is None and killed < 3:
        actors = [child for child in psutil.Process(process.pid).children(recursive=True) if is_actor(child)]
        for actor in actors[:1]:
            actor.send_signal(signal.SIGKILL)
            killed += 1
        time.sleep(1)
    said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert killed
    assert rows(out).keys() == rows(tmp_path / "calm").keys()
    assert pictures(out) == pictures(tmp_path / "calm")


@pytest.mark.slow
def test_a_bucket_in_trouble_costs_time_only(
    tmp_path: Path, photographs: Path, tiny_bundle: Path, flaky_bucket: tuple[str, Flaky]
) -> None:
    many(photographs, 40)
    (photographs / "bad.png").write_bytes(b"no picture")
    calm = run(photographs, "--output", tmp_path / "calm", "--model", tiny_bundle, "--allow-failed", 1)
    assert calm.returncode == 0, calm.stderr
    bucket, flaky = flaky_bucket
    there = place(bucket)
    fill(there, photographs, tiny_bundle)
    arguments = [f"{bucket}/in", "--output", f"{bucket}/out", "--model", f"{bucket}/model", "--allow-failed", 1]

    flaky.share = 0.15
    done = run(*arguments)
    again = run(*arguments, "--json")
    flaky.share = 0

    assert done.returncode == 0, done.stderr
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["before"] == 46, "all was done at once"
    assert {method.removesuffix(" lease") for method, _ in flaky.met} >= {"GET", "PUT", "LIST", "DELETE"}
    assert any(method.endswith(" lease") for method, _ in flaky.met)
    assert {trouble for _, trouble in flaky.met} == set(TROUBLES)
    assert rows(there / "out").keys() == rows(tmp_path / "calm").keys()
    assert {key for key, row in rows(there / "out").items() if row["status"] != "ok"} == {"bad.png"}
    assert pictures(there / "out") == pictures(tmp_path / "calm")
    assert not [key for key in storage.walk(there / "out") if ".partial" in key]


HURTING = """
import os, sys, time
import raydenoise.pipelines.session as session
from raydenoise.config import DenoiseConfig
from raydenoise.pipelines import denoise

def hurt():  # in every worker: what a crash in a codec, and a stuck one, do to their process
    from raydenoise.pipelines import stages
    decode = stages.codec.decode
    def hurting(data, **options):
        if data.endswith(b"kills"):
            os.abort()
        if data.endswith(b"sleeps"):
            time.sleep(3600)
        return decode(data, **options)
    stages.codec.decode = hurting

ray_init = session.ray.init
session.ray.init = lambda **options: ray_init(**options, runtime_env={"worker_process_setup_hook": hurt})
source, output, model = sys.argv[1:]
config = DenoiseConfig(
    input=source, output=output, model=model, attempts=2, image_timeout=15, actors=1, quiet=True
)
denoise.run(config)
"""


@pytest.mark.slow
def test_pictures_that_kill_or_stall_their_process_become_rows(
    tmp_path: Path, photographs: Path, tiny_bundle: Path
) -> None:
    many(photographs, 20)
    whole = (photographs / "a.png").read_bytes()
    for number, hurts in ((7, b"kills"), (9, b"kills"), (13, b"sleeps")):
        (photographs / f"copy-{number:03d}.png").write_bytes(whole + hurts)
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", HURTING, photographs, out, tiny_bundle]
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=280, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert len(found) == 25
    failed = {key: row["error_type"] for key, row in found.items() if row["status"] == "error"}
    assert failed == {"copy-007.png": "process_died", "copy-009.png": "process_died", "copy-013.png": "timeout"}
    assert pictures(out).keys() == found.keys() - failed.keys()
    assert not (out / ".partial").exists()


HURTING_TOO = """
import os, sys
import raydenoise.pipelines.session as session
from raydenoise.config import EvaluateConfig, PrepareConfig
from raydenoise.pipelines import evaluate, prepare

def hurt():
    from raydenoise.pipelines import cutter, evaluator
    decode = cutter.decode
    def hurting(data, **options):
        if data.endswith(b"kills"):
            os.abort()
        return decode(data, **options)
    cutter.decode = evaluator.decode = hurting

ray_init = session.ray.init
session.ray.init = lambda **options: ray_init(**options, runtime_env={"worker_process_setup_hook": hurt})
verb, source, output = sys.argv[1:]
if verb == "prepare":
    prepare.run(PrepareConfig(input=(source,), output=output, patch=16, quiet=True))
else:
    evaluate.run(EvaluateConfig(input=source, output=output, models=("median",), sigma=(25.0,), actors=1, quiet=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["prepare", "evaluate"])
def test_pictures_that_kill_their_process_become_rows_of_other_verbs_too(
    tmp_path: Path, photographs: Path, verb: str
) -> None:
    many(photographs, 4)
    (photographs / "copy-002.png").write_bytes((photographs / "a.png").read_bytes() + b"kills")
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", HURTING_TOO, verb, str(photographs), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    if verb == "prepare":
        (failed,) = pq.read_table(out / "failures.parquet").to_pylist()
        assert json.loads((out / "manifest.json").read_text())["images"] == {"listed": 9, "failed": 1, "skipped": 0}
    else:
        found = pq.read_table(out / "results").to_pylist()
        (failed,) = (row for row in found if row["status"] == "error")
        assert len({row["key"] for row in found}) == 9
    assert (failed["key"], failed["error_type"]) == ("copy-002.png", "process_died")

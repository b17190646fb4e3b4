"""The job file as a cluster runs it: a real head node, a real `ray job submit`, with token authentication."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from raydenoise.config import DenoiseConfig, EvaluateConfig, PrepareConfig, TrainConfig, TuneConfig, parse
from raydenoise.config.space import Space

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 90.0  # ray start on two busy cores took 20-60 s

pytestmark = pytest.mark.timeout(280)  # the first test waits for the cluster too


@dataclass(frozen=True)
class Cluster:
    """A head node of this module's own: where its jobs go, with which environment, and its files."""

    url: str
    env: dict[str, str]
    folder: Path

    def submit(self, *arguments: str, verb: str = "denoise") -> subprocess.CompletedProcess[str]:
        """Run jobs/VERB.py as a job from the checkout and wait for its end."""
        command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--"]
        job = [sys.executable, f"jobs/{verb}.py", *arguments]
        env = {**self.env, "RAY_API_SERVER_ADDRESS": self.url}  # without it Ray looks on this machine, not at a tunnel
        return subprocess.run(command + job, env=env, capture_output=True, text=True, timeout=180, check=False)

    def uploads(self) -> list[set[str]]:
        """Name what lies in each working directory that a job brought along."""
        packages = self.folder.glob("session_2*/runtime_resources/working_dir_files/*/")
        return [{path.name for path in package.iterdir()} for package in packages]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        try:
            started = stack.enter_context(head_node())
        except NotStartedError:  # raylet registration gives up after 30 s on an overloaded machine
            started = stack.enter_context(head_node())
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that loads fast; its weights are untrained."""
    from raydenoise.model import bundle, networks

    folder = tmp_path_factory.mktemp("model") / "tiny"
    arguments: dict[str, Any] = {"filters": (8, 8), "depth": 1}
    network = networks.build("resunet", **arguments)
    bundle.save(
        network,
        folder,
        name="tiny",
        architecture="resunet",
        arguments=arguments,
        sigma_range=(0.0, 75.0),
        training={},
        scores={},
    )
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three noisy PNG pictures, one of them in a folder below."""
    rng = np.random.default_rng(0)
    for key in ("a.png", "b.png", "below/c.png"):
        path = tmp_path / "in" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(path)
    return tmp_path / "in"


def test_a_submitted_job_denoises_every_picture(cluster: Cluster, model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = cluster.submit(str(pictures), "--output", str(out), "--model", str(model), "--json")

    assert job.returncode == 0, job.stdout + job.stderr
    assert "' succeeded" in job.stdout
    assert summary(job.stdout)["ok"] == 3
    rows = pq.read_table(out / "metrics").to_pylist()
    assert sorted((row["key"], row["status"]) for row in rows) == [
        ("a.png", "ok"),
        ("b.png", "ok"),
        ("below/c.png", "ok"),
    ]
    for row in rows:
        with Image.open(out / "images" / row["key"]) as image:
            assert image.size == (48, 36)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["ray"]["address"] != "local"  # the cluster's own, not a private Ray inside it
    uploaded = [names for names in cluster.uploads() if "raydenoise" in names]
    assert uploaded
    assert not set().union(*uploaded) & {".git", ".venv", "runs", "demo", ".hypothesis"}  # what git ignores stays here


def test_a_submitted_job_evaluates_every_picture(cluster: Cluster, model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--output", str(out), "--models", f"{model},median", "--sigma", "25", "--json")
    job = cluster.submit(str(pictures), *options, verb="evaluate")

    assert job.returncode == 0, job.stdout + job.stderr
    assert summary(job.stdout)["ok"] == 3
    assert len(pq.read_table(out / "results")) == 3 * (1 + 2 * 2)
    assert (out / "summary.md").is_file()


def test_a_corrupt_picture_fails_the_job_with_status_3(
    cluster: Cluster, model: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "corrupt.png").write_bytes((pictures / "a.png").read_bytes()[:100])
    out = tmp_path / "out"
    job = cluster.submit(str(pictures), "--output", str(out), "--model", str(model), "--json")

    assert job.returncode == 1, job.stdout + job.stderr
    assert "' failed" in job.stdout
    assert "exit code 3" in job.stdout
    assert (summary(job.stdout)["ok"], summary(job.stdout)["failed"]) == (3, 1)
    rows = pq.read_table(out / "metrics").to_pylist()
    assert [row["key"] for row in rows if row["status"] == "error"] == ["corrupt.png"]
    assert (out / "images" / "below" / "c.png").is_file()


def test_a_submitted_job_needs_a_whole_path_to_write_to(cluster: Cluster, pictures: Path) -> None:
    job = cluster.submit(str(pictures), "--output", "clean")

    assert "exit code 2" in job.stdout, job.stdout + job.stderr
    assert "/clean' is in the copy of --working-dir that Ray unpacked for this job" in job.stdout


def test_a_wrong_token_is_refused(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        version(cluster.url, token="wrong")
    refused.value.close()


def test_the_example_config_holds_every_option_at_its_default() -> None:
    settings = parse(DenoiseConfig, ["--config", str(ROOT / "jobs" / "denoise.yaml")], prog="test", description="")
    assert settings == DenoiseConfig(input="/data/photos", output="/data/photos-denoised")
    written = yaml.safe_load((ROOT / "jobs" / "denoise.yaml").read_text())
    assert list(written) == [entry.name for entry in fields(DenoiseConfig)]


def test_the_example_config_of_prepare_holds_every_option_at_its_default() -> None:
    settings = parse(PrepareConfig, ["--config", str(ROOT / "jobs" / "prepare.yaml")], prog="test", description="")
    assert settings == PrepareConfig(input=("/data/photos",), output="/data/shards")
    written = yaml.safe_load((ROOT / "jobs" / "prepare.yaml").read_text())
    assert list(written) == [entry.name for entry in fields(PrepareConfig)]


def test_the_entry_point_of_prepare_reads_its_arguments() -> None:
    job = [sys.executable, str(ROOT / "jobs" / "prepare.py"), "gone", "--output", "out", "--patch", "0"]
    done = subprocess.run(job, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "raydenoise prepare: error: patch is 0; allowed: 1 or more" in done.stderr


def test_the_example_config_of_evaluate_holds_every_option_at_its_default() -> None:
    settings = parse(EvaluateConfig, ["--config", str(ROOT / "jobs" / "evaluate.yaml")], prog="test", description="")
    assert settings == EvaluateConfig(input="/data/photos", output="/data/evaluation")
    written = yaml.safe_load((ROOT / "jobs" / "evaluate.yaml").read_text())
    assert list(written) == [entry.name for entry in fields(EvaluateConfig)]


def test_the_entry_point_of_evaluate_reads_its_arguments() -> None:
    job = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "gone", "--output", "out", "--tta", "3"]
    done = subprocess.run(job, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "raydenoise evaluate: error: tta is 3; allowed: 1, 2, 4, 8" in done.stderr


def test_the_example_config_of_train_holds_every_option_at_its_default() -> None:
    settings = parse(TrainConfig, ["--config", str(ROOT / "jobs" / "train.yaml")], prog="test", description="")
    assert settings == TrainConfig(shards="/data/shards", output="/data/run")
    written = yaml.safe_load((ROOT / "jobs" / "train.yaml").read_text())
    assert list(written) == [entry.name for entry in fields(TrainConfig)]


def test_the_entry_point_of_train_reads_its_arguments() -> None:
    job = [sys.executable, str(ROOT / "jobs" / "train.py"), "gone", "--output", "out", "--workers", "0"]
    done = subprocess.run(job, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "raydenoise train: error: workers is 0; allowed: 1 or more" in done.stderr


def test_the_example_config_of_tune_holds_every_option_at_its_default() -> None:
    settings = parse(TuneConfig, ["--config", str(ROOT / "jobs" / "tune.yaml")], prog="test", description="")
    assert settings == TuneConfig(shards="/data/shards", space="jobs/space.yaml", output="/data/tuning")
    written = yaml.safe_load((ROOT / "jobs" / "tune.yaml").read_text())
    assert list(written) == [entry.name for entry in fields(TuneConfig)]


def test_the_example_space_makes_trainings() -> None:
    space = Space.read(ROOT / "jobs" / "space.yaml")
    for drawn in [*space.ends(), *space.draw(30, seed=0)]:
        assert TrainConfig(shards="s", output="o", steps=2000, **space.options(drawn)).warmup_steps == 100


def test_the_entry_point_of_tune_reads_its_arguments() -> None:
    job = [sys.executable, str(ROOT / "jobs" / "tune.py"), "gone", "--space", "s", "--output", "o", "--trials", "0"]
    done = subprocess.run(job, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "raydenoise tune: error: trials is 0; allowed: 1 or more" in done.stderr


class NotStartedError(RuntimeError):
    """`ray start` ended or took too long."""


@contextmanager
def head_node() -> Iterator[Cluster]:
    """Start a head node on free ports and stop it with all its processes.

    Raises:
        NotStartedError: it ended, or took longer than `START_SECONDS`.
    """
    folder = Path(tempfile.mkdtemp(prefix="rd", dir="/tmp"))  # pytest's own path is too long for Unix sockets
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"), RAY_USAGE_STATS_ENABLED="0")
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # else `ray start` waits 30 s for its idle workers when stopped
    port, dashboard, agent, client = free_ports(4)
    options = {
        "--port": port,
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--ray-client-server-port": client,
        "--num-cpus": 2,
        "--object-store-memory": 200_000_000,  # bytes; a few small pictures
        "--temp-dir": folder,
    }
    command = [RAY, "start", "--head", "--block", *(f"{name}={value}" for name, value in options.items())]
    with (folder / "log").open("w") as log:
        # A session of its own: killing its group reaches whatever `ray start` leaves behind.
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_until_up(process, url=url, token=token, log=folder / "log")
        yield Cluster(url, env, folder)
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_up(process: subprocess.Popen[bytes], *, url: str, token: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if "Ray runtime started" in log.read_text() and version(url, token=token):
                return
        except OSError:  # refused until the dashboard listens
            pass
        time.sleep(0.5)
    raise NotStartedError(log.read_text())


def version(url: str, *, token: str) -> dict[str, Any]:
    """Ask the job server for its version."""
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask `ray start --block` to end its processes; kill what is left of its group. Never `ray stop`: it ends all."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def summary(output: str) -> dict[str, Any]:
    """The job's JSON line among the lines of `ray job submit`."""
    line = next(line for line in output.splitlines() if line.startswith('{"output"'))
    return json.loads(line)

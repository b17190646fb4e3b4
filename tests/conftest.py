import json
import logging
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import PIL.Image
import pytest
from moto.server import ThreadedMotoServer

from tests.flaky import Flaky, served

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small noise-map network with random weights: fast, and it changes pixels."""
    from raydenoise.model import bundle, networks

    network = networks.build("resunet", filters=(8, 8), depth=1)
    rng = np.random.default_rng(0)
    for variable in network.model.weights:
        variable.assign(rng.normal(0, 0.02, variable.shape))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    bundle.save(
        network,
        folder,
        name="tiny",
        architecture="resunet",
        arguments={"filters": [8, 8], "depth": 1},
        sigma_range=(0.0, 75.0),
        training={},
        scores={},
    )
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of small noisy pictures of several formats, one below a sub-folder."""
    folder = tmp_path / "photographs"
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.jpg", "sub/c d.webp", "sub/ü.tif", "sub/e.bmp")):
        PIL.Image.fromarray(noisy_pixels(40 + index, 57, seed=index)).save(folder / name)
    return folder


def noisy_pixels(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A soft gradient with noise of sigma 20: (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    clean = np.stack([60 + 120 * y / height, 60 + 120 * x / width, np.full((height, width), 128.0)], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 20, clean.shape)
    return np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Leave the loggers that a job turns down as they were."""
    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.data")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 endpoint on loopback."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket, which this process and those that it starts reach by their environment."""
    return fresh_bucket(s3_endpoint, monkeypatch)


@pytest.fixture
def flaky_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Flaky]]:
    """The same at an endpoint that can have troubles."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with served() as (endpoint, flaky):
        yield fresh_bucket(endpoint, monkeypatch), flaky
    forget_clients()


def fresh_bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket and set the environment for it."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "an-access-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key",
        "AWS_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def gs_endpoint() -> Iterator[str]:
    """A Google Cloud Storage endpoint on loopback."""
    command = [sys.executable, str(Path(__file__).with_name("gcs_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@pytest.fixture
def gs_bucket(gs_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same of Google's kind."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gs_endpoint)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    forget_clients()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    body = json.dumps({"name": name}).encode()
    urllib.request.urlopen(
        urllib.request.Request(f"{gs_endpoint}/storage/v1/b", body, {"Content-Type": "application/json"})
    ).close()
    return f"gs://{name}"


def forget_clients() -> None:
    """Let the clients of buckets be made anew, from the environment as it is now."""
    from raydenoise.data import clients

    for made in (clients.filesystem, clients.store, clients.region, clients._check_google):
        made.cache_clear()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may look into, and a process that may not do so as root either."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    root = os.getuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    yield folder
    if root:
        os.setresuid(0, 0, 0)
    folder.chmod(0o700)

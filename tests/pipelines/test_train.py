"""Training on a real local Ray with real workers: what it leaves, and that no kill changes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import PIL.Image
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import skimage.data
from ray import cloudpickle

from raydenoise.config import TrainConfig
from raydenoise.data import storage
from raydenoise.data.lease import FOLDER, Claim, LeaseLostError, check_free, held, newest
from raydenoise.data.shards import HEAD, MANIFEST, Patch, read_manifest, write_shard
from raydenoise.data.storage import publish_json
from raydenoise.model import bundle, precision
from raydenoise.model.denoiser import Denoiser
from raydenoise.pipelines import checks, train
from raydenoise.pipelines.group import Resources, ask_precision
from raydenoise.training import state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")

SIDE = 64
PICTURES = {"train": ("astronaut", "coffee"), "validation": ("chelsea",), "test": ("rocket",)}
# The tiny network learns by Adam alone: all its kernels are thin.
TINY: dict[str, Any] = {
    "model_args": {"filters": (8, 8), "depth": 1},
    "patch": 32,
    "batch_size": 8,
    "steps": 40,
    "checkpoint_every": 10,
    "validate_every": 20,
    "warmup_steps": 5,
    "optimizer": "adam",
    "learning_rate": 3e-3,
    "ema": 0.9,
    "precision": "float32",
    "cpus_per_worker": 1.0,
    "quiet": True,
}


def write_shards(root: Path, *, paired: bool = False) -> Path:
    """What `raydenoise prepare` would leave of four photographs."""
    rng = np.random.default_rng(0)

    def patches(names: tuple[str, ...]) -> Iterator[Patch]:
        for name in names:
            picture = getattr(skimage.data, name)()
            for y in range(0, picture.shape[0] - SIDE + 1, SIDE):
                for x in range(0, picture.shape[1] - SIDE + 1, SIDE):
                    clean = np.ascontiguousarray(picture[y : y + SIDE, x : x + SIDE])
                    noisy = np.clip(np.rint(clean + rng.normal(0, 20, clean.shape)), 0, 255).astype(np.uint8)
                    yield Patch(name, name, y, x, clean, noisy if paired else None)

    splits = {}
    for split, names in PICTURES.items():
        file = write_shard(root / split / "part-00000.parquet", patches(names), split=split)
        listed = {"name": f"{split}/part-00000.parquet", "rows": file.rows, "bytes": file.bytes}
        splits[split] = {"files": [listed]}
    facts = {"patch": SIDE, "paired": paired, "dtypes": ["uint8"], "channels": [3], "seed": 0}
    publish_json(root / MANIFEST, {**HEAD, "status": "finished", **facts, "splits": splits})
    assert read_manifest(root).rows("train") > 100
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray with three CPUs for most of the module: each start takes 10 s."""
    ray.init(
        address="local", num_cpus=3, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def run(local_ray: None, shards: Path) -> Iterator[Callable[..., dict[str, Any]]]:  # noqa: ARG001
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "session", lambda *_, **__: nullcontext())
        patch.delenv("RAY_ADDRESS", raising=False)
        yield lambda output, **options: train.run(
            TrainConfig(**{"shards": str(shards), "output": str(output), **TINY, **options})
        )


@pytest.fixture(scope="module")
def undisturbed(run: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(folder, workers=2)
    return folder


def arrays(folder: Path) -> list[np.ndarray]:
    """Averaged weights, weights and optimizer state of a run's last checkpoint; the best one may lie beside it."""
    last: dict[int, list[np.ndarray]] = {}
    for file in folder.glob(f"checkpoints/*/{state.FILE}"):
        with np.load(file) as content:
            step = json.loads(str(content[state.FACTS]))["step"]
            last[step] = [content[name] for name in sorted(content.files) if name != state.FACTS]
    assert max(last) == json.loads((folder / "manifest.json").read_text())["recipe"]["steps"]
    return last[max(last)]


def paired_arrays(one: Path, other: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = list(zip(arrays(one), arrays(other), strict=True))
    assert len(pairs) > 20
    return pairs


def assert_same_bits(one: Path, other: Path) -> None:
    for left, right in paired_arrays(one, other):
        np.testing.assert_array_equal(left, right)


def test_one_job_at_a_time_trains_a_run(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, written = tmp_path / "run", "is being written by process"
    with held(root), pytest.raises(ValueError, match=written):
        run(root)

    def look(*_: Any) -> Any:
        with pytest.raises(ValueError, match=written):
            check_free(root)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", look)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    with held(root), pytest.raises(ValueError, match=written):
        run(root, resume=True)

    def taken(*_: Any) -> Any:
        assert json.loads((root / "manifest.json").read_text())["status"] == "running"
        number, _ = newest(root)
        storage.create(root / FOLDER / f"{number + 1:06d}.json", b"{}")
        return None, {}

    monkeypatch.setattr(train, "fit", taken)
    monkeypatch.setattr(train, "session", lambda *_, gpus, **__: nullcontext(declared.append(gpus)))
    declared: list[float | None] = []
    with pytest.raises(LeaseLostError, match="took over"):
        run(root, resume=True, gpus_per_worker=0.0)
    assert declared == [0.0]
    assert json.loads((root / "manifest.json").read_text())["status"] == "running", "that is the other job's now"
    assert not (root / "bundle").exists()


def take_over(root: Path, *, step: int, done: threading.Event) -> list[str]:
    """Take a run's lease soon after the rows of a step, and remove its checkpoints; tells what rows there are then."""
    while not done.wait(0.01):
        if (root / "metrics" / f"step-{step:09d}.parquet").exists():
            number, _ = newest(root)
            storage.create(root / FOLDER / f"{number + 1:06d}.json", b"{}")
            for checkpoint in (root / train.CHECKPOINTS).glob("checkpoint_*/"):
                shutil.rmtree(checkpoint)
            return storage.names(root / "metrics")
    return []


@pytest.mark.slow
def test_a_run_that_another_job_took_over_ends_at_its_next_checkpoint(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    root, done = tmp_path / "run", threading.Event()
    with ThreadPoolExecutor(1) as pool:
        thief = pool.submit(take_over, root, step=20, done=done)
        try:
            with pytest.raises(LeaseLostError, match="took over"):
                run(root, steps=2000, workers=2)
        finally:
            done.set()
    written = storage.names(root / "metrics")
    assert len(written) < 100
    assert written[: len(thief.result())] == thief.result()
    assert len(written) <= len(thief.result()) + 1, "one whose look had come before"
    assert json.loads((root / "manifest.json").read_text())["status"] == "running"


def test_a_group_that_begins_in_another_jobs_run_changes_nothing(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, fit = tmp_path / "run", train.fit
    older = Claim(root / FOLDER, 0)
    monkeypatch.setattr(train, "fit", lambda config, task, given: fit(config, replace(task, claim=older), given))
    with pytest.raises(LeaseLostError, match="took over"):
        run(root)
    assert storage.names(root / "metrics") == []
    assert not list((root / train.CHECKPOINTS).glob("checkpoint_*/"))


def test_a_run_leaves_a_bundle_a_log_and_a_curve(undisturbed: Path) -> None:
    card = bundle.load(undisturbed / "bundle").card
    assert (card.name, card.architecture, card.noise_map) == ("undisturbed", "resunet", True)
    assert card.training["command"].startswith(
        "raydenoise train $SHARDS --output $RUN --model-args filters=8,8 depth=1"
    )
    assert (card.training["patches"], card.training["workers"]) == (read_manifest_rows(undisturbed), 2)
    for split in ("validation", "test"):
        scores = card.scores[split]
        assert scores["psnr_noisy_25"] == pytest.approx(20.4, abs=0.5)
        assert scores["psnr_denoised_25"] > scores["psnr_noisy_25"] + 0.2
    rows = pq.read_table(undisturbed / "metrics").sort_by("step").to_pylist()
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert [row["psnr"] is not None for row in rows] == [False, True, False, True]
    assert rows[-1]["loss"] < rows[0]["loss"]
    with PIL.Image.open(undisturbed / "learning-curve.png") as curve:
        assert min(curve.size) > 500
    assert list((undisturbed / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((undisturbed / "manifest.json").read_text())["status"] == "finished"
    picture = skimage.data.coffee()[:50, :70]
    assert Denoiser.load(undisturbed / "bundle")(picture).shape == picture.shape


def read_manifest_rows(folder: Path) -> int:
    files = json.loads((folder / "manifest.json").read_text())["shards"]["files"]["train"]
    return sum(rows for _, rows, _ in files)


def test_one_worker_trains_what_two_do(run: Callable[..., dict[str, Any]], undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path / "alone", workers=1)
    # A sum rounded otherwise turns a ReLU, and Adam what follows: up to 0.02 with oneDNN held to SSE4.1, AVX2 and
    # AVX-512. A gradient a tenth too large is 0.19 apart, workers that do not add up their gradients 0.9.
    for one, two in paired_arrays(tmp_path / "alone", undisturbed):
        assert np.linalg.norm(one - two) <= 0.05 * np.linalg.norm(two)


def seen_by_a_worker() -> str:
    """Begin as Ray Train's worker does, and tell the GPUs that TensorFlow would find."""
    worker = ModuleType("raydenoise.pipelines.worker")
    worker.__dict__["work"] = lambda *_: None
    sys.modules[worker.__name__] = worker
    train.work({"task": None, "board": None})
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_a_worker_without_a_gpu_hides_those_of_its_machine(local_ray: None) -> None:  # noqa: ARG001
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
    try:
        machine = {"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1"}}
        begin = ray.remote(num_cpus=1, num_gpus=0, max_calls=1, runtime_env=machine)(seen_by_a_worker)
        assert ray.get(begin.remote()) == "-1"
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_process_with_a_workers_resources_tells_the_precision(
    local_ray: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = precision.resolve("auto")
    monkeypatch.setattr(precision, "resolve", lambda *_, **__: "the driver's")
    assert ask_precision(Resources(cpus=1, gpus=0, threads=1, read_cpus=0.5), quiet=True) == expected


def kill_a_worker(run_folder: Path, *, step: int, done: threading.Event) -> None:
    """SIGKILL one Ray Train worker of ours soon after the run's checkpoint of a step."""
    while not done.wait(0.05):
        if (run_folder / "metrics" / f"step-{step:09d}.parquet").exists():
            workers = train_workers()
            if workers:
                workers[-1].kill()
                done.set()


def train_workers() -> list[psutil.Process]:
    """Those of this process's own Ray: others on the machine may run tests or benchmarks as well."""
    return [child for child in psutil.Process().children(recursive=True) if is_train_worker(child)]


def is_train_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False


def test_only_workers_of_this_test_are_killed() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)", "RayTrainWorker"]
    # A parent that ends at once leaves its child to the machine; -3 is subprocess.DEVNULL.
    start = f"import subprocess; print(subprocess.Popen({sleep!r}, stdout=-3, stderr=-3).pid)"
    answer = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=60, check=True)
    stranger = psutil.Process(int(answer.stdout))
    with subprocess.Popen(sleep) as ours:
        try:
            assert is_train_worker(stranger)
            found = train_workers()
            assert ours.pid in [one.pid for one in found]
            assert stranger not in found
        finally:
            ours.kill()
            stranger.kill()


def test_a_killed_worker_costs_time_only(run: Callable[..., dict[str, Any]], undisturbed: Path, tmp_path: Path) -> None:
    done = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "run",), kwargs={"step": 20, "done": done})
    killer.start()
    try:
        run(tmp_path / "run", workers=2)
        assert done.is_set(), "no worker was killed"
    finally:
        done.set()
        killer.join()
    assert_same_bits(tmp_path / "run", undisturbed)
    rows = pq.read_table(tmp_path / "run" / "metrics").sort_by("step").to_pylist()
    assert [row["step"] for row in rows] == [10, 20, 30, 40]


def kill_in_a_collective(run_folder: Path, *, step: int, done: threading.Event) -> bool:
    """Stop one of two workers between two checkpoints, so that the other one waits in the sum of the gradients; then
    SIGKILL it there. False if the run was over before."""
    while not done.wait(0.05):
        workers = train_workers()  # those of an earlier training may still be ending
        if len(workers) == 2 and (run_folder / "metrics" / f"step-{step:09d}.parquet").exists():
            time.sleep(0.3)  # behind the checkpoint, where workers wait for one another too
            stopped, waiting = workers
            stopped.suspend()
            # Many steps long: the other one waits within one of them. TensorFlow gives a silent worker up after 10 s.
            done.wait(3)
            stopped.kill()
            killed = time.monotonic()
            waiting.wait(60)  # seconds, not the minutes of a health check or a lost connection's timeout
            assert time.monotonic() - killed < 60
            return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_killed_while_the_other_waits_in_a_collective_costs_time_only(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    # Steps of some milliseconds: seconds between two checkpoints, on a fast machine too.
    options = {"workers": 2, "steps": 900, "checkpoint_every": 300, "validate_every": 900}
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill_in_a_collective, tmp_path / "run", step=300, done=done)
        try:
            run(tmp_path / "run", **options)
        finally:
            done.set()
        assert killer.result(), "no worker was killed"
    run(tmp_path / "calm", **options)
    assert_same_bits(tmp_path / "run", tmp_path / "calm")
    steps = pq.read_table(tmp_path / "run" / "metrics").sort_by("step")["step"].to_pylist()
    assert steps == list(range(20, 901, 20))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    options = {"learning_rate": 0.3, "warmup_steps": 40, "clip_norm": 0.0, "schedule": "constant", "loss": "mse"}
    with pytest.raises(RuntimeError, match=r"became (nan|inf).* the last good checkpoint is kept in .* may help"):
        run(tmp_path / "run", **options, steps=100, validate_every=100)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "broken"
    found = [state._read(path.parent) for path in (tmp_path / "run").rglob(state.FILE)]
    assert found
    for kept, facts in found:
        assert 10 <= facts.step < 100
        assert all(np.isfinite(values).all() for values in kept)


def test_the_notebooks_autoencoder_leaves_its_h5(
    run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "autoencoder", "model_args": {}, "loss": "mse", "learning_rate": 1e-3, "quiet": False}
    run(tmp_path / "run", **options, steps=4, checkpoint_every=4, validate_every=4)
    short, first, *_, last = capsys.readouterr().err.splitlines()
    assert short.startswith("only 4 steps: the learning rate is reached after 5 steps (--warmup-steps) and ")
    assert first == "training for 4 steps: starting Ray and the workers"
    assert last == "measuring the best checkpoint on the validation and test patches"
    model = keras.models.load_model(tmp_path / "run" / "autoencoder.h5", compile=False)
    assert model.input_shape == (None, 256, 256, 3)
    trained = bundle.load(tmp_path / "run" / "bundle").model
    for one, other in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pairs_fine_tune_a_bundle_with_its_encoder_frozen(
    run: Callable[..., dict[str, Any]], tiny_bundle: Path, tmp_path: Path
) -> None:
    pairs = write_shards(tmp_path / "pairs", paired=True)
    options = {"shards": str(pairs), "init": str(tiny_bundle), "model_args": {}, "freeze_encoder": True, "steps": 20}
    summary = run(tmp_path / "run", **options)
    assert summary["validation"]["psnr_denoised"] > summary["validation"]["psnr_noisy"] - 3
    before, after = (bundle.load(folder).model.get_weights() for folder in (tiny_bundle, tmp_path / "run" / "bundle"))
    moved = [bool((one != other).any()) for one, other in zip(before, after, strict=True)]
    assert not moved[0]
    assert any(moved)
    assert not all(moved)
    again = TrainConfig(
        **{"shards": str(pairs), "output": "again", **TINY, "model_args": {}, "init": str(tmp_path / "run" / "bundle")}
    )
    thawed = checks.begin(again, read_manifest(pairs)).model
    assert len(thawed.trainable_weights) == len(thawed.weights), "it was frozen in that training alone"
    card = bundle.load(tmp_path / "run" / "bundle").card
    assert card.scores["test"]["psnr_denoised"] > card.scores["test"]["psnr_init"]  # of weights that were random
    assert card.training["recipe"]["noise"] == "paired"
    assert card.training["init"] == str(tiny_bundle)


@pytest.mark.slow
def test_a_worker_that_fails_by_itself_ends_the_run(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (part,) = (write_shards(tmp_path / "shards") / "train").glob("*.parquet")
    content = part.read_bytes()

    def garble(*_: object) -> None:
        part.write_bytes(content[:4] + bytes(len(content) - 4000) + content[-3996:])  # the footer stays

    with pytest.MonkeyPatch.context() as patch:
        checked = train.begin
        patch.setattr(train, "begin", lambda *given: (checked(*given), garble())[0])
        with pytest.raises(RuntimeError, match="a worker failed 2 times at the same place: "):
            run(tmp_path / "run", shards=str(tmp_path / "shards"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_with_resume(shards: Path, tmp_path: Path) -> None:
    flags = [
        *("--model-args", "filters=8,8", "depth=1", "--patch", "32", "--batch-size", "8", "--steps", "400"),
        *("--checkpoint-every", "40", "--validate-every", "200", "--warmup-steps", "5", "--optimizer", "adam"),
        *("--learning-rate", "3e-3", "--ema", "0.9", "--precision", "float32", "--quiet"),
    ]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}

    def command(folder: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "raydenoise.cli", "train", str(shards), "--output", str(folder), *flags, *more]

    process = subprocess.Popen(command(tmp_path / "killed"), env=env, start_new_session=True)
    first = tmp_path / "killed" / "metrics" / "step-000000040.parquet"
    end = time.monotonic() + 150
    while not first.exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)  # in mid-epoch
    assert process.poll() is None, "the run was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = json.loads((tmp_path / "killed" / "manifest.json").read_text())
    assert before["status"] == "running"

    refused = subprocess.run(
        command(tmp_path / "killed"), env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert refused.returncode == 2
    assert "--resume to go on with a run" in refused.stderr
    subprocess.run(command(tmp_path / "killed", "--resume"), env=env, timeout=200, check=True)
    subprocess.run(command(tmp_path / "whole"), env=env, timeout=200, check=True)
    assert_same_bits(tmp_path / "killed", tmp_path / "whole")
    steps = pq.read_table(tmp_path / "killed" / "metrics").sort_by("step")["step"].to_pylist()
    assert steps == pq.read_table(tmp_path / "whole" / "metrics").sort_by("step")["step"].to_pylist()
    assert len(set(steps)) == len(steps)


DECLARED = """
import sys
from raydenoise.config import TrainConfig, parse
from raydenoise.pipelines import session, train
ray_init = session.ray.init
session.ray.init = lambda **options: ray_init(**{**options, "num_gpus": 2})
session.tensorflow_gpus = lambda: 2
train.run(parse(TrainConfig, sys.argv[1:], prog="", description=""))
"""


@pytest.mark.slow
def test_two_declared_gpus_make_two_workers_with_one_each(shards: Path, tmp_path: Path) -> None:
    flags = ["--model-args", "filters=8,8", "depth=1", "--patch", "32", "--batch-size", "8", "--steps", "2", "--quiet"]
    command = [sys.executable, "-c", DECLARED, str(shards), "--output", str(tmp_path / "run"), "--workers", "2", *flags]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["resources"]["gpus"] == 1
    assert {name.split("/gpu")[1] for name in manifest["workers"].values()} == {"0", "1"}

"""A tuning on a real local Ray with real trainings: what it leaves, and that no trial is trained twice."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray._private.services import find_gcs_addresses

from raydenoise import cli, tuning
from raydenoise.config import TrainConfig, TuneConfig, parse
from raydenoise.config.space import Space
from raydenoise.data import storage
from raydenoise.data.lease import FOLDER, Claim, LeaseLostError, check_free, held
from raydenoise.data.shards import read_manifest
from raydenoise.pipelines import group, train, tune
from raydenoise.pipelines.combinations import check
from raydenoise.pipelines.session import NodeType, dashboard_options
from tests.pipelines.test_train import write_shards

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")

FIXED = """
model_args: {filters: [8, 8], depth: 1}
optimizer: adam
patch: 32
batch_size: 8
ema: 0.9
warmup_steps: 2
schedule: constant
clip_norm: 0.0
precision: float32
"""
# It learns; it stands still; it explodes.
RATES = "learning_rate: {choice: [5.0e-3, 1.0e-7, 1.0e18]}\n"

RESOURCES = group.Resources(1.0, 0.0, 1, 0.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def config(folder: Path, shards: Path, *, text: str = RATES + FIXED, **options: Any) -> TuneConfig:
    """A tuning whose space stands in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(text)
    given = {"trials": 3, "steps": 80, "validate_every": 10, "quiet": True, **options}
    return TuneConfig(shards=str(shards), space=str(folder / "space.yaml"), output=str(folder / "TUNE"), **given)


def good_one_first(path: Path) -> int:
    """A seed that draws the rate that learns, then the one that stands still."""
    space = Space.read(path)
    wanted = [5e-3, 1e-7, 1e18]
    return next(s for s in range(100) if [one["learning_rate"] for one in space.draw(3, seed=s)] == wanted)


@pytest.mark.slow
def test_a_tuning_leaves_a_table_a_plot_and_a_config_that_trains(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = config(tmp_path / "work", shards, grace=0.1, reduction=2.0)
    settings = replace(settings, seed=good_one_first(Path(settings.space)))
    ray.init(address="local", num_cpus=4, num_gpus=0, log_to_driver=False, logging_level="ERROR", **dashboard_options())
    try:
        for module in (train, tune):
            monkeypatch.setattr(module, "session", lambda *_, **__: nullcontext())
        summary = tune.run(settings)
        root = Path(settings.output)
        assert check_free(root) == 1
        given = ["--config", str(root / "best.yaml"), "--steps", "4", "--quiet", str(shards)]
        trained = train.run(parse(TrainConfig, given, prog="", description=""))
    finally:
        ray.shutdown()

    assert (summary["finished"], summary["stopped"], summary["failed"]) == (1, 1, 1)
    assert summary["best"]["learning_rate"] == 5e-3
    table = pq.read_table(root / "trials.parquet").to_pylist()
    assert [row["status"] for row in table] == ["finished", "stopped", "error"]
    assert table[0]["steps"] == 80
    assert table[1]["steps"] < 80
    assert table[0]["psnr"] > table[1]["psnr"]
    assert "the loss became " in table[2]["error"]
    assert (root / "trials.md").read_text().count("\n") == 5
    assert (root / "tune.png").stat().st_size > 10_000
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert not list(root.glob("runs/*/checkpoints"))
    assert trained["steps"] == 4
    assert (root / "best" / "bundle" / "card.json").is_file()
    with pytest.raises(ValueError, match=r"holds a finished tuning; allowed: one that was stopped$"):
        tune.run(replace(settings, resume=True))


ANOTHER_RAY = """
import sys
import ray
ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_ray() -> Iterator[str]:
    """The address of a Ray on this machine that has nothing to do with the test's own."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # a short path: of sockets
        command = [sys.executable, "-c", ANOTHER_RAY, folder]
        env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "the other Ray did not start"
            yield address
            process.communicate(timeout=60)  # it ends where its input ends


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_trial_gives_its_cpus_back_beside_another_ray(shards: Path, tmp_path: Path, another_ray: str) -> None:
    settings = config(tmp_path / "work", shards)
    seed = good_one_first(Path(settings.space))
    flags = ["--space", settings.space, "--output", settings.output, "--trials", "3", "--seed", str(seed)]
    flags += ["--grace", "0.1", "--reduction", "2", "--steps", "40", "--validate-every", "4", "--quiet"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}

    process = subprocess.Popen(
        [sys.executable, "-m", "raydenoise.cli", "tune", str(shards), *flags], env=env, start_new_session=True
    )
    try:
        status = process.wait(timeout=600)
    finally:
        process.terminate()
        process.wait(timeout=60)
    find_gcs_addresses.cache_clear()
    assert another_ray in find_gcs_addresses(), "the other Ray must have been there all the time"
    assert status == cli.SOME_FAILED
    table = pq.read_table(Path(settings.output) / "trials.parquet").to_pylist()
    assert [row["status"] for row in table] == ["finished", "stopped", "error"]  # the third one got the second's CPUs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_tuning_goes_on_and_trains_no_trial_twice(shards: Path, tmp_path: Path) -> None:
    text = "learning_rate: {choice: [5.0e-3, 3.0e-3, 2.0e-3]}\n" + FIXED
    settings = config(tmp_path / "work", shards, text=text)
    flags = ["--space", settings.space, "--output", settings.output, "--trials", "3", "--scheduler", "none"]
    flags += ["--steps", "60", "--validate-every", "20", "--quiet"]
    command = [sys.executable, "-m", "raydenoise.cli", "tune", str(shards), *flags]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    root = Path(settings.output)

    process = subprocess.Popen(command, env=env, start_new_session=True)
    end = time.monotonic() + 200
    while not tuning.ended(root, 0) and time.monotonic() < end:
        time.sleep(0.1)
    assert process.poll() is None, "the tuning was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(5)  # its Ray ends with it
    before = written(root, 0)
    assert before
    assert not (root / "trials.parquet").exists()

    refused = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    assert "or --resume to go on with a tuning" in refused.stderr
    subprocess.run([*command, "--resume"], env=env, timeout=300, check=True)
    assert written(root, 0) == before
    table = pq.read_table(root / "trials.parquet").to_pylist()
    assert [(row["status"], row["steps"]) for row in table] == [("finished", 60)] * 3
    for number in range(3):
        steps = [path.name for path in sorted((tuning.run_folder(root, number) / "metrics").iterdir())]
        assert steps == [f"step-{step:09d}.parquet" for step in (20, 40, 60)]


def written(root: Path, number: int) -> dict[str, int]:
    """When each file of a trial's log was written."""
    folder = tuning.run_folder(root, number)
    files = [*folder.glob("metrics/*"), folder / tuning.OUTCOME]
    return {path.name: path.stat().st_mtime_ns for path in files}


# what is refused before any Ray


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "loss: {choice: [l1, l2]}\n",
            r"combination of the space, loss l2: loss is 'l2'; allowed: l1, mse, charbonnier, psnr$",
        ),
        ("batch_size: {choice: [8, 7]}\n", r"batch_size 7: batch_size is 7 for 2 workers; allowed: a multiple"),
        ("batch_size: {choice: [8, 100000]}\n", r"batch_size 100000: "),
        ("patch: {choice: [32, 30]}\n", r"patch 30: patch is 30; allowed: a multiple of 4, the network's alignment$"),
        (
            "model_args: {dept: {choice: [1, 2]}}\n",
            r"model_args of resunet: dept is unknown; did you mean depth\?$",
        ),
        ("model_args: {depth: {choice: [1, 0]}}\n", r"model_args.depth 0: filters are .*, depth is 0; allowed: "),
        ("noise: {choice: [awgn, paired]}\n", r"noise paired: noise is paired, and the shards hold clean patches"),
        (
            "warmup_steps: {choice: [5, 80]}\n",
            r"warmup_steps 80: warmup_steps is 80 of 80 steps, so that the learning rate would never be reached; ",
        ),
        ("learning_rate: {uniform: [-1, 1]}\n", r"learning_rate -1: learning_rate is -1.0; allowed: above 0$"),
    ],
)
def test_a_combination_that_cannot_be_trained_is_refused(shards: Path, tmp_path: Path, text: str, message: str) -> None:
    fixed = "".join(line + "\n" for line in FIXED.strip().splitlines() if line.split(":")[0] != text.split(":")[0])
    settings = config(tmp_path / "work", shards, text=text + fixed, workers=2, trials=1)
    with pytest.raises(ValueError, match=message):
        tune.run(settings)
    assert not Path(settings.output).exists()


def test_an_output_in_a_bucket_is_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = replace(config(tmp_path / "work", shards), output="s3://bucket/tune")
    with pytest.raises(ValueError, match=r"^output is 's3://bucket/tune'; allowed: a local folder$"):
        tune.run(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_shards_without_validation_are_refused(shards: Path, tmp_path: Path) -> None:
    settings = config(tmp_path / "work", shards)
    found = read_manifest(shards)
    bare = replace(found, files={**found.files, "validation": ()})
    with pytest.raises(
        ValueError, match=r"hold no validation split, which trials are compared on; run raydenoise prepare"
    ):
        tune.check(settings, bare, Space.read(Path(settings.space)), [])


def test_a_tuning_is_resumed_with_the_same_space_alone(shards: Path, tmp_path: Path) -> None:
    settings = config(tmp_path / "work", shards)
    root = Path(settings.output)
    root.mkdir()
    (root / "manifest.json").write_text(json.dumps({"kind": tune.KIND, "status": "running", "drawing": []}))
    with pytest.raises(ValueError, match=r"holds a tuning with another drawing; allowed: the same as before$"):
        tune.run(replace(settings, resume=True))
    with pytest.raises(ValueError, match=r"already holds something .*; or --resume to go on with a tuning$"):
        tune.run(settings)


def test_one_job_at_a_time_writes_a_tuning(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "work", shards)
    with held(Path(settings.output)), pytest.raises(ValueError, match="is being written by process"):
        tune.run(settings)

    def taken(*_: Any, **__: Any) -> None:
        storage.create(Path(settings.output) / FOLDER / "000003.json", b"{}")

    declared: list[float | None] = []
    monkeypatch.setattr(tune, "session", lambda *_, gpus, **__: nullcontext(declared.append(gpus)))
    monkeypatch.setattr(tune, "check_shared", lambda *_, **__: None)
    monkeypatch.setattr(tune, "_plan", lambda *_, **__: RESOURCES)
    monkeypatch.setattr(tune, "search", taken)
    with pytest.raises(LeaseLostError, match="took over"):
        tune.run(replace(settings, concurrent=1, gpus_per_worker=0.0))
    assert declared == [0.0]
    assert json.loads((Path(settings.output) / "manifest.json").read_text())["status"] == "running"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_trial_that_another_job_took_over_is_not_noted(
    when: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "work"
    settings = config(root, shards)
    checked = check(settings, read_manifest(shards), Space.read(Path(settings.space)), [{"precision": "float32"}])
    job = tune.Job.of(root, [one.computed_in("float32") for one in checked], RESOURCES, claim=Claim(root / FOLDER, 1))
    trained = []

    def fit(*_: Any, **__: Any) -> None:
        trained.append(1)
        storage.create(root / FOLDER / "000002.json", b"{}")
        raise RuntimeError("a checkpoint that the other job removed")

    monkeypatch.setattr(tune, "fit", fit)
    monkeypatch.setattr(tune, "TuneReportCallback", list)  # Ray's wants a trial around it
    if when == "before":
        storage.create(root / FOLDER / "000002.json", b"{}")
    with pytest.raises(LeaseLostError, match="took over"):
        tune.trial({"trial": 0}, job=job)
    assert trained == ([] if when == "before" else [1])
    assert not tuning.ended(root, 0)


def test_trials_share_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: Path) -> None:
    monkeypatch.setattr(group.ray, "nodes", list)
    settings = config(tmp_path / "work", shards, concurrent=2)
    monkeypatch.setattr(tune.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr("raydenoise.pipelines.group.cores", lambda: 2)
    made = tune._plan(settings, concurrent=2, private=True)
    assert 2 * (made.cpus + made.read_cpus + tune.DRIVER_CPUS) <= 4
    assert made.cpus >= 0.9
    with pytest.raises(
        ValueError, match=r"^2 trials at once: workers is 2 with a GPU each; allowed: at most the 0 GPUs"
    ):
        tune._plan(replace(settings, gpus_per_worker=1.0), concurrent=2, private=True)


@pytest.mark.parametrize(
    ("private", "before", "expected"),
    [
        (True, None, "bfloat16"),
        (False, None, "float32"),
        (True, "float32", "float32"),
        (False, "bfloat16", "bfloat16"),
    ],
)
def test_trials_compute_as_their_workers_do_and_a_tuning_goes_on_so(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool, before: str | None, expected: str
) -> None:
    if private:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("raydenoise.model.precision.resolve", lambda *_, **__: "bfloat16")
    monkeypatch.setattr(tune, "ask_precision", lambda *_, **__: "float16")
    one = "precision: {choice: [auto, float32]}\n" + FIXED.replace("precision: float32\n", "")
    settings = config(tmp_path / "work", shards, text=one, resume=before is not None)
    root = Path(settings.output)
    storage.publish_json(root / "manifest.json", {"precision": before})
    space = Space.read(Path(settings.space))
    checked = check(settings, read_manifest(shards), space, [{"precision": "auto"}, {"precision": "float32"}])
    resources = group.Resources(cpus=1, gpus=0, threads=1, read_cpus=1)
    chosen = tune._precision(settings, root, checked, resources, private=private)
    assert [each.computed_in(chosen).ready.recipe.precision for each in checked] == [expected, "float32"]


@pytest.mark.parametrize(
    ("up", "launched", "gpus", "options", "expected"),
    [
        ([{"CPU": 8}], [], 0, {}, 1),
        ([], [NodeType({"CPU": 8}, 3), NodeType({"memory": 1}, 5)], 0, {}, 3),
        ([{"CPU": 8}, {"CPU": 8}, {"CPU": 0}], [NodeType({"CPU": 8}, 4)], 0, {}, 2),
        ([{"CPU": 0}], [NodeType({"CPU": 8}, 100)], 0, {"trials": 6}, 6),
        ([], [NodeType({"CPU": 8}, 4)], 0, {"workers": 2}, 2),
        ([], [NodeType({"CPU": 8, "GPU": 1}, 2), NodeType({"CPU": 8}, 4)], 2, {}, 2),
        ([], [NodeType({"CPU": 8, "GPU": 1}, 2), NodeType({"CPU": 8}, 4)], 2, {"gpus_per_worker": 0.0}, 6),
    ],
)
def test_as_many_trials_at_once_as_a_cluster_has_places_for(
    monkeypatch: pytest.MonkeyPatch,
    up: list[dict[str, float]],
    launched: list[NodeType],
    gpus: int,
    options: dict[str, Any],
    expected: int,
) -> None:
    monkeypatch.setattr(tune, "nodes_up", lambda: [NodeType(node, 1) for node in up])
    monkeypatch.setattr(tune, "node_types", lambda: launched)
    monkeypatch.setattr(tune, "possible_resources", lambda: {"GPU": gpus})
    config = TuneConfig(shards="s", space="space.yaml", output="t", **{"trials": 20, **options})
    assert tune._concurrent(config, private=False) == expected

"""What `raydenoise train` checks, records and reads, without a running Ray."""

import json
import re
import shlex
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tensorboardX.proto.event_pb2 import Event

from raydenoise.config import TrainConfig, parse
from raydenoise.core.noise import estimate_sigma
from raydenoise.data.schema import TRAINING
from raydenoise.data.shards import Patch, ShardSet, write_shard
from raydenoise.data.storage import publish_json
from raydenoise.model import bundle
from raydenoise.model.networks import Planes
from raydenoise.pipelines import checks, finish, group, train
from raydenoise.pipelines.runlog import EVENTS, METRICS, RunLog
from raydenoise.pipelines.samples import (
    CHUNK_STEPS,
    KEPT_BYTES,
    READ_BYTES,
    SAMPLES,
    Source,
    held_out,
    read_chunk,
    to_samples,
)
from raydenoise.pipelines.session import NodeType
from raydenoise.report.curves import learning_curve
from raydenoise.training.batches import Sample
from raydenoise.training.loop import Progress
from raydenoise.training.recipe import Recipe

SIDE = 24
TINY: dict[str, Any] = {"filters": (8, 8), "depth": 1}


def patch(number: int, *, channels: int = 3, dtype: str = "uint8", paired: bool = False, side: int = SIDE) -> Patch:
    """Its pixels tell row, column and number: of (side, side + 2), for no picture is square by law."""
    y, x = np.mgrid[:side, : side + 2]
    clean = np.stack([y, x, np.full_like(y, number)], axis=-1).astype(dtype)
    if channels == 1:
        clean = (clean[..., :1].astype(int) * 26 + clean[..., 1:2] + number).astype(dtype)
    return Patch("uri", f"{number}.png", 0, 0, clean, clean + np.array(100, dtype) if paired else None)


def shard_set(root: Path, *, validation: int = 0, test: int = 0, side: int = SIDE, **kind: Any) -> ShardSet:
    """Two files of 30 and 17 training patches in many row groups, and one each of the other splits."""
    parts = {"train": (range(30), range(30, 47)), "validation": (range(validation),), "test": (range(test),)}
    files: dict[Any, Any] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("raydenoise.data.shards.GROUP_BYTES", 8_000)
        for split, numbers in parts.items():
            files[split] = tuple(
                write_shard(root / f"{split}-{index}", (patch(n, side=side, **kind) for n in part), split=split)  # type: ignore[arg-type]
                for index, part in enumerate(numbers)
            )
    paired, dtype, channels = kind.get("paired", False), kind.get("dtype", "uint8"), kind.get("channels", 3)
    return ShardSet(root, side, paired, (dtype,), (channels,), 0, files)


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"shards": "s", "output": "run", "patch": 16, "batch_size": 4, "model_args": TINY, **options})


def begun(shards: ShardSet, **options: Any) -> bundle.Bundle:
    return checks.begin(config(**options), shards)


# begin


def test_a_run_begins_with_a_new_network_that_the_seed_determines(tmp_path: Path) -> None:
    shards = shard_set(tmp_path)
    first, again, other = (begun(shards, seed=seed) for seed in (0, 0, 1))
    assert (first.card.architecture, first.card.arguments) == ("resunet", TINY)
    weights = [started.model.get_weights()[0] for started in (first, again, other)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()


def test_a_run_begins_with_the_weights_of_a_bundle(tmp_path: Path, tiny_bundle: Path) -> None:
    started = begun(shard_set(tmp_path), init=str(tiny_bundle), model_args={}, freeze_encoder=True)
    for one, two in zip(started.model.get_weights(), bundle.load(tiny_bundle).model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert 0 < len(started.model.trainable_weights) < len(started.model.weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 28}, "patch is 28; allowed: at most 24, the side of the stored patches"),
        ({"patch": 18}, "patch is 18; allowed: a multiple of 4, the network's alignment"),
        ({"init": "nosuch", "model_args": {}}, "model 'nosuch' is not found; allowed: "),
        ({"model_args": {"kernel": 3}}, "model_args of resunet: kernel is unknown; allowed: filters, depth"),
        ({"model_args": {"width": 3}}, "model_args of resunet: width is unknown; did you mean depth?"),
        ({"model_args": {"filters": 8}}, "model_args do not fit resunet: "),
        ({"model_args": {"depth": 0}}, "filters are (64, 96), depth is 0; allowed: one level or more, depth 1 or"),
    ],
)
def test_what_a_run_cannot_begin_with_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        begun(shard_set(tmp_path), **options)


def test_a_network_without_an_encoder_cannot_have_it_frozen(tmp_path: Path) -> None:
    pixels = keras.Input((None, None, 3))
    keras.Model(pixels, keras.layers.Conv2D(3, 3, padding="same")(pixels)).save(tmp_path / "flat.keras")
    with pytest.raises(ValueError, match=r"^freeze_encoder: the network has no encoder; allowed: networks with an up-"):
        begun(shard_set(tmp_path / "s"), init=str(tmp_path / "flat.keras"), model_args={}, freeze_encoder=True)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_stored_patches_that_the_network_cannot_be_measured_on_are_refused(tmp_path: Path, split: str) -> None:
    message = (
        "^the stored patches, which the network is measured on, are 22 pixels; allowed: a multiple of 4, its alignment"
    )
    begun(shard_set(tmp_path / "train", side=22))
    with pytest.raises(ValueError, match=message):
        begun(shard_set(tmp_path / split, side=22, **{split: 1}))


def test_a_network_of_one_size_takes_patches_of_that_size_alone(tmp_path: Path) -> None:
    pixels = keras.Input((16, 16, 3))
    flat = keras.layers.Dense(16 * 16 * 3)(keras.layers.Flatten()(pixels))
    keras.Model(pixels, keras.layers.Reshape((16, 16, 3))(flat)).save(tmp_path / "fixed.keras")
    options: dict[str, Any] = {"init": str(tmp_path / "fixed.keras"), "model_args": {}}
    assert begun(shard_set(tmp_path / "a"), **options).card.fixed_size == 16
    with pytest.raises(ValueError, match=r"^patch is 8; allowed: 16, the network's input size$"):
        begun(shard_set(tmp_path / "b"), patch=8, **options)
    with pytest.raises(ValueError, match="are 24 pixels; allowed: 16, the network's input size; run raydenoise prep"):
        begun(shard_set(tmp_path / "c", validation=1), **options)
    assert begun(shard_set(tmp_path / "d", validation=1, side=16), **options).card.fixed_size == 16


def test_a_run_too_short_to_learn_says_why() -> None:
    assert checks.short_run(Recipe(steps=2_000)) is None
    assert checks.short_run(Recipe(steps=60, warmup_steps=10, ema=0.9)) is None
    message = "only 300 steps: the learning rate is reached after 300 steps (--warmup-steps)"
    assert checks.short_run(Recipe(steps=300, ema=0)) == f"{message}; docs/training.md, Short runs"
    message = "only 700 steps: the averaged weights are 50% those of the start (--ema)"
    assert checks.short_run(Recipe(steps=700)) == f"{message}; docs/training.md, Short runs"


def test_another_backend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    message = "KERAS_BACKEND is 'jax'; allowed: tensorflow; on one GPU with jax: python -m raydenoise.pipelines.single"
    with pytest.raises(ValueError, match=f"^{message}$"):
        begun(shard_set(tmp_path))


# recipe, fingerprint, resuming


def test_the_recipe_follows_shards_and_network(tmp_path: Path, tiny_bundle: Path) -> None:
    clean, pairs = shard_set(tmp_path / "clean"), shard_set(tmp_path / "pairs", paired=True)
    started = bundle.load(tiny_bundle)
    tuned = config(init=str(tiny_bundle), model_args={}, precision="float32")
    made = checks.make_recipe(tuned, clean, started, precision="bfloat16")
    assert (made.noise, made.precision) == ("awgn", "bfloat16")
    assert (made.architecture, made.arguments) == ("resunet", {"filters": [8, 8], "depth": 1})
    assert checks.make_recipe(tuned, pairs, started, precision="float32").noise == "paired"
    counted = replace(tuned, noise="poisson-gaussian")
    assert checks.make_recipe(counted, clean, started, precision="float32").noise == "poisson-gaussian"


@pytest.mark.parametrize("choice", ["float32", "float16", "bfloat16"])
def test_a_machine_that_is_fast_in_float16_trains_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setattr("raydenoise.model.precision.resolve", lambda *_, **__: choice)
    known = checks.known_precision(config(), tmp_path, private=True)
    assert known == checks.trained_in(choice) == ("bfloat16" if choice == "bfloat16" else "float32")


def test_only_a_private_ray_trains_on_what_the_driver_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {True: "float16", False: "bfloat16"}  # an old GPU beside a new processor
    monkeypatch.setattr("raydenoise.model.precision.resolve", lambda _, gpus=True: machine[gpus])
    assert checks.known_precision(config(), tmp_path, private=True) == "float32"
    assert checks.known_precision(config(gpus_per_worker=0.0), tmp_path, private=True) == "bfloat16"
    assert checks.known_precision(config(), tmp_path, private=False) is None
    assert checks.known_precision(config(precision="float32"), tmp_path, private=False) == "float32"


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("before", ["float32", "bfloat16"])
def test_a_run_goes_on_in_the_precision_that_it_began_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    private: bool,
) -> None:
    here = "bfloat16" if before == "float32" else "float32"
    monkeypatch.setattr("raydenoise.model.precision.resolve", lambda *_, **__: here)
    publish_json(tmp_path / "manifest.json", {"recipe": {"precision": before}})
    assert checks.known_precision(config(resume=True), tmp_path, private=private) == before
    assert checks.known_precision(config(resume=True, precision=here), tmp_path, private=private) == here
    assert checks.known_precision(config(), tmp_path, private=True) == here
    (tmp_path / "manifest.json").write_text("[]")
    assert checks.known_precision(config(resume=True), tmp_path, private=True) == here


@pytest.mark.parametrize(
    ("noise", "paired", "message"),
    [
        ("paired", False, "noise is paired, and the shards hold clean patches; allowed: leave it out"),
        ("awgn", True, "noise is awgn, and the shards hold pairs; allowed: leave it out"),
    ],
)
def test_noise_that_does_not_fit_the_shards_is_refused(
    tmp_path: Path, tiny_bundle: Path, noise: str, paired: bool, message: str
) -> None:
    shards = shard_set(tmp_path, paired=paired)
    with pytest.raises(ValueError, match=f"^{message}$"):
        checks.make_recipe(config(noise=noise), shards, bundle.load(tiny_bundle), precision="float32")


def test_a_batch_larger_than_the_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^batch_size is 48; allowed: at most the 47 training patches$"):
        Source.of(shard_set(tmp_path), batch_size=48, patch=16, seed=0, levels=None)


def test_the_fingerprint_changes_with_the_shards(tmp_path: Path) -> None:
    one, same, other = (shard_set(tmp_path, validation=n) for n in (2, 2, 3))
    assert checks.fingerprint(one) == checks.fingerprint(same) != checks.fingerprint(other)
    assert checks.fingerprint(one) == json.loads(json.dumps(checks.fingerprint(one)))
    assert checks.fingerprint(one)["files"]["train"][0][:2] == ["train-0", 30]


FACTS: dict[str, Any] = {
    "recipe": {"steps": 4, "seed": 0},
    "shards": {"patch": 24},
    "init": None,
    "freeze_encoder": False,
}


def test_a_new_run_takes_an_empty_folder_alone(tmp_path: Path) -> None:
    checks.open_run(config(), tmp_path / "new", FACTS)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"already holds something \(notes.txt\).*; or --resume to go on with a run$"):
        checks.open_run(config(), tmp_path, FACTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run to resume: .*No such file or directory.*; leave out --resume$"),
        ("{", "holds no run to resume: .*; leave out --resume$"),
        ("[]", "holds no run to resume: its manifest.json is of 'list', not of 'raydenoise training'$"),
        ('{"kind": "raydenoise shards"}', "its manifest.json is of 'raydenoise shards', not of 'raydenoise training'$"),
        ({"status": "finished"}, "holds a finished run; allowed: one that was stopped$"),
        ({"recipe": {"steps": 5, "seed": 1}}, r"with another recipe \(steps, seed\); allowed: the same as before$"),
        ({"shards": {"patch": 32}}, r"with another shards \(patch\); allowed"),
        ({"shards": None}, r"with another shards \(None\); allowed"),
        ({"init": "default"}, r"with another init \(default\); allowed"),
        ({"freeze_encoder": True}, r"with another freeze_encoder \(True\); allowed"),
    ],
)
def test_only_the_same_stopped_run_is_resumed(tmp_path: Path, content: Any, message: str) -> None:
    if isinstance(content, dict):
        content = json.dumps({"kind": checks.TRAINING_KIND, "status": "broken", **FACTS, **content})
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        checks.open_run(config(resume=True), tmp_path, FACTS)


@pytest.mark.parametrize("status", ["running", "broken", "interrupted"])
def test_a_stopped_run_is_resumed(tmp_path: Path, status: str) -> None:
    publish_json(tmp_path / "manifest.json", {"kind": checks.TRAINING_KIND, "status": status, **FACTS})
    checks.open_run(config(resume=True), tmp_path, FACTS)


# the recorded command


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model_args": {}},
        {"model_args": {"filters": (8,), "depth": 1}},
        {"sigma": (5.0, 50.0), "peak": (1.0, 1e6), "noise": "poisson-gaussian", "augment": ()},
        {"augment": ("flip",), "epochs": 3, "learning_rate": 1e-5, "cpus_per_worker": 0.5, "gpus_per_worker": 0.0},
        {"init": "a folder/with 'quotes' and $HOME", "model_args": {}, "freeze_encoder": True, "workers": 2},
        {"init": "$MODEL", "model_args": {}, "steps": 9, "checkpoint_every": 3, "validate_every": 2},
    ],
)
def test_the_recorded_command_makes_the_same_config(options: dict[str, Any]) -> None:
    settings = config(shards="/mine/s", output="/mine/o", resume=True, quiet=True, address="ray://x", **options)
    line = finish.command(settings)
    assert "mine" not in line
    words = shlex.split(line)
    assert words[:5] == ["raydenoise", "train", "$SHARDS", "--output", "$RUN"]
    again = parse(TrainConfig, words[2:], prog="test", description="")
    for entry in fields(TrainConfig):
        if entry.name not in finish.NOT_RECORDED:
            assert getattr(again, entry.name) == getattr(settings, entry.name), entry.name


def test_what_the_shell_would_expand_is_quoted() -> None:
    assert "--init '$MODEL'" in finish.command(config(init="$MODEL", model_args={}))
    assert finish.command(TrainConfig(shards="s", output="o")) == "raydenoise train $SHARDS --output $RUN"


# the worker group


def planned(
    monkeypatch: pytest.MonkeyPatch,
    *,
    there: dict[str, float],
    nodes: tuple[int, ...] = (),
    private: bool = True,
    cores: int = 4,
    types: tuple[NodeType, ...] = (),
    by_hand: bool = False,
    **options: Any,
) -> group.Resources:
    monkeypatch.setattr(group, "node_types", lambda: list(types))
    monkeypatch.setattr(group, "started_by_hand", lambda: by_hand)
    up = [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in nodes]
    monkeypatch.setattr(group.ray, "nodes", lambda: up)
    monkeypatch.setattr(group.ray, "cluster_resources", lambda: there if private else {})
    monkeypatch.setattr(group, "possible_resources", lambda: there)
    monkeypatch.setattr(group, "cores", lambda: cores)
    return group.plan(config(**options), private=private)


def test_one_worker_takes_all_cores_and_leaves_one_cpu_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, there={"CPU": 5})
    assert made == group.Resources(cpus=4, gpus=0, threads=4, read_cpus=1)


def test_two_workers_share_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, there={"CPU": 3}, cores=2, workers=2)
    assert made == group.Resources(cpus=1, gpus=0, threads=1, read_cpus=0.5)


def test_without_a_whole_cpu_each_half_is_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, there={"CPU": 4}, cores=2, workers=4)
    assert made == group.Resources(cpus=0.5, gpus=0, threads=1, read_cpus=0.5)


def test_each_worker_takes_a_gpu_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, there={"CPU": 33, "GPU": 4}, workers=4, private=False)
    assert made == group.Resources(cpus=1, gpus=1, threads=None, read_cpus=7.25)
    made = planned(monkeypatch, there={"CPU": 33, "GPU": 4}, workers=4, private=False, gpus_per_worker=0.0)
    assert made == group.Resources(cpus=8, gpus=0, threads=8, read_cpus=0.25)


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ((0, 8, 8), 1, 8),  # not 15 of 16
        ((0, 8, 8), 2, 7),
        ((0, 8, 8), 3, 4),  # not 5: one node would have to hold two of them
        ((3, 3, 3), 4, 1),
        ((0,), 2, 7),  # what the autoscaler brings is not known
    ],
)
def test_a_share_fits_on_the_nodes(
    monkeypatch: pytest.MonkeyPatch, nodes: tuple[int, ...], workers: int, cpus: int
) -> None:
    there = {"CPU": float(sum(nodes) or 16)}
    made = planned(monkeypatch, there=there, nodes=nodes, private=False, workers=workers, batch_size=8 * workers)
    assert made.cpus == cpus


def test_a_share_fits_on_the_nodes_that_can_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    types = (NodeType({"CPU": 4.0}, 4),)
    made = planned(monkeypatch, there={"CPU": 16.0}, nodes=(0,), types=types, private=False, workers=2)
    assert made.cpus == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"nodes": (2, 2), "by_hand": True, "cpus_per_worker": 3.0},
            "1 workers with 3 CPUs each: the nodes that are up, and those that the cluster says it can launch, hold 0 "
            "of them, and no worker spans two nodes; allowed: at most 2 --cpus-per-worker, or larger nodes",
        ),
        (
            {"nodes": (5, 5), "by_hand": True, "cpus_per_worker": 3.0, "workers": 3, "batch_size": 6},
            ".* hold 2 of them, .*; allowed: at most 2.5 --cpus-per-worker, or larger nodes",
        ),
        (
            {"nodes": (0,), "types": (NodeType({"CPU": 2.0}, 2),), "cpus_per_worker": 3.0},
            ".* hold 0 of them, .*; allowed: at most 2 --cpus-per-worker, or larger nodes",
        ),
        (
            {"nodes": (4,), "by_hand": True, "cpus_per_worker": 1.0, "gpus_per_worker": 1.0, "gpus": 1.0},
            "1 workers with 1 CPUs and a GPU each: .* hold 0 of them, .*; allowed: fewer --workers, or larger nodes",
        ),
    ],
)
def test_workers_that_no_node_will_ever_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    types = options.get("types", ())
    total = sum(options["nodes"]) + sum(one.resources["CPU"] * one.count for one in types)
    there = {"CPU": float(total), "GPU": options.pop("gpus", 0.0)}
    with pytest.raises(ValueError, match=f"^{message}$"):
        planned(monkeypatch, there=there, private=False, **options)


def test_what_an_autoscaler_that_tells_nothing_may_bring_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, there={"CPU": 4.0}, nodes=(2, 2), private=False, cpus_per_worker=3.0)
    assert made.cpus == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"workers": 2, "there": {"CPU": 5, "GPU": 1}},
            "workers is 2 with a GPU each; allowed: at most the 1 GPUs of this machine",
        ),
        (
            {"gpus_per_worker": 1.0, "there": {"CPU": 5}, "private": False},
            "workers is 1 with a GPU each; allowed: at most the 0 GPUs of the cluster with its autoscaler",
        ),
        (
            {"cpus_per_worker": 2.0, "workers": 2, "there": {"CPU": 4}},
            "cpus_per_worker is 2 for 2 workers: that would leave none of the 4 CPUs of this machine for reading; "
            "allowed: at most 1.9",
        ),
    ],
)
def test_more_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        planned(monkeypatch, **options)


def test_the_default_share_always_leaves_cpus_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus in range(1, 40):
        for workers in (1, 2, 4):
            if cpus >= workers:
                made = planned(monkeypatch, there={"CPU": cpus}, workers=workers)
                assert made.read_cpus >= group.LEAST_READING
                assert workers * (made.cpus + made.read_cpus) <= cpus + 1e-9


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 5), ({"workers": 8, "batch_size": 8}, 9), ({"cpus_per_worker": 3.5, "workers": 2}, 8)],
)
def test_a_private_ray_has_a_cpu_more_than_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    monkeypatch.setattr(group, "cores", lambda: 4)
    assert group.local_cpus(config(**options)) == expected
    planned(monkeypatch, there={"CPU": expected}, **options)


# the board


def test_a_worker_that_fails_twice_at_one_place_ends_the_run() -> None:
    board = train.Board()
    board.fail(step=10, rank=0, error="first")
    board.fail(step=10, rank=1, error="second")
    board.fail(step=20, rank=0, error="third")
    assert not board.gives_up(step=10)
    assert not board.gives_up(step=20)
    board.fail(step=20, rank=0, error="fourth")
    assert not board.gives_up(step=30), "a later checkpoint is another place"
    assert board.gives_up(step=20)
    assert board.read() == {"error": "fourth", "broken": True}


def test_the_board_keeps_the_last_news() -> None:
    board = train.Board()
    board.post(step=1, loss=0.5)
    board.post(step=2)
    assert board.read() == {"step": 2, "loss": 0.5}


# the log and its picture


def progress(step: int, *, validated: bool = False) -> Progress:
    return Progress(step, 1 / step, 1e-3, 50.0, float(step), validated, checkpoint=False)


def logged(run: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(run / METRICS).sort_by("step").to_pydict()
    return found


def events(run: Path) -> Iterator[tuple[int, str, float]]:
    """(step, name, value) of every scalar: records are length, its checksum, bytes, their checksum."""
    for file in sorted((run / EVENTS).iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)


def test_the_log_holds_what_was_reported(tmp_path: Path) -> None:
    log = RunLog(tmp_path, first=0)
    log.add(progress(10), {})
    log.add(progress(20, validated=True), {"psnr": 30.0, "psnr_15": 33.0, "psnr_25": 30.0, "psnr_50": 27.0})
    log.publish()
    log.add(progress(30, validated=True), {"psnr": 31.0})
    log.publish()
    log.publish()
    log.add(progress(40), {})
    log.close()
    assert [path.name for path in sorted((tmp_path / METRICS).iterdir())] == [
        "step-000000020.parquet",
        "step-000000030.parquet",
    ]
    assert pq.read_schema(tmp_path / METRICS / "step-000000020.parquet").equals(TRAINING)
    rows = logged(tmp_path)
    assert rows["step"] == [10, 20, 30], "the row of step 40 waits for its checkpoint"
    assert rows["loss"] == [1 / 10, 1 / 20, 1 / 30]
    assert rows["psnr"] == [None, 30.0, 31.0]
    assert rows["psnr_50"] == [None, 27.0, None]
    found = {(step, name): value for step, name, value in events(tmp_path)}
    assert found[20, "psnr_15"] == 33.0
    assert found[10, "loss"] == pytest.approx(0.1)
    assert {name for _, name in found} == set(TRAINING.names) - {"step"}


def test_rows_beyond_the_resumed_step_are_taken_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path, first=0)
    for step in (10, 20, 30):
        log.add(progress(step), {})
        log.publish()
    log.close()
    again = RunLog(tmp_path, first=20)
    assert logged(tmp_path)["step"] == [10, 20]
    again.add(progress(40), {})
    again.publish()
    again.close()
    assert logged(tmp_path)["step"] == [10, 20, 40]


@pytest.mark.parametrize(
    "measured",
    [
        {"psnr": 30.0, "psnr_15": 33.0, "psnr_25": 30.0, "psnr_50": 27.0},
        {"psnr": 30.0},
        {},
    ],
)
def test_the_learning_curve_is_drawn(tmp_path: Path, measured: dict[str, float]) -> None:
    steps = [{"step": step, "loss": 1 / step} for step in (10, 20, 30)]
    rows = [row | (measured if row["step"] != 20 else {}) for row in steps]
    (tmp_path / METRICS).mkdir()
    for index, part in enumerate((rows[2:], rows[:2])):
        pq.write_table(pa.Table.from_pylist(part, schema=TRAINING), tmp_path / METRICS / f"{index}.parquet")
    learning_curve(tmp_path / METRICS, path=tmp_path / "pictures" / "curve.png")
    with PIL.Image.open(tmp_path / "pictures" / "curve.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (960, 720))
        lower = np.asarray(picture.convert("RGB"))[400:, 120:900]
    coloured = (lower.max(axis=-1).astype(int) - lower.min(axis=-1) > 60).any()
    assert coloured == bool(measured)


# samples


def chunk(source: Source, first: int, last: int, slots: range) -> list[Sample]:
    rows = read_chunk(pa.table({"first": [first], "last": [last]}), source=source, slots=slots)
    assert rows.schema.equals(SAMPLES)
    return to_samples(rows, side=source.patch)


def content(sample: Sample) -> tuple[Any, ...]:
    noisy = None if sample.noisy is None else sample.noisy.tobytes()
    return sample.epoch, sample.patch, str(sample.clean.dtype), sample.clean.tobytes(), noisy, sample.sigma


KINDS: list[dict[str, Any]] = [
    {},
    {"channels": 1},
    {"dtype": "uint16"},
    {"paired": True},
    {"paired": True, "dtype": "uint16", "channels": 1},
]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_crops_of_the_stored_patches(tmp_path: Path, kind: dict[str, Any]) -> None:
    shards = shard_set(tmp_path, **kind)
    source = Source.of(shards, batch_size=4, patch=16, seed=3, levels=None)
    found = chunk(source, 0, source.order.steps, range(4))
    assert len({sample.patch for sample in found}) == len(found) == 44
    corners = set()
    for sample in found:
        assert sample.clean.shape == (16, 16, kind.get("channels", 3))
        assert str(sample.clean.dtype) == kind.get("dtype", "uint8")
        stored = patch(sample.patch, **kind).clean
        windows = np.lib.stride_tricks.sliding_window_view(stored, sample.clean.shape)[:, :, 0]
        y, x = np.argwhere((windows == sample.clean).all(axis=(2, 3, 4)))[0]
        corners.add((y, x))
        if kind.get("paired"):
            np.testing.assert_array_equal(sample.noisy, sample.clean + np.array(100, sample.clean.dtype))
        else:
            assert sample.noisy is None
    assert len(corners) > 20
    assert {y for y, _ in corners} == set(range(9)), "every place inside the patch, its borders too"
    assert {x for _, x in corners} == set(range(11))


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_do_not_depend_on_workers_nor_on_where_a_chunk_begins(tmp_path: Path, kind: dict[str, Any]) -> None:
    source = Source.of(shard_set(tmp_path, **kind), batch_size=4, patch=16, seed=3, levels=None)
    steps = 2 * source.order.steps + 3
    whole = [content(sample) for sample in chunk(source, 0, steps, range(4))]
    for workers in (2, 4):
        share = 4 // workers
        for bounds in ([0, steps], [0, 5, 17, steps]):
            parts = []
            for rank in range(workers):
                slots = range(rank * share, (rank + 1) * share)
                pairs = pairwise(bounds)
                mine = [content(s) for first, last in pairs for s in chunk(source, first, last, slots)]
                parts.append([mine[at : at + share] for at in range(0, len(mine), share)])
            assert [sample for step in zip(*parts, strict=True) for part in step for sample in part] == whole


def test_epochs_and_seeds_crop_differently(tmp_path: Path) -> None:
    shards = shard_set(tmp_path)

    def crops(seed: int, epoch: int) -> dict[int, bytes]:
        source = Source.of(shards, batch_size=1, patch=16, seed=seed, levels=None)
        found = chunk(source, 47 * epoch, 47 * (epoch + 1), range(1))
        assert {sample.epoch for sample in found} == {epoch}
        return {sample.patch: sample.clean.tobytes() for sample in found}

    first, again, second, other = crops(0, 0), crops(0, 0), crops(0, 1), crops(1, 0)
    assert first == again
    for differs in (second, other):
        assert sum(first[number] != differs[number] for number in range(47)) > 40


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_level_of_pairs_is_estimated_on_the_whole_noisy_patch(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    scale = 1 if dtype == "uint8" else 257
    clean = np.full((64, 64, 3), 128 * scale, dtype)
    noisy = [np.rint(clean + scale * rng.normal(0, sigma, clean.shape)).astype(dtype) for sigma in (5, 20)]
    file = write_shard(tmp_path / "a", [Patch("u", "k", 0, 0, clean, pixels) for pixels in noisy], split="train")
    shards = ShardSet(tmp_path, 64, True, (dtype,), (3,), 0, {"train": (file,), "validation": (file,), "test": ()})
    estimates = [estimate_sigma(pixels) for pixels in noisy]
    assert estimates == pytest.approx([5, 20], rel=0.1)
    for levels, told in ((None, [0, 0]), ((0.0, 75.0), estimates), ((8.0, 15.0), [8, 15])):
        source = Source.of(shards, batch_size=2, patch=16, seed=0, levels=levels)
        read = sorted(chunk(source, 0, 1, range(2)), key=lambda sample: sample.patch)
        assert [sample.sigma for sample in read] == pytest.approx(told, rel=1e-6)
        whole = held_out(shards, split="validation", part=slice(None), levels=levels)
        assert [sample.sigma for sample in whole] == pytest.approx(told, rel=1e-6)


def test_large_patches_validate_no_more_pixels(tmp_path: Path) -> None:
    shards = replace(shard_set(tmp_path, validation=13), patch=1024)
    assert len(list(held_out(shards, split="validation", part=slice(None), levels=None))) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_patches_come_whole_and_once_whoever_reads_them(tmp_path: Path, kind: dict[str, Any]) -> None:
    shards = shard_set(tmp_path, validation=13, **kind)
    whole = list(held_out(shards, split="validation", part=slice(None), levels=None))
    assert [sample.patch for sample in whole] == list(range(13))
    for sample in whole:
        stored = patch(sample.patch, **kind)
        np.testing.assert_array_equal(sample.clean, stored.clean)
        if stored.noisy is not None:
            np.testing.assert_array_equal(sample.noisy, stored.noisy)
    parts = [
        content(sample)
        for rank in range(3)
        for sample in held_out(shards, split="validation", part=slice(rank, None, 3), levels=None)
    ]
    assert sorted(parts) == sorted(map(content, whole))
    few = [sample.patch for sample in held_out(shards, split="validation", part=slice(None), levels=None, limit=4)]
    assert few == [0, 4, 8, 12], "evenly spread"
    assert list(held_out(shards, split="test", part=slice(None), levels=None)) == []


# scores


def identity(inputs: int) -> keras.Model:
    pixels = keras.Input((None, None, inputs))
    return keras.Model(pixels, Planes(3)(pixels))


@pytest.mark.parametrize("inputs", [3, 4])
def test_an_identity_network_gains_nothing(tmp_path: Path, inputs: int) -> None:
    scores = finish.score(identity(inputs), shard_set(tmp_path, test=3), "test", levels=None)
    assert list(scores) == [f"psnr_{what}_{sigma}" for sigma in (15, 25, 50) for what in ("noisy", "denoised")]
    for sigma in (15, 25, 50):
        assert scores[f"psnr_noisy_{sigma}"] == scores[f"psnr_denoised_{sigma}"]


def test_pairs_are_scored_once(tmp_path: Path) -> None:
    scores = finish.score(identity(4), shard_set(tmp_path, test=3, paired=True), "test", levels=(0.0, 75.0))
    level = round(-20 * np.log10(100 / 255), 3)  # every noisy pixel is 100 brighter
    assert scores == {"psnr_noisy": level, "psnr_denoised": level}


def test_a_task_reads_and_keeps_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    for kind, pixel in (({}, 3), ({"channels": 1}, 1), ({"dtype": "uint16"}, 6), ({"paired": True}, 6)):
        source = Source.of(shard_set(tmp_path, **kind), batch_size=4, patch=16, seed=0, levels=None)
        assert (source.pixel_bytes, source.stored) == (pixel, SIDE)
        for stored, cropped, slots in ((256, 64, 32), (256, 256, 16), (1024, 32, 2), (4096, 4096, 64), (24, 16, 2)):
            of_sides = replace(source, stored=stored, patch=cropped)
            steps = of_sides.chunk_steps(slots)
            read, kept = (steps * slots * side**2 * pixel for side in (stored, cropped))
            assert steps == 1 or (read <= READ_BYTES and kept <= KEPT_BYTES)
            assert 1 <= steps <= CHUNK_STEPS
            more = (steps + 1) / steps
            assert steps == CHUNK_STEPS or read * more > READ_BYTES or kept * more > KEPT_BYTES


@pytest.mark.parametrize(("code", "raised"), [(0, KeyboardInterrupt), (None, KeyboardInterrupt), (15, SystemExit)])
def test_a_training_is_interrupted_as_other_jobs_are(code: int | None, raised: type[BaseException]) -> None:
    """Ray Train's way to take Ctrl-C ends the process with 0, and stays; Ray's way to take SIGTERM ends it with 15."""

    def leave() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(code)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(raised), train._own_interrupts():
        leave()
    assert signal.getsignal(signal.SIGINT) is before

"""Laws of a tuning's space: what may be drawn, and that a drawing is a function of its seed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydenoise.config import TrainConfig, TuneConfig, parse
from raydenoise.config.space import OF_THE_COMMAND, Domain, Space, described


def space(tmp_path: Path, text: str) -> Space:
    file = tmp_path / "space.yaml"
    file.write_text(text, encoding="utf-8")
    return Space.read(file)


FULL = """
learning-rate: {loguniform: [1e-4, 1.0e-2]}
clip_norm: {uniform: [0.05, 0.05e1]}
batch_size: {choice: [8, 16]}
loss: {choice: [l1, charbonnier]}
sigma: {choice: ["0:55", [5, 75], 25]}
augment: {choice: [[flip], [flip, turn], none]}
model_args:
  filters: {choice: [[8, 16], [8,]]}
  depth: {randint: [1, 3]}
optimizer: adam
warmup_steps: 10
"""


def test_every_kind_of_option_is_read(tmp_path: Path) -> None:
    found = space(tmp_path, FULL)
    assert found.fixed == {"optimizer": "adam", "warmup_steps": 10}
    assert found.drawn == {
        "learning_rate": Domain("loguniform", (1e-4, 1e-2)),
        "clip_norm": Domain("uniform", (0.05, 0.5)),
        "batch_size": Domain("choice", (8, 16)),
        "loss": Domain("choice", ("l1", "charbonnier")),
        "sigma": Domain("choice", ((0.0, 55.0), (5.0, 75.0), (25.0, 25.0))),
        "augment": Domain("choice", (("flip",), ("flip", "turn"), ())),
        "model_args.filters": Domain("choice", ((8, 16), (8,))),
        "model_args.depth": Domain("randint", (1, 3)),
    }


def test_a_drawing_stays_in_its_domains_and_makes_trainings(tmp_path: Path) -> None:
    found = space(tmp_path, FULL)
    rates, depths = [], set()
    for drawn in found.draw(200, seed=0):
        config = TrainConfig(shards="s", output="o", **found.options(drawn))
        assert config.optimizer == "adam"
        assert config.model_args == {"filters": drawn["model_args.filters"], "depth": drawn["model_args.depth"]}
        assert 1e-4 <= config.learning_rate <= 1e-2
        assert 0.05 <= config.clip_norm <= 0.5
        rates.append(config.learning_rate)
        depths.add(config.model_args["depth"])
    assert depths == {1, 2, 3}
    below = sum(rate < 1e-3 for rate in rates)
    assert 70 < below < 130  # half of the logarithms
    assert all(float(f"{rate:.4g}") == rate for rate in rates)


def test_a_drawing_is_a_function_of_its_seed_and_a_longer_one_begins_like_it(tmp_path: Path) -> None:
    found = space(tmp_path, FULL)
    assert found.draw(5, seed=1) == found.draw(9, seed=1)[:5] != found.draw(5, seed=2)


def test_a_finite_space_is_drawn_without_repetition_to_its_end(tmp_path: Path) -> None:
    found = space(tmp_path, "loss: {choice: [l1, mse]}\nmodel_args: {depth: {randint: [1, 3]}}\n")
    drawn = found.draw(6, seed=0)
    assert len({described(one) for one in drawn}) == 6
    with pytest.raises(ValueError, match=r"^trials is 7; allowed: at most 6, all combinations of the space$"):
        found.draw(7, seed=0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ema: {uniform: [0.999, 0.9999]}", 10),
        ("ema: {uniform: [0.999, 0.9999]}\nloss: {choice: [l1, mse]}", 20),
        ('sigma: {choice: [25, "25", "25:25"]}', 1),
    ],
)
def test_a_space_with_fewer_combinations_than_it_seems_ends(tmp_path: Path, text: str, found: int) -> None:
    assert len({described(one) for one in space(tmp_path, text).draw(found, seed=0)}) == found
    told = rf"^trials is {found + 1}, and {found} different combinations .* found; allowed: at most {found}, or a wider"
    with pytest.raises(ValueError, match=told):
        space(tmp_path, text).draw(found + 1, seed=0)


def test_many_choices_are_drawn_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydenoise.config.space.REPEATS", 5)
    drawn = space(tmp_path, "warmup_steps: {randint: [1, 300]}").draw(300, seed=0)
    assert {one["warmup_steps"] for one in drawn} == set(range(1, 301))


@pytest.mark.parametrize(
    "domain", [Domain("uniform", (0.999, 0.99999)), Domain("loguniform", (0.12341, 0.1236))], ids=["up", "down"]
)
def test_rounding_stays_in_the_range(domain: Domain) -> None:
    rng = np.random.default_rng(0)
    low, high = domain.values
    assert all(low <= domain.draw(rng) <= high for _ in range(1000))


def test_arguments_of_the_network_can_be_drawn_together(tmp_path: Path) -> None:
    found = space(tmp_path, "model_args: {choice: [{filters: [8, 16], depth: 2}, {filters: [32], depth: 1}]}\n")
    made = [TrainConfig(shards="s", output="o", **found.options(drawn)).model_args for drawn in found.draw(2, seed=0)]
    assert sorted(args["depth"] for args in made) == [1, 2]
    assert {"filters": (8, 16), "depth": 2} in made


def test_the_ends_meet_every_value(tmp_path: Path) -> None:
    found = space(tmp_path, FULL)
    for name, domain in found.drawn.items():
        assert {repr(ends[name]) for ends in found.ends()} == {repr(value) for value in domain.values}


REFUSED = {
    "lerning_rate: 1": r"lerning_rate is unknown; did you mean learning_rate\?$",
    "xyz: 1": "xyz is unknown; allowed: shards, output, model, ",
    "loss: {choice: [l1, 3]}": r"loss is 3; allowed: l1, mean squared, Charbonnier's error, or psnr: its logarithm per",
    "batch_size: {uniform: [8, 16]}": "batch_size is drawn by uniform; allowed for it: choice, randint$",
    "loss: {uniform: [1, 2]}": "loss is drawn by uniform; allowed for it: choice$",
    "learning_rate: {loguniform: [0, 1]}": r"drawn by loguniform of \[0, 1\]; allowed: 0 < low < high$",
    "learning_rate: {uniform: [2, 1]}": r"drawn by uniform of \[2, 1\]; allowed: low < high$",
    "learning_rate: {uniform: [1]}": r"drawn by uniform of \[1\]; allowed: two numbers, \[low, high\]$",
    "batch_size: {randint: [1.5, 3]}": r"by randint of \[1.5, 3\]; allowed: two whole numbers, \[low, high\]$",
    "loss: {choice: []}": r"drawn by choice of \[\]; allowed: a list of values$",
    "loss: {choice: l1}": "drawn by choice of 'l1'; allowed: a list of values$",
    "loss: {choice: [l1, l1]}": r"has a choice twice in \['l1', 'l1'\]; allowed: each once$",
    "learning_rate: {normal: [0, 1]}": r"learning_rate is \{'normal': \[0, 1\]\}; allowed: a value, or one of \{choice",
    "model_args: {depth: {uniform: [1, 2]}}": "model_args.depth is drawn by uniform; allowed for it: choice, randint$",
    "model_args: {depth: big}": "model_args.depth is 'big'; allowed: a whole number, a list of them",
    "steps: 10": "steps is the same for all trials; allowed: as a flag, or not at all$",
    "optimizer: adam": "leaves nothing to draw; allowed: at least one option such as learning_rate: ",
    "[1]": "holds a list; allowed: `name: value` lines$",
    "a: [": "is not YAML: ",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_space_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=f"^--space .*space.yaml.*{REFUSED[text]}"):
        space(tmp_path, text)


def test_a_missing_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--space .*gone.yaml: No such file or directory$"):
        Space.read(tmp_path / "gone.yaml")


def test_what_the_command_says_is_an_option_of_train() -> None:
    assert set(OF_THE_COMMAND) <= set(TrainConfig.__dataclass_fields__)


GIVEN: dict[str, Any] = {"shards": "s", "space": "f", "output": "o"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trials", 0, "trials is 0; allowed: 1 or more"),
        ("concurrent", 0, "concurrent is 0; allowed: 1 or more"),
        ("workers", 0, "workers is 0; allowed: 1 or more"),
        ("steps", 0, "steps is 0; allowed: 1 or more"),
        ("scheduler", "pbt", "scheduler is 'pbt'; allowed: asha, none"),
        ("grace", 0.0, "grace is 0.0; allowed: above 0, at most 1"),
        ("reduction", 1.0, "reduction is 1.0; allowed: above 1"),
        ("reduction", math.inf, "reduction is inf; allowed: above 1"),
        ("gpus_per_worker", 0.5, "gpus_per_worker is 0.5; allowed: 0 or 1: a worker per GPU"),
        ("cpus_per_worker", 0.0, "cpus_per_worker is 0.0; allowed: above 0"),
        ("seed", -1, "seed is -1; allowed: 0 or more"),
    ],
)
def test_what_tune_refuses(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        TuneConfig(**GIVEN, **{name: value})


def test_epochs_and_steps_are_one_of_them() -> None:
    with pytest.raises(ValueError, match=r"^epochs and steps given; allowed: one of them$"):
        TuneConfig(**GIVEN, epochs=1, steps=1)


def test_the_flags_of_tune() -> None:
    words = ["s", "--space", "f", "--output", "o", "--trials", "4", "--steps", "60", "--grace", "0.2", "--resume"]
    assert parse(TuneConfig, words, prog="", description="") == TuneConfig(
        **GIVEN, trials=4, steps=60, grace=0.2, resume=True
    )

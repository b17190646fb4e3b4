"""Laws of one picture's evaluation, without Ray and without networks."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from raydenoise.config import EvaluateConfig
from raydenoise.core.metrics import as_float
from raydenoise.data.schema import EVALUATED
from raydenoise.evaluation.summary import summarize, to_markdown
from raydenoise.pipelines.evaluator import Evaluator, Method, Task, classical

IDENTITY = Method("identity", takes_sigma=False, run=lambda noisy, _: noisy)


@pytest.fixture
def picture(tmp_path: Path) -> dict[str, Any]:
    """A source row of a picture of 40x60 pixels with alpha."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 15, 4), np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    nothing = dict.fromkeys(("noisy_uri", "shard", "group", "row"))
    return {"uri": str(tmp_path / "a.png"), "key": "a.png", "shown": True, **nothing}


def task(
    *, sources: tuple[str, ...] = ("known", "auto"), sigmas: tuple[float, ...] = (15.0, 25.0), **options: Any
) -> Task:
    config = EvaluateConfig(input="in", output="out", **options)
    return Task(config, sigmas=sigmas, sources=sources, shown=sigmas[-1] if sigmas else None)


def run(picture: dict[str, Any], *methods: Method, **options: Any) -> list[dict[str, Any]]:
    rows = list(Evaluator(task(**options), methods, worker="here")(picture))
    assert all(row.keys() <= set(EVALUATED.names) for row in rows)
    return rows


def table(rows: list[dict[str, Any]]) -> Any:
    return pa.Table.from_pylist(rows, schema=EVALUATED)


def test_a_method_that_does_nothing_gains_nothing(picture: dict[str, Any]) -> None:
    rows = run(picture, IDENTITY)
    assert [(row["method"], row["sigma"]) for row in rows] == [
        (name, sigma) for sigma in (15, 25) for name in ("noisy", "identity")
    ]
    for row in rows:
        assert row["psnr"] == row["psnr_noisy"]
        assert (row["status"], row["height"], row["width"], row["channels"]) == ("ok", 40, 60, 3)
    summary = summarize(table(rows), methods=["noisy", "identity"], seed=0)
    assert [entry["gain"]["mean"] for part in summary["sets"] for entry in part["methods"]] == [0, 0, 0, 0]
    assert "| +0.00 | 0.00 to 0.00 |" in to_markdown(summary)


def test_every_method_gets_the_same_noise_which_is_white_and_not_clipped(picture: dict[str, Any]) -> None:
    seen: list[Any] = []
    spies = [Method(name, takes_sigma=True, run=lambda noisy, _: seen.append(noisy) or noisy) for name in "ab"]
    run(picture, *spies, sigmas=(25.0,))
    assert len(seen) == 4
    assert all(noisy.tobytes() == seen[0].tobytes() for noisy in seen)
    clean = as_float(np.asarray(PIL.Image.open(picture["uri"]))[..., :3])
    assert 255 * (seen[0] - clean).std() == pytest.approx(25, rel=0.05)
    assert (seen[0].min(), seen[0].max()) == pytest.approx((-0.2, 1.2), abs=0.2)
    assert seen[0].min() < 0 < 1 < seen[0].max()
    run(picture, *spies, sigmas=(25.0,), seed=1)
    assert seen[4].tobytes() != seen[0].tobytes()
    run({**picture, "key": "b.png"}, *spies, sigmas=(25.0,))
    assert seen[8].tobytes() != seen[0].tobytes()


def test_methods_are_told_the_level_or_its_estimate_within_their_range(picture: dict[str, Any]) -> None:
    told: list[Any] = []
    limited = Method(
        "limited", takes_sigma=True, run=lambda noisy, level: told.append(level) or noisy, limit=lambda _: 7.0
    )
    rows = run(picture, limited, IDENTITY, sigmas=(25.0,))
    assert told == [25, 7]
    given = [(row["method"], row.get("sigma_source"), row.get("sigma_given")) for row in rows]
    assert given == [("noisy", None, None), ("limited", "known", 25), ("limited", "auto", 7), ("identity", None, None)]


def test_strength_blends_a_classical_method(picture: dict[str, Any]) -> None:
    rows = run(picture, classical("median", strength=0.0), sources=("known",), sigmas=(25.0,))
    assert rows[1]["psnr"] == pytest.approx(rows[0]["psnr"], abs=1e-4)


def test_a_method_that_fails_leaves_the_others(picture: dict[str, Any]) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError("no room")

    rows = run(picture, Method("broken", takes_sigma=False, run=broken), IDENTITY, sigmas=(25.0,))
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert (rows[1]["method"], rows[1]["error_type"], rows[1]["error_message"]) == ("broken", "MemoryError", "no room")
    summary = summarize(table(rows), methods=["noisy", "broken", "identity"], seed=0)
    assert (summary["images"], summary["failed"]) == (1, 1)
    assert summary["first_failures"] == [{"key": "a.png", "error": "broken: no room"}]
    assert "- `a.png`: broken: no room" in to_markdown(summary)


def test_a_pair_of_unlike_sizes_and_a_picture_without_partner_are_error_rows(
    picture: dict[str, Any], tmp_path: Path
) -> None:
    PIL.Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "small.png")
    small = {**picture, "noisy_uri": str(tmp_path / "small.png")}
    (row,) = run(small, IDENTITY, noisy="n", sigmas=(), sources=("auto",))
    assert (row["error_type"], row["error_message"]) == (
        "unlike_pair",
        "the clean picture is 60x40x3, the noisy one 5x4x3; allowed: the same",
    )
    (row,) = run(picture, IDENTITY, noisy="n", sigmas=(), sources=("auto",))
    assert (row["status"], row["error_type"]) == ("error", "unpaired")
    assert row["error_message"] == "no picture of this path below n"

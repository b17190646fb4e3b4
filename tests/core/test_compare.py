"""Laws of the comparison: a planted difference is found, and no difference is not."""

import numpy as np
import pytest

from raydenoise.core import compare
from raydenoise.core.compare import Difference, paired_difference, verdict


def differ(mean: float, *, images: int = 68, spread: float = 0.2, seed: int = 0, draws: int = 0) -> Difference:
    differences = np.random.default_rng(seed).normal(mean, spread, images)
    return paired_difference(differences, [str(i) for i in range(images)], rng=np.random.default_rng(draws))


def test_the_interval_covers_a_planted_difference_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "RESAMPLES", 1_000)
    found = [differ(0.42, seed=seed) for seed in range(200)]
    covered = sum(one.low <= 0.42 <= one.high for one in found)
    assert 0.90 <= covered / len(found) <= 0.99
    assert all(one.shown for one in found), "0.42 dB on 68 images that scatter by 0.2 cannot be missed"
    assert sum(differ(0.0, seed=seed).shown for seed in range(200)) <= 0.1 * 200


def test_the_interval_is_a_function_of_the_draws() -> None:
    assert differ(0.1) == differ(0.1)
    assert differ(0.1).low != differ(0.1, draws=1).low
    assert differ(0.1).low == pytest.approx(differ(0.1, draws=1).low, abs=0.003)


def test_chunks_of_draws_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = differ(0.1)
    monkeypatch.setattr(compare, "CHUNK", 68 * 3_000)
    assert differ(0.1) == whole


def test_patches_of_a_picture_are_drawn_together() -> None:
    """Ten equal patches of each picture tell no more than one: the interval is that of the pictures."""
    differences = np.random.default_rng(0).normal(0.1, 0.3, 20)
    pictures = [str(i) for i in range(20)]
    alone = paired_difference(differences, pictures, rng=np.random.default_rng(0))
    patches = paired_difference(np.repeat(differences, 10), np.repeat(pictures, 10), rng=np.random.default_rng(0))
    assert (patches.low, patches.high) == pytest.approx((alone.low, alone.high))
    assert (patches.images, patches.pictures) == (200, 20)


def test_verdicts() -> None:
    better = Difference(mean=0.42, low=0.37, high=0.47, images=68, pictures=68)
    assert verdict("A", "B", better) == "A is better than B by 0.42 dB, 95% interval 0.37 to 0.47, on 68 images"
    worse = Difference(mean=-0.42, low=-0.47, high=-0.37, images=68, pictures=68)
    assert verdict("A", "B", worse) == "B is better than A by 0.42 dB, 95% interval 0.37 to 0.47, on 68 images"
    same = Difference(mean=0.02, low=-0.01, high=0.05, images=68, pictures=68)
    assert verdict("A", "B", same) == (
        "no difference is shown between A and B: 0.02 dB, 95% interval -0.01 to 0.05, on 68 images"
    )
    few = Difference(mean=0.42, low=0.37, high=0.47, images=3, pictures=3)
    assert verdict("A", "B", few) == "A is 0.42 dB above B on 3 images: too few to tell; 6 or more can"
    patches = Difference(mean=0.42, low=0.37, high=0.47, images=120, pictures=12)
    assert verdict("A", "B", patches).endswith("on 120 patches of 12 pictures")
    assert "interval 0.00 to 0.00" in verdict("A", "B", Difference(0.0, -0.0001, 0.0, 9, 9))

"""Which of two methods is better on the same pictures: paired differences, a bootstrap interval, a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000  # the ends of a 95% interval then scatter by about 1% of its width
CHUNK = 1_000_000  # indices drawn at a time: 8 MB
LEVEL = 0.95
LEAST = 6  # pictures: two equal methods differ in one direction on five with a chance of 2^-4, over 5%


@dataclass(frozen=True)
class Difference:
    """By how much the first of two methods is better, in dB.

    Attributes:
        mean: over the images.
        low, high: of the 95% interval.
        images: that both were measured on.
        pictures: that those are parts of; the unit that is drawn again.
    """

    mean: float
    low: float
    high: float
    images: int
    pictures: int

    @property
    def shown(self) -> bool:
        """Whether there are pictures enough, and zero lies outside the interval."""
        return self.pictures >= LEAST and not self.low <= 0 <= self.high


def paired_difference(
    differences: NDArray[np.float64], pictures: Sequence[str], *, rng: np.random.Generator
) -> Difference:
    """Estimate a mean difference by a percentile bootstrap over pictures (Efron and Tibshirani, 1993, ch. 13).

    Patches of one picture are alike, so that pictures are drawn, each with all its patches.

    Args:
        differences: of each image, at least one, in an order that does not depend on the run.
        pictures: that each image is, or is a part of.
        rng: the draws.
    """
    _, owners = np.unique(np.asarray(pictures), return_inverse=True)
    sums, counts = np.bincount(owners, weights=differences), np.bincount(owners)
    step = max(1, CHUNK // len(sums))
    means = []
    for first in range(0, RESAMPLES, step):
        drawn = rng.integers(len(sums), size=(min(step, RESAMPLES - first), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(np.mean(differences)), float(low), float(high), len(differences), len(sums))


def verdict(first: str, second: str, difference: Difference) -> str:
    """Say in a sentence which of two methods is better."""
    if difference.mean < 0:
        better, worse = second, first
        low, high = -difference.high, -difference.low
    else:
        better, worse = first, second
        low, high = difference.low, difference.high
    gap = f"{abs(difference.mean):.2f} dB"
    interval = f"95% interval {_zero(low)} to {_zero(high)}, {measured_on(difference)}"
    if difference.pictures < LEAST:
        return f"{better} is {gap} above {worse} {measured_on(difference)}: too few to tell; {LEAST} or more can"
    if difference.shown:
        return f"{better} is better than {worse} by {gap}, {interval}"
    return f"no difference is shown between {better} and {worse}: {gap}, {interval}"


def measured_on(difference: Difference) -> str:
    """Say on how many images."""
    images = f"on {difference.images} image{'s' * (difference.images != 1)}"
    if difference.pictures == difference.images:
        return images
    return (
        f"{images.replace('image', 'patch' if difference.images == 1 else 'patche')} of {difference.pictures} pictures"
    )


def _zero(value: float) -> str:
    """Two digits, without a minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}"

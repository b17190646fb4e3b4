"""Laws of the order: every patch once an epoch, whoever reads it; the same from wherever it begins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydenoise.data.order import Order

ORDERS = st.builds(
    Order,
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=12).map(tuple),
    batch=st.sampled_from((2, 4)),
    seed=st.integers(0, 99),
)


def table(order: Order, *, first: int, last: int, slots: range) -> dict[tuple[int, int], tuple[int, int]]:
    """(step, slot) -> (epoch, patch)."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for read in order.reads(first=first, last=last, slots=slots):
        for row, (step, slot) in zip(read.rows, read.places, strict=True):
            assert (step, slot) not in found
            assert 0 <= row < order.sizes[read.group]
            found[int(step), int(slot)] = (read.epoch, int(order.offsets[read.group] + row))
    return found


@given(order=ORDERS)
@settings(deadline=None)
def test_every_place_is_filled_and_no_patch_comes_twice_in_an_epoch(order: Order) -> None:
    steps = 2 * order.steps
    found = table(order, first=0, last=steps, slots=range(order.batch))
    assert set(found) == {(step, slot) for step in range(steps) for slot in range(order.batch)}
    assert all(epoch == step // order.steps for (step, _), (epoch, _) in found.items())
    assert len(set(found.values())) == len(found)
    assert sum(order.sizes) - order.steps * order.batch < order.batch, "fewer than a batch are left out"


@given(order=ORDERS, cut=st.floats(0, 1))
@settings(deadline=None)
def test_workers_and_resumed_runs_read_the_same(order: Order, cut: float) -> None:
    steps = 3 * order.steps
    whole = table(order, first=0, last=steps, slots=range(order.batch))
    middle = min(steps - 1, max(1, int(cut * steps)))
    parts: dict[tuple[int, int], tuple[int, int]] = {}
    for first, last in ((0, middle), (middle, steps)):
        for rank in range(2):
            half = order.batch // 2
            parts |= table(order, first=first, last=last, slots=range(rank * half, (rank + 1) * half))
    assert parts == whole


def test_epochs_and_seeds_differ_and_batches_mix() -> None:
    order = Order((20,) * 50, batch=10, seed=0)
    first, second = (
        [patch for _, (_, patch) in sorted(table(order, first=a, last=a + 100, slots=range(10)).items())]
        for a in (0, 100)
    )
    other = Order((20,) * 50, batch=10, seed=1)
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first != second
    assert first != [patch for _, (_, patch) in sorted(table(other, first=0, last=100, slots=range(10)).items())]
    groups = [len({patch // 20 for patch in first[at : at + 10]}) for at in range(0, 1000, 10)]
    assert np.mean(groups) > 9, "a batch of 10 takes its patches from 10 row groups, or nearly"


def test_a_worker_reads_little_more_than_its_share() -> None:
    order = Order((20,) * 500, batch=32, seed=0)
    mine = order.reads(first=0, last=order.steps, slots=range(8))
    assert len(mine) <= 500 / 4 + 8 + 1


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 9; allowed: at most the 7 training patches"):
        Order((3, 4), batch=9, seed=0)

"""Laws of the parts of pictures: where most changed, inside the picture, of any size."""

import numpy as np
import pytest

from raydenoise.report.views import MAGNIFIED, SIDE, busiest, removed


def pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.full((height, width, 3), 100, np.uint8)
    return before, before.copy()


@pytest.mark.parametrize("at", [(0, 0), (300, 500), (399, 799), (17, 640)])
def test_the_part_holds_what_changed(at: tuple[int, int]) -> None:
    before, after = pair(400, 800)
    y, x = at
    after[max(0, y - 8) : y + 8, max(0, x - 8) : x + 8] += 50
    top, left = busiest(before, after)
    assert 0 <= top <= 400 - SIDE
    assert 0 <= left <= 800 - SIDE
    assert top <= y < top + SIDE
    assert left <= x < left + SIDE


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3), (SIDE, SIDE), (SIDE + 1, SIDE - 1), (255, 257)])
def test_pictures_of_any_size_have_a_part(shape: tuple[int, int]) -> None:
    before, after = pair(*shape)
    after[-1, -1] = 0
    top, left = busiest(before, after)
    assert 0 <= top <= max(0, shape[0] - SIDE)
    assert 0 <= left <= max(0, shape[1] - SIDE)
    assert before[top : top + SIDE, left : left + SIDE].size


def test_what_was_taken_away_is_grey_where_nothing_was() -> None:
    before, after = pair(8, 9)
    after[0, 0], after[0, 1], after[1, 0] = 110, 90, 255
    drawn = removed(before, after)
    assert (drawn[2:] == 128).all()
    assert (drawn[0, 0] == 128 + 10 * MAGNIFIED).all()
    assert (drawn[0, 1] == 128 - 10 * MAGNIFIED).all()
    assert (drawn[1, 0] == 255).all()

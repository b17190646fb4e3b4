"""Laws of the layout: by picture, exact, a function of seed and keys, shards of 96 to 128 MB."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydenoise.data.layout import (
    PIECE_BYTES,
    SHARD_BYTES,
    Surveyed,
    generator,
    lay_out,
    split,
    split_counts,
)
from raydenoise.data.schema import SPLITS

USUAL = (0.9, 0.05, 0.05)
MANY = [f"{number}.png" for number in range(1000)]


def surveyed(key: str, *, patches: int = 10, patch_bytes: int = 49_152) -> Surveyed:
    return Surveyed(f"/in/{key}", key, None, key.encode(), patches, patch_bytes)


def fractions() -> st.SearchStrategy[tuple[float, float, float]]:
    weights = st.tuples(*[st.integers(0, 20)] * 3).filter(any)
    return weights.map(lambda parts: tuple(part / sum(parts) for part in parts))


@given(images=st.integers(0, 300), shares=fractions())
def test_every_picture_is_counted_and_no_share_is_forgotten(images: int, shares: tuple[float, float, float]) -> None:
    counts = split_counts(images, shares)
    assert sum(counts) == images
    wanted = sum(share > 0 for share in shares)
    for count, share in zip(counts, shares, strict=True):
        assert count == 0 if share == 0 else abs(count - images * share) <= 2
        assert count > 0 or share == 0 or images < wanted


@pytest.mark.parametrize(
    ("images", "counts"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (10, (8, 1, 1)), (100, (90, 5, 5)), (1432, (1289, 72, 71))],
)
def test_the_usual_counts(images: int, counts: tuple[int, int, int]) -> None:
    assert split_counts(images, USUAL) == counts


def test_a_split_depends_on_seed_and_keys_alone() -> None:
    first = split(MANY, USUAL, seed=1)
    assert first == split(MANY[::-1], USUAL, seed=1)
    assert Counter(first.values()) == {"train": 900, "validation": 50, "test": 50}
    assert first != split(MANY, USUAL, seed=2)


def test_a_collection_that_grows_keeps_most_pictures_where_they_were() -> None:
    before, after = split(MANY, USUAL, seed=1), split([*MANY, *(f"new-{name}" for name in MANY[:100])], USUAL, seed=1)
    assert sum(before[key] != after[key] for key in MANY) < 20


def test_a_generator_is_one_purposes_own() -> None:
    draws = [generator(*words).random() for words in ((1, "a", "b"), (1, "ab"), (1, "a", "c"), (2, "a", "b"))]
    assert len(set(draws)) == 4
    assert generator(1, "ü", "b").random() == generator(1, "ü", "b").random()


def sizes(shards: list, pictures: list[Surveyed]) -> list[int]:
    patch_bytes = {picture.key: picture.patch_bytes for picture in pictures}
    return [sum((p.last - p.first) * patch_bytes[p.key] for p in shard.pieces) for shard in shards]


@given(seed=st.integers(0, 99), counts=st.lists(st.integers(1, 3_000), min_size=1, max_size=80))
@settings(deadline=None)
def test_every_patch_goes_to_one_shard_of_its_pictures_split(seed: int, counts: list[int]) -> None:
    pictures = [surveyed(f"{number}.png", patches=count) for number, count in enumerate(counts)]
    shards = lay_out(pictures, USUAL, seed=seed)
    taken = [(piece.key, number) for s in shards for piece in s.pieces for number in range(piece.first, piece.last)]
    expected = [(picture.key, number) for picture in pictures for number in range(picture.patches)]
    assert sorted(taken) == sorted(expected)
    splits = split([picture.key for picture in pictures], USUAL, seed=seed)
    assert all(splits[piece.key] == shard.split for shard in shards for piece in shard.pieces)
    for name in SPLITS:
        members = [shard for shard in shards if shard.split == name]
        assert [shard.name for shard in members] == [f"{name}/part-{n:05d}.parquet" for n in range(len(members))]
        found = sizes(members, pictures)
        assert all(SHARD_BYTES <= size < SHARD_BYTES + PIECE_BYTES for size in found[:-1])
        assert all(0 < size < SHARD_BYTES + PIECE_BYTES for size in found[-1:])
    assert shards == lay_out(pictures[::-1], USUAL, seed=seed)


def test_a_picture_has_one_piece_in_a_shard() -> None:
    """It is decoded once for each shard that it is in."""
    giant = surveyed("giant.tif", patches=10_000)  # 492 MB
    shards = lay_out([giant], (1, 0, 0), seed=0)
    assert [len(shard.pieces) for shard in shards] == [1] * 4  # of 128 MB
    assert SHARD_BYTES + PIECE_BYTES <= 128_000_000


def test_a_patch_larger_than_a_piece_goes_alone() -> None:
    picture = surveyed("huge.tif", patches=3, patch_bytes=SHARD_BYTES + 1)
    assert [[(p.first, p.last) for p in s.pieces] for s in lay_out([picture], (1, 0, 0), seed=0)] == [
        [(0, 1)],
        [(1, 2)],
        [(2, 3)],
    ]


def test_pictures_are_mixed_over_shards() -> None:
    pictures = [surveyed(key, patches=200) for key in MANY]
    first = lay_out(pictures, USUAL, seed=0)[0]
    numbers = np.array([int(piece.key.removesuffix(".png")) for piece in first.pieces])
    assert len(numbers) >= 10
    assert numbers.std() > 150
    assert lay_out(pictures, USUAL, seed=1)[0] != first

"""Which picture goes to which split and shard: a function of the seed and the keys alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor

import numpy as np

from raydenoise.data.schema import SPLITS, Split

SHARD_BYTES = 96_000_000  # pixels at which a shard is closed
PIECE_BYTES = 32_000_000  # of a picture that go together at most: no closed shard has more than 128 MB


@dataclass(frozen=True)
class Surveyed:
    """A picture with patches in it.

    Attributes:
        uri: the clean picture.
        key: its path below INPUT.
        noisy_uri: of its noisy one, where pairs are prepared.
        digest: of the files' bytes.
        patches: how many it gives.
        patch_bytes: of one, clean and noisy.
    """

    uri: str
    key: str
    noisy_uri: str | None
    digest: bytes
    patches: int
    patch_bytes: int


@dataclass(frozen=True)
class Piece:
    """Patches `first` to `last` - 1 of a picture."""

    uri: str
    key: str
    noisy_uri: str | None
    digest: bytes
    first: int
    last: int


@dataclass(frozen=True)
class Shard:
    """A file to be written: its path below the folder of shards, and what goes into it."""

    name: str
    split: Split
    pieces: tuple[Piece, ...]


def generator(seed: int, *words: str) -> np.random.Generator:
    """Make the random numbers of one purpose, such as (key, "scale")."""
    return np.random.default_rng(int.from_bytes(_hash(seed, *words), "big"))


def _hash(seed: int, *words: str) -> bytes:
    return hashlib.sha256("\0".join((str(seed), *words)).encode()).digest()


def split_counts(images: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    """Share out a number of pictures, in the order of `SPLITS`.

    By largest remainder; a split with a fraction above 0 gets at least one where there are enough.
    """
    exact = [images * fraction for fraction in fractions]
    counts = [floor(share) for share in exact]
    by_remainder = sorted(range(3), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: images - sum(counts)]:
        counts[index] += 1
    for index in range(3):
        largest = counts.index(max(counts))
        if fractions[index] > 0 and not counts[index] and counts[largest] > 1:
            counts[largest] -= 1
            counts[index] = 1
    return counts[0], counts[1], counts[2]


def split(keys: Sequence[str], fractions: tuple[float, float, float], *, seed: int) -> dict[str, Split]:
    """Put each picture into a split: ranked by a hash of (seed, key), test first, so that the counts are exact.

    A collection that grows keeps nearly all pictures where they were.
    """
    ranked = sorted(keys, key=lambda key: _hash(seed, "split", key))
    train, validation, test = split_counts(len(ranked), fractions)
    splits: dict[str, Split] = dict.fromkeys(ranked, "train")
    splits.update(dict.fromkeys(ranked[: test + validation], "validation"))
    splits.update(dict.fromkeys(ranked[:test], "test"))
    assert len(ranked) == train + validation + test
    return splits


def lay_out(pictures: Sequence[Surveyed], fractions: tuple[float, float, float], *, seed: int) -> list[Shard]:
    """Distribute pictures over shards, in an order that is a hash of (seed, key).

    A shard is closed at `SHARD_BYTES`; only the last of a split is smaller. A picture of more than `PIECE_BYTES` may go
    to several shards of its split.
    """
    splits = split([picture.key for picture in pictures], fractions, seed=seed)
    ordered = sorted(pictures, key=lambda picture: _hash(seed, "order", picture.key))
    shards = []
    for name in SPLITS:
        members = [picture for picture in ordered if splits[picture.key] == name]
        for number, pieces in enumerate(_grouped(members)):
            shards.append(Shard(f"{name}/part-{number:05d}.parquet", name, tuple(pieces)))
    return shards


def _grouped(pictures: Sequence[Surveyed]) -> list[list[Piece]]:
    groups: list[list[Piece]] = []
    size = SHARD_BYTES
    for picture in pictures:
        step = max(1, PIECE_BYTES // picture.patch_bytes)
        for first in range(0, picture.patches, step):
            if size >= SHARD_BYTES:
                groups.append([])
                size = 0
            last = min(first + step, picture.patches)
            _add(groups[-1], picture, first, last)
            size += (last - first) * picture.patch_bytes
    return groups


def _add(group: list[Piece], picture: Surveyed, first: int, last: int) -> None:
    """Add patches of a picture; to its piece, where the group ends with one."""
    if group and group[-1].key == picture.key:
        group[-1] = replace(group[-1], last=last)
    else:
        group.append(Piece(picture.uri, picture.key, picture.noisy_uri, picture.digest, first, last))

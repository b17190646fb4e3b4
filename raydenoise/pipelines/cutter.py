"""What `prepare` does with one picture and with one shard; without Ray.

A picture is read twice: once to learn how many patches it has, once to cut them. Both reads choose the same patches,
since every choice is a function of (seed, key); a digest of the files proves that they are the same.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from raydenoise.config import PrepareConfig
from raydenoise.core.image import decode
from raydenoise.core.patches import Choice, choose, cut, shrink
from raydenoise.data.layout import Piece, Shard, generator
from raydenoise.data.place import Place
from raydenoise.data.shards import Patch, write_shard
from raydenoise.data.storage import read_picture
from raydenoise.pipelines.stages import described

Cut = list[Patch] | dict[str, str]  # of a piece: its patches, or the columns of its error row


class UnusableError(ValueError):
    """A picture that cannot be used, whose file is well; `kind` is fit for a table's column."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Cutter:
    """Chooses and cuts patches by a config."""

    config: PrepareConfig

    @property
    def choice(self) -> Choice:
        """Which patches of a picture to take."""
        config = self.config
        return Choice(config.patch, config.stride or config.patch, config.count, config.flat)

    def survey(self, picture: Mapping[str, Any]) -> dict[str, Any]:
        """Count the patches of a picture: a row of `schema.PICTURES` becomes one of `schema.SURVEY`."""
        try:
            return {**picture, **self._survey(picture)}
        except Exception as error:  # one picture never takes the job along
            return {**picture, "status": "error", **described(error)}

    def _survey(self, picture: Mapping[str, Any]) -> dict[str, Any]:
        if picture["uri"] is None:
            raise UnusableError("unpaired", f"no picture of this path below {self.config.clean}")
        files = self._read(picture["uri"], picture["noisy_uri"])
        pixels = self._decode(files, key=picture["key"])
        clean, side = pixels[0], self.config.patch
        patches = len(self._places(clean, key=picture["key"]))
        if not patches:
            height, width = clean.shape[:2]
            why = f"each of its patches deviates less than {self.config.flat:g} grey levels; --flat lowers it"
            if min(height, width) < side:
                why = f"it has {width}x{height} pixels{' when shrunk' if self.config.scale else ''}; a patch {side}"
            return {"status": "skipped", "error_type": "no_patch", "error_message": why}
        return {
            "status": "ok",
            "digest": _digest(files),
            "patches": patches,
            "patch_bytes": side * side * clean.shape[2] * clean.itemsize * len(pixels),
            "channels": clean.shape[2],
            "dtype": str(clean.dtype),
        }

    def write(self, shard: Shard, root: Place, cuts: Iterable[Cut] | None = None) -> dict[str, Any]:
        """Publish a shard, its patches in random order; returns a row of `schema.WRITTEN`.

        Args:
            shard: its pieces.
            root: the folder of the shards.
            cuts: what `attempt` makes of each piece; made here where it is None.
        """
        patches: list[Patch] = []
        failures = []
        for piece, found in zip(shard.pieces, cuts or map(self.attempt, shard.pieces), strict=True):
            if isinstance(found, list):
                patches += found
            else:
                failures.append({"uri": piece.uri, "key": piece.key, **found})
        row = {"name": shard.name, "split": shard.split, "pieces": len(shard.pieces), "failures": failures}
        if not patches:
            return {**row, "rows": 0, "bytes": 0}
        order = generator(self.config.seed, "rows", shard.name).permutation(len(patches))
        file = write_shard(root / shard.name, (patches[index] for index in order), split=shard.split)
        return {**row, "rows": file.rows, "bytes": file.bytes}

    def attempt(self, piece: Piece) -> Cut:
        """Cut the patches of a piece, or say why not."""
        try:
            return self.cut(piece)
        except Exception as error:  # one picture never takes the job along
            return described(error)

    def cut(self, piece: Piece) -> list[Patch]:
        """Cut the patches of a piece.

        Raises:
            UnusableError: the files are not those that were surveyed.
            OSError: they cannot be read.
        """
        files = self._read(piece.uri, piece.noisy_uri)
        if _digest(files) != piece.digest:
            raise UnusableError("changed", "the file changed while the job ran")
        pixels = self._decode(files, key=piece.key)
        patches = []
        for place in self._places(pixels[0], key=piece.key)[piece.first : piece.last]:
            windows = [cut(array, place, self.choice).copy() for array in pixels]  # a view would keep the whole picture
            patches.append(Patch(piece.uri, piece.key, *place, *windows))
        return patches

    def _read(self, uri: str, noisy_uri: str | None) -> list[bytes]:
        """The clean picture's file, then the noisy one's where there is one."""
        return [read_picture(path, max_pixels=self.config.max_pixels) for path in (uri, noisy_uri) if path is not None]

    def _decode(self, files: list[bytes], *, key: str) -> list[NDArray[Any]]:
        pixels = [decode(data, max_pixels=self.config.max_pixels).pixels for data in files]
        if len({(array.shape, array.dtype) for array in pixels}) > 1:
            clean, noisy = (f"{array.shape[1]}x{array.shape[0]}x{array.shape[2]} {array.dtype}" for array in pixels)
            raise UnusableError(
                "unlike_pair", f"the clean picture is {clean}, the noisy one {noisy}; allowed: the same"
            )
        if self.config.scale is None:
            return pixels
        factor = generator(self.config.seed, "scale", key).uniform(*self.config.scale)
        return [shrink(array, factor=factor) for array in pixels]

    def _places(self, clean: NDArray[Any], *, key: str) -> list[tuple[int, int]]:
        return choose(clean, self.choice, rng=generator(self.config.seed, "places", key))


def _digest(files: list[bytes]) -> bytes:
    return b"".join(hashlib.sha256(data).digest() for data in files)

"""A model from where it lies, in a bucket too, to this machine's disk."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raydenoise.data.place import place
from raydenoise.model.card import CARD_FILE, MODEL_FILE, locate


@contextmanager
def on_disk(name_or_path: str) -> Iterator[Path]:
    """Find a model on the disk, or copy it there from a bucket for a while.

    What is raised meanwhile about the copy names the model as it was given.

    Raises:
        ValueError: there is none.
    """
    if "://" not in name_or_path:
        yield locate(name_or_path)
        return
    source = place(name_or_path, argument="model")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        try:
            if source.is_file():
                target.write_bytes(source.read_bytes())
            else:
                target.mkdir()
                for name in (CARD_FILE, MODEL_FILE):
                    (target / name).write_bytes((source / name).read_bytes())
        except OSError as error:
            told = f"model {name_or_path!r} cannot be read: {error}"
            raise ValueError(f"{told}; allowed: a bundle, or a .keras or .h5 file") from error
        try:
            yield target
        except ValueError as error:
            if str(target) not in str(error):
                raise
            raise ValueError(str(error).replace(str(target), name_or_path)) from error

"""Model files from strangers: what is in one is checked before Keras sees it, without loading Keras.

The description is held against a list (`raydenoise.model.description`). The weights are read first by a process of its
own (`raydenoise.model.weights`), since HDF5 dies or hangs over some damaged files.
"""

import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from raydenoise.model.description import MOST_BYTES, vet_description

_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}  # assets are vocabularies, which no picture needs
_FREE_BYTES = 1 << 26  # bytes that any file may unpack to
_MOST_EXPANSION = 20  # times the file's size beyond that; weights hardly shrink when they are packed
_READER_BYTES = 1 << 28  # memory of the reader beside what the file unpacks to, once packed and once as an array
_READER_SECONDS = 30  # it takes 0.2; some damaged files never end
_SLOWEST_DISK = 10e6  # bytes per second
_KEPT = ("LD_LIBRARY_PATH", "PYTHONHOME")  # of the environment: the reader is told no secrets


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds.

    Attributes:
        config: the description that a `.h5` file keeps beside them; None in a `.keras` file, which keeps it elsewhere.
        numbers: how many, in all datasets.
        extents: every height, width, depth or length of a dataset.
    """

    config: str | None
    numbers: int
    extents: list[int]


class ReaderError(RuntimeError):
    """The reader did not start: that says nothing about the file."""


def vet(path: Path) -> None:
    """Check a `.keras` or `.h5` file.

    Raises:
        ValueError: it is no such file, it breaks its reader, or it asks for what is no plain part of a network of the
            size of its weights; the message says which.
        ReaderError: the reader did not start.
    """
    try:
        config: str | bytes | None = None
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                _vet_members(archive, path.stat().st_size)
                config = archive.read("config.json")
        contents = examined(path)
        config = config or contents.config
        if config is None:
            raise ValueError("it holds weights without a network; allowed: a whole model, as model.save writes it")
        vet_description(
            config, numbers=contents.numbers, extents=set(contents.extents), compiled=path.suffix != ".keras"
        )
    except ReaderError:
        raise
    except Exception as error:  # over a damaged archive zipfile raises anything
        raise refused(path, error) from error


def refused(path: Path, error: Exception) -> ValueError:
    """Say in one line that a file is no model."""
    first_line = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
    return ValueError(f"{path} cannot be loaded as a Keras model: {first_line}")


def examined(path: Path) -> Contents:
    """Read a file's weights in a process of its own, within limits of time and memory.

    Raises:
        ValueError: the reader refused the file, or did not survive it.
        ReaderError: it did not start.
    """
    size = path.stat().st_size
    seconds = _READER_SECONDS + size / _SLOWEST_DISK
    memory = _READER_BYTES + 2 * _most_unpacked(size)
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "OPENBLAS_NUM_THREADS": "1",  # each thread takes address space
        "HDF5_PLUGIN_PRELOAD": "::",  # no plug-ins
    }
    command = [sys.executable, "-P", "-m", "raydenoise.model.weights", str(path.absolute()), str(memory)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"the file broke its reader: no end after {seconds:.0f} s") from error
    if done.returncode < 0:
        raise ValueError(f"the file broke its reader: {signal.Signals(-done.returncode).name}")
    if done.returncode:
        last_line = [b"", *done.stderr.splitlines()][-1].decode(errors="replace")
        raise ReaderError(f"the reader of model files did not start: {last_line}")
    found = json.loads(done.stdout)
    if "refused" in found:
        raise ValueError(found["refused"])
    return Contents(**found)


def check_expansion(unpacked: int, size: int) -> None:
    """Raise ValueError where a file of so many bytes unpacks to far more."""
    most = _most_unpacked(size)
    if unpacked > most:
        raise ValueError(f"the file of {size:,} bytes unpacks to {unpacked:,}; allowed: {most:,}")


def _most_unpacked(size: int) -> int:
    return _FREE_BYTES + _MOST_EXPANSION * size


def _vet_members(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if sorted(names) != sorted(_MEMBERS):
        came = ", ".join(sorted(names)[:5])
        raise ValueError(f"the archive holds {came[:200]!r}; allowed: {', '.join(sorted(_MEMBERS))}, each once")
    check_expansion(sum(member.file_size for member in members), size)
    config = archive.getinfo("config.json").file_size
    if config > MOST_BYTES:
        raise ValueError(f"config.json has {config:,} bytes; allowed: {MOST_BYTES:,}")

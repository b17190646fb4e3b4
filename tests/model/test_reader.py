"""Damaged model files that end or stall the process that reads them: that process is not ours."""

import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from raydenoise.model import vetting, weights
from raydenoise.model.vetting import ReaderError, examined, vet

DAMAGED = Path(__file__).parent / "damaged"  # a network of two convolutions, with one byte changed
KNOWN = h5py.version.hdf5_version == "1.14.6"  # another HDF5 may refuse these files, or read them


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": []}})
        file["layers/kernel"] = np.zeros((3, 3, 5, 7), np.float32)
        file["layers/bias"] = np.zeros(7, np.float32)
        file["empty"] = h5py.Empty("f4")
    return path


def substitute(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, when_imported: str = "", when_opened: str = ""
) -> None:
    """Give the reader, a real process, an h5py of our own."""
    (folder / "h5py.py").write_text(
        f"import os, signal, time\n{when_imported}\nclass Group: pass\nclass Dataset: pass\n"
        f"class File(Group):\n    def __init__(self, *args):\n        {when_opened or 'pass'}\n"
    )
    monkeypatch.syspath_prepend(folder)


def test_what_a_file_holds_is_told(plain: Path) -> None:
    found = examined(plain)
    assert (found.numbers, found.extents) == (3 * 3 * 5 * 7 + 7, [3, 5, 7])
    assert json.loads(found.config or "") == {"config": {"layers": []}}
    assert found == weights.examine(plain)


@pytest.mark.skipif(not KNOWN, reason="these files break HDF5 1.14.6")
def test_a_file_that_crashes_hdf5_is_refused() -> None:
    with pytest.raises(ValueError, match=r"segfault.h5 cannot be loaded .*: the file broke its reader: SIGSEGV$"):
        vet(DAMAGED / "segfault.h5")


@pytest.mark.skipif(not KNOWN, reason="these files break HDF5 1.14.6")
def test_a_file_that_stalls_hdf5_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "_READER_SECONDS", 1.0)
    with pytest.raises(ValueError, match=r"hang.h5 cannot be loaded .*: the file broke its reader: no end after 1 s$"):
        vet(DAMAGED / "hang.h5")


def test_the_reader_s_death_is_no_death_of_ours(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    substitute(tmp_path, monkeypatch, when_opened="os.kill(os.getpid(), signal.SIGABRT)")
    with pytest.raises(ValueError, match=r"plain.h5 cannot be loaded .*: the file broke its reader: SIGABRT$"):
        vet(plain)


def test_a_reader_that_takes_all_memory_is_stopped(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    substitute(tmp_path, monkeypatch, when_opened="bytearray(600 << 20)")
    with pytest.raises(ValueError, match=r"plain.h5 cannot be loaded .*: MemoryError$"):
        vet(plain)


def test_a_reader_that_never_ends_is_stopped(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "_READER_SECONDS", 0.5)
    substitute(tmp_path, monkeypatch, when_imported="time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(ValueError, match="the file broke its reader: no end after"):
        examined(plain)
    assert time.monotonic() - started < 20


def test_a_reader_that_cannot_start_blames_no_file(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    substitute(tmp_path, monkeypatch, when_imported="raise ImportError('libhdf5.so is missing')")
    with pytest.raises(ReaderError, match=r"reader of model files did not start: ImportError: libhdf5.so is missing$"):
        vet(plain)


def test_the_reader_is_told_no_secrets(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    substitute(tmp_path, monkeypatch, when_opened="raise ValueError(' '.join(os.environ.values()) + '.')")
    with pytest.raises(ValueError, match=r"\.$") as refusal:
        examined(plain)
    assert "secret" not in str(refusal.value)


def test_a_name_like_an_option_is_a_name(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.parent)
    for name in ("-c", "--help.h5", "ü b\n.h5"):
        assert examined(plain.rename(plain.parent / name).relative_to(plain.parent)).numbers == 322
        Path(name).rename(plain)


def test_looking_at_a_model_loads_neither_keras_nor_hdf5(plain: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raydenoise.model.vetting import vet; vet(Path(sys.argv[1]))\n"
        "assert not {'keras', 'tensorflow', 'h5py', 'numpy', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, plain], check=True)


@pytest.mark.slow
def test_no_damaged_file_breaks_more_than_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "_READER_SECONDS", 3.0)
    whole = bytearray((DAMAGED / "hang.h5").read_bytes())
    whole[4593] ^= 1  # the one that is wrong in it
    broken, path = [], tmp_path / "damaged.h5"
    random = np.random.default_rng(0)
    for _ in range(300):
        content = whole.copy()
        for place in random.integers(len(whole), size=random.integers(1, 8)):
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            vet(path)
        except ValueError as error:
            if "broke its reader" in str(error):
                broken.append(str(error))
    path.write_bytes(whole)
    vet(path)
    assert not KNOWN or broken, "the test reaches files that break HDF5"

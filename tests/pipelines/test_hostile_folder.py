"""A folder of thousands of damaged files with odd names, through the command."""

import os
from collections import Counter
from pathlib import Path

import pytest

from raydenoise.core.image import ImageError, decode
from tests.core.mutations import mutated
from tests.data.test_hostile_names import COMPOSED, DECOMPOSED, ODD
from tests.pipelines.test_denoise import metrics, run

FILES = 3000
BESIDE = ("neighbour.png", "stolen.png")  # what lies beside OUT, and must stay as it is


def fill(folder: Path) -> int:
    """Files by the thousand: each odd name is a folder of some, and the name of one in it."""
    names = [name for name in ODD if not name.startswith(".")]
    for index in range(FILES):
        name = names[index % len(names)]
        below = folder / name[:100] / str(index // len(names) % 3)
        below.mkdir(parents=True, exist_ok=True)
        (below / (name if index < len(names) else f"{index}-{name[:200]}")).write_bytes(mutated(index, seed=9)[1])
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb"):  # noqa: PTH123  # pathlib has no bytes
        pass
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "up").symlink_to(folder)
    os.mkfifo(folder / ".pipe")
    (folder / "pipe.png").symlink_to(folder / ".pipe")
    return FILES + 3


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path.lstat() for path in folder.rglob("*"))
    return {f"{status.st_ino}": (status.st_size, status.st_mtime_ns) for status in found}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_hostile_folder_is_done_to_its_end(tmp_path: Path, tiny_bundle: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    count = fill(folder)
    for name in BESIDE:
        (tmp_path / name).write_bytes(b"mine")
    before = snapshot(folder)

    done = run(folder, "--output", output, "--model", tiny_bundle, "--max-pixels", 4_000_000, "--quiet", timeout=1400)

    assert done.returncode == 3, done.stderr
    rows = metrics(output)  # one row for each key
    assert len(rows) == count
    written = {path for path in (output / "images").rglob("*") if path.is_file()}
    good = {key: row for key, row in rows.items() if row["status"] == "ok"}
    assert {output / "images" / key for key in good} == written
    for key, row in good.items():
        picture = decode((output / "images" / key).read_bytes())
        assert (picture.height, picture.width) == (row["height"], row["width"])
        assert row["error_type"] is None
    kinds = Counter(row["error_type"] for row in rows.values() if row["status"] == "error")
    assert set(kinds) <= {"FileNotFoundError", "OSError", *KINDS}, kinds
    assert all(row["error_message"] and row["output_uri"] is None for key, row in rows.items() if key not in good)
    assert rows["pipe.png"]["error_type"] == "not_an_image"
    assert rows["loop.png"]["error_type"] == "OSError"
    assert {f"{COMPOSED}/0/{COMPOSED}", f"{DECOMPOSED}/0/{DECOMPOSED}"} <= rows.keys()
    for key in sorted(rows)[:: len(rows) // 100]:  # under Ray as alone
        assert rows[key]["status"] == ("ok" if alone(folder / key) else "error"), key
    assert snapshot(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", *BESIDE}
    assert all((tmp_path / name).read_bytes() == b"mine" for name in BESIDE)
    assert not [path for path in output.rglob("*") if path.name.endswith(".partial")]
    assert {path.name for path in output.iterdir()} == {"images", "lease", "manifest.json", "metrics"}


KINDS = ("empty", "not_an_image", "truncated", "corrupt", "too_large", "zero_sized", "multi_page", "unsupported")


def alone(path: Path) -> bool:
    """Whether the file is a picture without the job around it."""
    try:
        decode(path.read_bytes() if path.is_file() else b"", max_pixels=4_000_000)
    except (ImageError, OSError):
        return False
    return True

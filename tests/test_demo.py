"""`make demo`, on parts of its photographs and whole: what it leaves, and what docs/analysis.md prints of that."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)
TIMED = "decode_s"  # in a block that asks for seconds: they are the machine's
LAST_DIGITS = 5  # that another number format or processor may change in a shown number
# Runs the demo, on 96x128 pixels of each photograph unless whole, then the blocks of the page, which go on from one
# another.
DRIVER = """
import contextlib, io, json, sys
from pathlib import Path
import skimage.data
from raydenoise import demo

for name in [] if sys.argv[2] == "whole" else demo.PHOTOGRAPHS:
    picture = getattr(skimage.data, name)()
    setattr(skimage.data, name, lambda part=picture[100:196, 150:278]: part)
with contextlib.redirect_stdout(io.StringIO()) as said:
    status = demo.main(Path("demo"))
names, outputs = {}, []
for block in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block, names)
    outputs.append(printed.getvalue())
result = {"status": status, "said": said.getvalue(), "outputs": outputs}
Path(sys.argv[3]).write_text(json.dumps(result))  # on stdout Ray's own warnings may come behind it
"""


@dataclass(frozen=True)
class Demo:
    folder: Path
    status: int
    said: str
    outputs: list[str]


def blocks() -> list[tuple[str, str]]:
    """Code and output of the page."""
    return BLOCK.findall((ROOT / "docs" / "analysis.md").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Of parts."""
    return made(tmp_path_factory.mktemp("made"), "parts", seconds=280)


@pytest.fixture(scope="module")
def whole_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Of whole photographs, as the page has it."""
    return made(tmp_path_factory.mktemp("made"), "whole", seconds=800)


def made(folder: Path, size: str, *, seconds: float) -> Demo:
    """Run the demo and the page's blocks in a folder, for so many seconds at most."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([code for code, _ in blocks()]), size, "result.json"],
        cwd=folder,
        # A backend that is not there, as in a shell that ran `single` on a GPU: Ray's processes have their own.
        env={**environment, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Demo(folder, **json.loads((folder / "result.json").read_text()))


def test_the_demo_leaves_what_the_readme_lists(demo: Demo) -> None:
    assert demo.status == 0
    listed = re.findall(r"^(demo/out/\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(listed) == 5
    for pattern in listed:
        assert list(demo.folder.glob(pattern)), pattern
    assert demo.said.endswith("report             demo/out/report.html\n")


def words(output: str) -> Counter[str]:
    """What an output says, whatever the numbers and the names of pictures in it, and however wide it is drawn."""
    masked = re.sub(r"[a-z]+\.png", "KEY", output)
    masked = re.sub(r"(?<![A-Za-z_])[-+]?\d[\d,.]*", "#", masked)
    return Counter(re.findall(r"[^\s\u2500-\u259f]+", masked))


@pytest.mark.parametrize("index", range(len(blocks())))
def test_the_analysis_page_says_what_its_code_prints(demo: Demo, index: int) -> None:
    code, documented = blocks()[index]
    assert words(demo.outputs[index]) == words(documented), code


def numbers(output: str) -> list[str]:
    """The numbers in an output, as they are written, but for those in a column's type."""
    return re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", re.sub(r"\(\d+,\s?\d+\)", "", output))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("index", [index for index, (code, _) in enumerate(blocks()) if TIMED not in code])
def test_the_analysis_page_shows_the_numbers_of_the_whole_demo(whole_demo: Demo, index: int) -> None:
    shown, printed = numbers(blocks()[index][1]), numbers(whole_demo.outputs[index])
    assert re.findall(r"[a-z]+\.png", whole_demo.outputs[index]) == re.findall(r"[a-z]+\.png", blocks()[index][1])
    assert len(printed) == len(shown) > 0
    for mine, its in zip(printed, shown, strict=True):
        places = len(its.partition(".")[2])
        allowed = LAST_DIGITS * 10**-places if places else 0  # a count is what it is
        assert float(mine) == pytest.approx(float(its), abs=allowed * 1.001), whole_demo.outputs[index]


def test_every_block_of_the_analysis_page_has_an_output() -> None:
    page = (ROOT / "docs" / "analysis.md").read_text()
    assert len(blocks()) == page.count("```python\n") >= 8

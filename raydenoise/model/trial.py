"""Whether Keras loads a bundle, told by a process that loads it for nothing else.

    python -P -m raydenoise.model.trial FOLDER

It prints one line of JSON: {} or {"refused": "why"}. What `raydenoise.model.vetting` cannot know without Keras is found
out here, before a job begins: weights of other shapes than the layers have, layers that do not fit each other.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

_SECONDS = 300.0  # it takes 5 on a quiet machine
_KEPT = ("LD_LIBRARY_PATH", "PYTHONHOME", "PATH", "HOME", "TMPDIR")  # of the environment: it is told no secrets


@contextmanager
def tried(bundles: Mapping[str, Callable[[Path], object]]) -> Iterator[Callable[[], None]]:
    """Let processes load bundles while the caller goes on.

    Args:
        bundles: name -> what writes it into a folder.

    Yields:
        What waits for them and raises ValueError where one is refused.
    """
    with ExitStack() as stack:
        running = {}
        for name, write in bundles.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            write(Path(folder))
            running[name] = stack.enter_context(_started(folder))

        def wait() -> None:
            for name, process in running.items():
                why = _refusal(process)
                if why:
                    raise ValueError(f"model {name} cannot be loaded: {why}; allowed: a network that Keras loads")

        yield wait


@contextmanager
def _started(folder: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-P", "-m", "raydenoise.model.trial", folder]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _refusal(process: "subprocess.Popen[bytes]") -> str | None:
    try:
        said, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {_SECONDS:.0f} s"
    if process.returncode < 0:
        return f"it broke its process: {signal.Signals(-process.returncode).name}"
    lines = said.splitlines()
    if process.returncode or not lines:
        return f"its process ended with {process.returncode}"
    found: str | None = json.loads(lines[-1]).get("refused")
    return found


def main(folder: Path) -> None:
    """Load a bundle and print what came of it."""
    from raydenoise.model import bundle

    try:
        bundle.load(folder, vetted=True)
    except ValueError as error:
        print(json.dumps({"refused": str(error).replace(f"{folder}/", "")}))
    else:
        print("{}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

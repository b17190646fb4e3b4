"""Laws of the imports: dependencies point one way, and a light import stays light."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raydenoise

PACKAGE = Path(raydenoise.__file__).parent
HEAVY = ("keras", "ray", "tensorflow")

# Part of the package -> the parts it may import. A new part needs a line here.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "model": {"core"},
    "training": {"model", "core"},
    "data": {"core"},
    "config": {"training", "core"},
    "pipelines": {"training", "model", "fetching", "data", "config", "report", "evaluation", "tuning", "core"},
    "fetching": {"model", "data"},
    "report": {"data", "config", "core"},
    "tuning": {"data", "config"},
    "preview": {"fetching", "model", "data", "config", "core"},
    "inspection": {"fetching", "model", "config"},
    "cli": {
        "pipelines",
        "config",
        "report",
        "preview",
        "inspection",
        "data",
        "__init__",
    },  # of data, what hides secrets
    "evaluation": {"data", "core"},
    "demo": {"cli", "report", "data", "core"},
    "__init__": {"model"},  # the lazy Denoiser
    "__main__": {"cli"},
}
FORBIDDEN: dict[str, set[str]] = {
    "core": {*HEAVY, "pyarrow"},
    "model": {"ray", "tensorflow"},
    "training": {"ray", "tensorflow", "pyarrow"},
    "data": set(HEAVY),
    "pipelines": set(),
}
MAY_IMPORT_TENSORFLOW = {"pipelines/process.py", "pipelines/worker.py"}  # thread settings; distribution


def modules() -> list[str]:
    """Every module of the package, as a path below it."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported(name: str) -> set[str]:
    """What a module imports anywhere in it, as dotted names; names imported from a package count as its modules."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                found |= {f"{module}.{alias.name}" for alias in node.names}
            case ast.ImportFrom():
                raise AssertionError(f"{name} has a relative import; allowed: absolute ones, which this test can read")
            case ast.Call(func=ast.Name(id="__import__") | ast.Attribute(attr="import_module")):
                raise AssertionError(f"{name} imports by a computed name; allowed: import statements")
    return found


def part(dotted: str) -> str:
    """raydenoise.core.noise.add_awgn -> core; raydenoise.__version__ -> __init__."""
    second = [*dotted.split("."), ""][1]
    return second if (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").is_file() else "__init__"


def run(code: str) -> Any:
    """Run code in a fresh interpreter; what it prints is JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", modules())
def test_dependencies_point_one_way(name: str) -> None:
    own = name.split("/")[0].removesuffix(".py")
    others = {part(dotted) for dotted in imported(name) if dotted.split(".")[0] == "raydenoise"} - {own}
    assert others - {"__init__"} <= ALLOWED[own]  # the version


@pytest.mark.parametrize("name", modules())
def test_each_part_keeps_to_its_libraries(name: str) -> None:
    own = name.split("/")[0].removesuffix(".py")
    forbidden = FORBIDDEN.get(own, set(HEAVY)) - ({"tensorflow"} if name in MAY_IMPORT_TENSORFLOW else set())
    if own == "pipelines" and name not in MAY_IMPORT_TENSORFLOW:
        forbidden = {"tensorflow"}
    assert not {dotted.split(".")[0] for dotted in imported(name)} & forbidden


def test_the_reading_of_imports_sees_them() -> None:
    assert {"ray", "tensorflow", "raydenoise.model.denoiser.Denoiser"} <= imported("pipelines/process.py")
    assert [part(name) for name in ("raydenoise.config", "raydenoise.core.image", "raydenoise.__version__")] == [
        "config",
        "core",
        "__init__",
    ]


def test_the_bare_import_takes_milliseconds() -> None:
    code = (
        "import json, sys, time; start = time.perf_counter(); import raydenoise\n"
        "seconds = time.perf_counter() - start\n"
        "print(json.dumps([seconds, sorted({'ray', 'tensorflow', 'keras', 'numpy'} & set(sys.modules))]))"
    )
    runs = [run(code) for _ in range(5)]
    assert all(pulled == [] for _, pulled in runs)
    assert min(seconds for seconds, _ in runs) < 0.05  # the best: what another process takes is not ours


def test_light_modules_stay_light() -> None:
    light = [name for name in modules() if name.split("/")[0] in ("core", "data", "report")]
    light += [
        "model/card.py",
        "model/vetting.py",
        "model/trial.py",
        "config.py",
        "cli.py",
        "fetching.py",
        "preview.py",
        "inspection.py",
        "tuning.py",
    ]
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in light]
    statements = "; ".join(f"import raydenoise.{name}" for name in names)
    assert run(f"import json, sys; {statements}\nprint(json.dumps(sorted({set(HEAVY)} & set(sys.modules))))") == []

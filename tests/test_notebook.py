"""docs/notebook.ipynb: what is committed, and that it runs to its end in this interpreter."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import nbformat
import pytest
import ray
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from raydenoise import cli
from raydenoise.config import DenoiseConfig, PrepareConfig, TrainConfig, parse

DOCS = Path(__file__).resolve().parents[1] / "docs"
CONFIGS: dict[str, type] = {"prepare": PrepareConfig, "train": TrainConfig, "denoise": DenoiseConfig}
MOST_BYTES = 1_500_000
SMALL = {"CROP": 64, "COUNT": 2, "STEPS": 16, "VALIDATE": 8, "BATCH": 8, "SHOWN": 1}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(DOCS / "notebook.ipynb", as_version=4)


def sources(notebook: Any, kind: str) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_it_was_run_from_top_to_bottom_before_it_was_committed(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    pictures = [output for output in outputs(notebook) if {"image/png", "image/jpeg"} & set(output.get("data", {}))]
    assert len(pictures) == 4


def test_it_is_small_and_tells_no_private_place(notebook: Any) -> None:
    assert (DOCS / "notebook.ipynb").stat().st_size < MOST_BYTES
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not re.search(r"/home/|/root/|/work/|/Users/", json.dumps(notebook))


def test_its_links_lead_somewhere(notebook: Any) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", "\n".join(sources(notebook, "markdown"))):
        assert (DOCS / target).exists(), target
    for page, heading in re.findall(r"\]\(([^)#]+)#([^)]+)\)", "\n".join(sources(notebook, "markdown"))):
        titles = re.findall(r"^#+ (.*)$", (DOCS / page).read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, heading


def test_the_commands_that_it_names_are_understood(notebook: Any) -> None:
    text = " ".join("\n".join(sources(notebook, "markdown")).split())
    named = [shlex.split(command)[1:] for command in re.findall(r"`(raydenoise \w+ [^`]+)`", text)]
    assert {verb for verb, *_ in named} <= {*cli.VERBS, "tune"}
    for verb, *words in named:
        if verb in CONFIGS:  # what they leave out is --output
            parse(CONFIGS[verb], [*words, "--output", "out"], prog="", description="")


@pytest.fixture
def ray_for_its_commands() -> Iterator[str]:
    """One Ray for the three commands, which would start one each: 10 s."""
    context = ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["gcs_address"]
    ray.shutdown()


def run(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> dict[str, Any]:
    """Execute it with other parameters, in this interpreter; returns what its last cell knows."""
    parameter_cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in parameters.items():
        assert f"\n{name} = " in parameter_cell.source
        parameter_cell.source += f"\n{name} = {value!r}"
    told = "import json\nprint(json.dumps([sys.executable, scores, best, losses]))"
    notebook.cells.append(nbformat.v4.new_code_cell(told))
    kernel = folder / "kernels" / "this"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "this", "language": "python"}))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    manager = AsyncKernelManager(
        kernel_name="this", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernel.parent)])
    )
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=500, resources=resources)
    client.execute(cleanup_kc=True)  # the kernel manager is not its own
    interpreter, scores, best, losses = json.loads(notebook.cells[-1].outputs[0].text)
    assert Path(interpreter) == Path(sys.executable)
    return {"scores": scores, "best": best, "losses": losses}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_to_its_end(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_for_its_commands: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_for_its_commands)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")]))
    found = run(notebook, tmp_path, monkeypatch, **SMALL)
    scores = found["scores"]
    assert 20.0 < scores["noisy"]["psnr"] < 20.5  # sigma 25: 20 lg(255 / 25) = 20.17
    for model in ("autoencoder", "autoencoder-wide"):
        assert all(isfinite(value) for value in scores[model].values())
        first, *_, last = found["losses"][model]  # so few steps leave a network far below its input; but it learns
        assert last < first
        assert (tmp_path / "notebook-run" / "runs" / model / "autoencoder.h5").is_file()
    assert found["best"] == max(("autoencoder", "autoencoder-wide"), key=lambda name: scores[name]["psnr"])

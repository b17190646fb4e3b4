import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from raydenoise import config
from raydenoise.cli import VERBS
from raydenoise.config import (
    DenoiseConfig,
    EvaluateConfig,
    PrepareConfig,
    PreviewConfig,
    ReportConfig,
    TrainConfig,
    TuneConfig,
    parse,
)
from raydenoise.config.space import DomainName
from raydenoise.data.schema import EVALUATION, METRICS, PATCHES, TRAINING, TRIALS
from raydenoise.model import networks
from raydenoise.report.outliers import rules

ROOT = Path(__file__).resolve().parents[1]
AUTO = {"sigma": "auto"}  # with which every rule applies
SPREADS = {"gain_mad": 1.0, "sigma_in_mad": 1.0, "seconds_per_megapixel": 1.0}


def test_the_metrics_page_names_every_column_and_no_other() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| (string|int8|int32|int64|float|double|timestamp) \|", page, re.MULTILINE)
    named = [name for names, _ in rows for name in names.split(", ")]
    assert named == METRICS.names
    short = {"timestamp[us, tz=UTC]": "timestamp"}
    types = {name: short.get(str(METRICS.field(name).type), str(METRICS.field(name).type)) for name in METRICS.names}
    assert {name: kind for names, kind in rows for name in names.split(", ")} == types


def test_the_denoise_page_names_every_option() -> None:
    page = (ROOT / "docs" / "denoise.md").read_text()
    for entry in fields(DenoiseConfig):
        word = "INPUT" if entry.name == "input" else "--" + entry.name.replace("_", "-")
        assert word in page, word


def test_the_evaluation_page_names_every_column_and_option() -> None:
    page = (ROOT / "docs" / "evaluate.md").read_text()
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| (string|int8|int32|double|timestamp) \|", page, re.MULTILINE)
    named = {name: kind for names, kind in rows for name in names.split(", ")}
    short = {"timestamp[us, tz=UTC]": "timestamp"}
    kinds = {name: str(EVALUATION.field(name).type) for name in EVALUATION.names}
    assert named == {name: short.get(kind, kind) for name, kind in kinds.items()}
    for entry in fields(EvaluateConfig):
        word = "INPUT" if entry.name == "input" else "--" + entry.name.replace("_", "-")
        assert re.search(rf"{word}\b(?!-)", page.split("```")[3]), word


def test_the_training_page_names_every_column_of_a_shard_and_option_of_prepare() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| (string|int8|int32|binary) \|", page, re.MULTILINE)
    named = {name: kind for names, kind in rows for name in names.split(", ")}
    assert named == {name: str(PATCHES.field(name).type) for name in PATCHES.names}
    for entry in fields(PrepareConfig):
        word = "INPUT" if entry.name == "input" else "--" + entry.name.replace("_", "-")
        assert word in page, word


def test_the_training_page_names_every_column_of_a_run_and_option_of_train() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| (int64|double) \|", page, re.MULTILINE)
    named = {name: kind for names, kind in rows for name in names.split(", ")}
    assert named == {name: str(TRAINING.field(name).type) for name in TRAINING.names}
    _, part = page.split("\n## Train\n")
    for entry in fields(TrainConfig):
        word = "SHARDS" if entry.name == "shards" else "--" + entry.name.replace("_", "-")
        assert re.search(rf"{word}\b(?!-)", part.split("```")[1]), word


@pytest.mark.parametrize(
    ("name", "kind", "positional"), [("tuning", TuneConfig, "SHARDS"), ("preview", PreviewConfig, "INPUT")]
)
def test_the_pages_of_tune_and_preview_name_every_option(name: str, kind: Any, positional: str) -> None:
    usage = (ROOT / "docs" / f"{name}.md").read_text().split("```")[1]
    for entry in fields(kind):
        word = positional if entry.name == positional.lower() else "--" + entry.name.replace("_", "-")
        assert re.search(rf"{word}\b(?!-)", usage), word


def test_the_tuning_page_names_every_column_and_domain() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    rows = re.findall(r"^\| ([a-z_, ]+) \| (string|int64|double) \|", page, re.MULTILINE)
    assert {name: kind for names, kind in rows for name in names.split(", ")} == {
        name: str(TRIALS.field(name).type) for name in TRIALS.names
    }
    assert set(re.findall(r"^\| `\{([a-z]+): ", page, re.MULTILINE)) == set(get_args(DomainName))


def test_the_models_page_names_every_network() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)`", page, re.MULTILINE)) == set(networks.BUILDERS)


def test_the_report_page_names_every_option_and_rule() -> None:
    page = (ROOT / "docs" / "report.md").read_text()
    for entry in fields(ReportConfig):
        word = "OUT|RUN|EVAL|SHARDS" if entry.name == "folder" else "--" + entry.name.replace("_", "-")
        assert word in page.split("```")[1], word
    found = {rule.name for rule in rules(dict.fromkeys(("gain", "sigma_in", "seconds"), 1.0) | SPREADS, AUTO)}
    assert set(re.findall(r"^\| ([A-Z][^|]+?) \|", page, re.MULTILINE)) == found


def commands() -> list[str]:
    """What the README tells a reader to type: lines of its blocks without a language, and code in its sentences."""
    page = (ROOT / "README.md").read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if not language]
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", "").splitlines()]
    prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    typed = [span for span in spans if span.split()[0].split("/")[-1] in ("make", "python", "ray", "raydenoise")]
    return sorted({line for line in lines if line} | set(typed))


def check(command: str) -> None:
    """Check a command as far as that is possible without running it: `make test` and `make demo` run the rest."""
    match shlex.split(command):
        case [left] | [left, *_] if left.startswith("demo/out/"):  # what `make demo` leaves: tests/test_demo.py
            return
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["raydenoise", verb]:  # named in a sentence
            assert verb in VERBS
        case ["raydenoise" | ".venv/bin/raydenoise", verb, *arguments]:
            assert verb in VERBS
            parse(getattr(config, f"{verb.capitalize()}Config"), arguments, prog="", description="")
        case ["ray", "up" | "dashboard", file]:
            assert (ROOT / file).is_file()  # tests/test_cluster.py reads it as Ray does
        case ["export", *settings]:  # tests/test_jobs.py submits with these
            assert {setting.split("=")[0] for setting in settings} == {"RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"}
        case ["ray", "job", "submit", *words]:
            end = words.index("--")
            assert words[:end] in (["--working-dir", "."], ["--address", "http://HEAD:8265", "--working-dir", "."])
            python, file, *arguments = words[end + 1 :]
            assert python == "python"
            assert (ROOT / file).is_file()
            parse(getattr(config, f"{Path(file).stem.capitalize()}Config"), arguments, prog="", description="")
        case ["python", file, *arguments]:
            source = (ROOT / file).read_text()
            assert all(f'"{word}"' in source for word in arguments if word.startswith("--"))
        case _:
            raise AssertionError(f"no test knows {command!r}; allowed: a command that one runs or parses")


@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_readme_are_understood(command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    "command",
    ["make cake", "raydenoise bake x", "raydenoise denoise x --output y --bake", "rm -rf /", "ray up gone.yaml"],
)
def test_other_commands_are_not(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(command)


def test_the_commands_of_the_readme_are_found() -> None:
    found = commands()
    assert {"make demo", ".venv/bin/raydenoise report clean", "ray up cluster.yaml", "make check"} <= set(found)
    assert "raydenoise train shards --output run" in found


def test_the_python_of_the_readme_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {"image": np.full((24, 40, 3), 128, np.uint8)}
    exec(block, names)
    assert names["clean"].shape == (24, 40, 3)


def test_the_screenshot_is_small() -> None:
    assert (ROOT / "docs" / "report.png").stat().st_size < 300_000


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target

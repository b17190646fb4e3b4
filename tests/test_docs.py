import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from raydenoise.config import DenoiseConfig, EvaluateConfig, PrepareConfig, TrainConfig, parse
from raydenoise.data.schema import EVALUATION, METRICS, PATCHES, TRAINING
from raydenoise.model import networks

ROOT = Path(__file__).resolve().parents[1]


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


def test_the_models_page_names_every_network() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)`", page, re.MULTILINE)) == set(networks.BUILDERS)


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if re.match(r"(\.venv/bin/)?raydenoise denoise |ray job submit ", line)]


@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_readme_are_understood(command: str) -> None:
    words = shlex.split(command)
    verb = next(index for index, word in enumerate(words) if Path(word).stem == "denoise")
    config = parse(DenoiseConfig, words[verb + 1 :], prog="", description="")
    assert config.input
    assert config.output


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target

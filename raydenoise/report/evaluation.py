"""The page of an evaluation."""

from pathlib import Path
from typing import Any

from raydenoise.report.blocks import Page

KIND = "raydenoise evaluation"  # of the manifest


def page(root: Path, manifest: dict[str, Any]) -> Page:
    """Describe an evaluation."""
    return Page("evaluation", root.name, str(manifest.get("status")), [], [])

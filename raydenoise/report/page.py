"""`raydenoise report`: a folder that the other verbs wrote -> report.html, which needs nothing else, and its plots."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raydenoise import __version__
from raydenoise.config import ReportConfig
from raydenoise.data.manifest import (
    DENOISING_KIND,
    EVALUATION_KIND,
    MANIFEST,
    PAGE,
    PLOTS,
    TRAINING_KIND,
    check_writable,
    read_manifest,
)
from raydenoise.data.place import Place, place
from raydenoise.data.shards import KIND as SHARDS_KIND
from raydenoise.data.storage import publish
from raydenoise.report import denoising, evaluation, plots, shards, training
from raydenoise.report.blocks import Page, data_uri

Describe = Callable[[Place, dict[str, Any], int], Page]
KINDS: Mapping[str, Describe] = {
    DENOISING_KIND: lambda root, manifest, pictures: denoising.page(root, manifest, pictures=pictures),
    TRAINING_KIND: lambda root, manifest, _: training.page(root, manifest),
    EVALUATION_KIND: lambda root, manifest, _: evaluation.page(root, manifest),
    SHARDS_KIND: lambda root, manifest, _: shards.page(root, manifest),
}
ALLOWED = "the output folder of raydenoise denoise, train, evaluate or prepare"


def run(config: ReportConfig) -> dict[str, Any]:
    """Write the report of a folder; an earlier one is replaced. The same folder gives the same bytes.

    Raises:
        ValueError: it is no folder of a kind that has a report, or its tables cannot be read; nothing was written.
    """
    root = place(config.folder, argument="folder")
    target = place(config.output, argument="output") if config.output else root
    kind, manifest = recognise(root)
    check_writable(target)
    page = KINDS[kind](root, manifest, config.pictures)
    html = render(page)
    drawn = {f"{plot.name}.png": plot.light for plot in page.plots}
    for name in plots.NAMES:
        if f"{name}.png" not in drawn:
            (target / PLOTS / f"{name}.png").unlink(missing_ok=True)
    for name, png in drawn.items():
        publish(target / PLOTS / name, png)
    publish(target / PAGE, html.encode())
    return {"report": str(target / PAGE), "plots": [str(target / PLOTS / name) for name in drawn], "kind": page.kind}


def recognise(root: Place) -> tuple[str, dict[str, Any]]:
    """Tell what a folder is by its manifest: a key of `KINDS`, and the manifest.

    Raises:
        ValueError: it is none of them, or its bucket does not answer.
    """
    try:
        found = root.is_dir()
    except OSError as error:
        raise ValueError(f"{str(root)!r} cannot be reached: {error}") from error
    if not found:
        raise ValueError(f"{str(root)!r} is no folder; allowed: {ALLOWED}")
    kind, manifest = read_manifest(root, allowed=ALLOWED)
    if kind not in KINDS:
        raise ValueError(f"{root / MANIFEST} is of {kind!r}; allowed: {', '.join(map(repr, KINDS))}")
    return kind, manifest


def render(page: Page) -> str:
    """Write a page as HTML that loads nothing: styles, script and pictures are in it, and its policy says so."""
    environment = Environment(
        loader=PackageLoader("raydenoise.report"),
        autoescape=True,  # names of files and messages come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    style, script = (_own(environment, name) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        page=page,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        version=__version__,
    )


def _own(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])  # a file of this package


def _hash(text: str) -> str:
    """The form in which a Content-Security-Policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

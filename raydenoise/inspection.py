"""`raydenoise inspect`: what a model is, costs and was measured to do. Without Ray."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raydenoise.config import InspectConfig
from raydenoise.fetching import on_disk

WIDTH = 160  # characters at least: a table that wraps is none
TILES = (512, 1024)  # pixels, sides of the window, halo included


def run(config: InspectConfig) -> dict[str, Any]:
    """Load a model and describe it.

    Raises:
        ValueError: there is no such model, or it cannot be loaded.
    """
    from raydenoise.model import bundle, cost  # imports keras: after the arguments are read

    with on_disk(config.bundle) as path:
        loaded = bundle.load(path)
    card = loaded.card
    layers = cost.layer_costs(loaded.model, alignment=card.alignment)
    macs = cost.macs_per_pixel(layers)
    sides = (card.fixed_size,) if card.fixed_size else TILES
    tiles = {side: macs and cost.macs_with_halo(macs, tile=side, halo=card.halo) for side in sides}
    return {
        **asdict(card),
        "parameters": loaded.model.count_params(),
        "macs_per_pixel": macs,
        "macs_per_pixel_in_tiles": tiles,
        "layers": [asdict(layer) for layer in layers],
    }


def show(summary: Mapping[str, Any]) -> None:
    """Print a description to stdout."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    console.print(_facts(summary))
    console.print()
    console.print(_layers(summary))
    for title in ("training", "scores"):
        if summary[title]:
            console.print(f"\n{title}", style="bold")
            for name, value in _flat(summary[title]):
                console.print(Text(f"  {name}: {value}"))


def _facts(summary: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    arguments = "".join(f" {name}={value}" for name, value in summary["arguments"].items())
    table.add_row("name", Text(summary["name"]))
    table.add_row("architecture", Text(summary["architecture"] + arguments))
    table.add_row("takes", _taken(summary))
    table.add_row("parameters", f"{summary['parameters']:,}")
    table.add_row("work", _work(summary))
    reach = f"{summary['radius']} pixels around a cell of {summary['alignment']}x{summary['alignment']}"
    table.add_row("receptive radius", f"{reach}; halo {summary['halo']}")
    table.add_row("file", f"sha256 {summary['sha256']}")
    if summary["versions"]:
        told = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        table.add_row("written by", Text(told))
    return table


def _taken(summary: Mapping[str, Any]) -> str:
    planes = "grey pictures" if summary["channels"] == 1 else "RGB pictures"
    size = f" of {summary['fixed_size']}x{summary['fixed_size']} pixels alone" if summary["fixed_size"] else ""
    if not summary["noise_map"]:
        return f"{planes}{size}; no noise level"
    low, high = summary["sigma_range"]
    return f"{planes}{size} and the noise level, sigma {low:g} to {high:g}"


def _work(summary: Mapping[str, Any]) -> str:
    if summary["macs_per_pixel"] is None:
        return "unknown: it has layers that are not counted"
    tiles = [
        f"{macs / 1000:.1f} in tiles of {side}" if macs else f"a tile of {side} is all halo"
        for side, macs in summary["macs_per_pixel_in_tiles"].items()
    ]
    return f"{summary['macs_per_pixel'] / 1000:.1f} kMAC per pixel; {', '.join(tiles)} (halo included)"


def _layers(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("layer", "kind", "output", "kernel", "parameters", "kMAC/pixel"):
        table.add_column(
            title, justify="left" if title in ("layer", "kind", "output", "kernel") else "right", no_wrap=True
        )
    for layer in summary["layers"]:
        kernel = "x".join(map(str, layer["kernel"])) if layer["kernel"] else ""
        macs = "?" if layer["macs"] is None else f"{layer['macs'] / 1000:.2f}" if layer["macs"] else ""
        parameters = f"{layer['parameters']:,}" if layer["parameters"] else ""
        table.add_row(Text(layer["name"]), layer["kind"], _output(layer), kernel, parameters, macs)
    return table


def _output(layer: Mapping[str, Any]) -> str:
    """Height, width and channels, as parts of the picture's: "H/2 x W/2 x 48"."""
    factor = 1 / layer["scale"] if layer["scale"] else 0
    part = "" if factor == 1 else f"/{factor:g}" if factor >= 1 else f"*{layer['scale']:g}"
    return f"H{part} x W{part} x {layer['channels']}" if factor else f"{layer['channels']}"


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested facts; the innermost mapping stays on one line."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            yield from _flat(value, f"{above}{name}, ")
        elif isinstance(value, Mapping):
            yield above + str(name), ", ".join(f"{key} {inner}" for key, inner in value.items())
        else:
            yield above + str(name), value

"""The page of a folder of shards."""

from collections.abc import Iterator
from typing import Any

from raydenoise.data.place import Place
from raydenoise.data.schema import SPLITS
from raydenoise.report.blocks import MISSING, Page, Section, Sheet, Table, Tile, how_it_ran, number, when

SHEETS = {"train.png": "patches of the training split", "test.png": "patches of the test split"}


def page(root: Place, manifest: dict[str, Any]) -> Page:
    """Describe what `raydenoise prepare` wrote.

    Args:
        root: SHARDS.
        manifest: its content.
    """
    images = manifest.get("images", {})
    splits = manifest.get("splits", {})
    patches = sum(split["patches"] for split in splits.values())
    failed = images.get("failed", 0)
    side = manifest.get("patch", MISSING)
    sections = [
        Section("Samples", found) if (found := list(sheets(root))) else None,
        Section("Splits", [_splits(splits)], text="By picture: no picture gives patches to two splits."),
        _reported("Failures", manifest.get("failures", []), failed),
        _reported("Without a patch", manifest.get("skipped", []), images.get("skipped", 0)),
        how_it_ran({"Options": manifest.get("config"), "Versions": manifest.get("versions")}),
    ]
    return Page(
        kind="shards",
        title=root.name,
        status=str(manifest.get("status", MISSING)),
        facts=[
            f"patches of {side}x{side}",
            "pairs" if manifest.get("paired") else "clean, noise is added in training",
            f"seed {manifest.get('seed', MISSING)}",
            *when(manifest),
        ],
        tiles=[
            Tile("pictures", number(images.get("listed", 0)), f"{images.get('skipped', 0):,} without a patch"),
            Tile("failed", number(failed), tone="bad" if failed else "plain"),
            Tile("patches", number(patches), ", ".join(manifest.get("dtypes", []))),
        ],
        sections=[section for section in sections if section is not None],
    )


def sheets(root: Place) -> Iterator[Sheet]:
    """The sample sheets of a folder of shards that are there and can be read."""
    for name, told in SHEETS.items():
        try:
            yield Sheet(told, (root / name).read_bytes())
        except OSError:
            continue  # a split without patches has none


def _splits(splits: dict[str, Any]) -> Table:
    rows = [
        (
            name,
            number(split["images"]),
            number(split["patches"]),
            number(len(split["files"])),
            number(sum(file["bytes"] for file in split["files"]) / 1e6, 1),
        )
        for name in SPLITS
        if (split := splits.get(name))
    ]
    return Table(("split", "pictures", "patches", "files", "MB"), rows, "tnnnn")


def _reported(title: str, listed: list[dict[str, Any]], count: int) -> Section | None:
    if not count:
        return None
    rows = [(row["error_type"], row["uri"], row["error_message"]) for row in listed]
    more = f"{count:,} pictures" + (f", the first {len(listed)} of them here" if len(listed) < count else "")
    return Section(
        title, [Table(("type", "picture", "why"), rows, "tct")], text=f"{more}; all are in failures.parquet."
    )

"""How far a denoising job is, from its folder alone: from another terminal, or another machine."""

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raydenoise.config import StatusConfig
from raydenoise.data.lease import is_alive, newest
from raydenoise.data.manifest import DENOISING_KIND, MANIFEST, Output, read_manifest
from raydenoise.data.place import Place, place
from raydenoise.data.schema import METRICS
from raydenoise.report.query import Rows

SHOWN = 5  # kinds of failures, and failures
RECENT = "INTERVAL 10 MINUTE"  # of committed rows, for the rate: what a long job does now


def run(config: StatusConfig) -> dict[str, Any]:
    """Tell how far a job is. Rows count once they are committed, every 30 s.

    A job that is starting has not said yet how many pictures it is asked for: `pictures`, `left` and `started_at` are
    None then.

    Raises:
        ValueError: it is no folder of a denoising job, or cannot be read.
    """
    root = place(config.output, argument="output")
    manifest, state = _look(root)  # first: the rows of a job that has ended are all there
    rows = Rows(Output(root).metrics, METRICS, fetch=False)
    counts = rows.one(
        "SELECT count(*) AS done, count(*) FILTER (status <> 'ok') AS failed, max(finished_at) AS last FROM rows"
    )
    recent = rows.one(
        "SELECT count(*) AS images, epoch(max(finished_at)) - epoch(min(finished_at)) AS seconds FROM rows "
        f"WHERE finished_at > (SELECT max(finished_at) FROM rows) - {RECENT}"
    )
    kinds = rows.all(
        "SELECT error_type AS type, count(*) AS images, min(error_message) AS example FROM rows WHERE status <> 'ok' "
        f"GROUP BY error_type ORDER BY images DESC, type LIMIT {SHOWN}"
    )
    total = manifest.get("pictures")
    rate = (recent["images"] - 1) / recent["seconds"] if recent["images"] > 1 and recent["seconds"] else None
    # OUT may hold more than the last command asked for, as by --limit
    left = max(0, total - counts["done"]) if total is not None else None
    seconds = left / rate if left is not None and rate and state == "running" and counts["done"] <= total else None
    return {
        "output": str(root),
        "state": state,
        "started_at": manifest.get("started_at"),
        "pictures": total,
        "done": counts["done"],
        "failed": counts["failed"],
        "left": left,
        "last_row_at": counts["last"].isoformat() if isinstance(counts["last"], datetime) else None,
        "images_per_s": round(rate, 3) if rate else None,
        "seconds_left": round(seconds) if seconds is not None else None,
        "failures": kinds,
    }


def _manifest(root: Place) -> dict[str, Any]:
    kind, manifest = read_manifest(root, allowed="the OUT of raydenoise denoise")
    if kind != DENOISING_KIND or "pictures" not in manifest:
        raise ValueError(f"{root / MANIFEST} is of {kind!r}; allowed: {DENOISING_KIND!r} of this version")
    return manifest


def _look(root: Place) -> tuple[dict[str, Any], str]:
    """The manifest, and the state: what it says; where it says running, whether a job still renews the lease.

    A job that begins takes the lease some time before it writes its manifest: one of another holder, or none, is then
    not its own, and it is starting. A job that ends writes its manifest before it gives the lease up: where nobody
    holds it, the manifest counts again.
    """
    manifest: dict[str, Any] = {"lease": None}
    number, lease = newest(root)
    if lease is not None and lease["held"]:
        if (root / MANIFEST).exists():
            manifest = _manifest(root)
        is_its = manifest.get("lease", lease["holder"]) == lease["holder"]
        has_ended = is_its and manifest["status"] != "running"
        if not has_ended and is_alive(root, number, lease):
            return (manifest, "running") if is_its else ({}, "starting")
    manifest = _manifest(root)
    return manifest, "killed" if manifest["status"] == "running" else manifest["status"]


def show(summary: dict[str, Any]) -> None:
    """Print it for people."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    state = summary["state"]
    again = "" if state in ("starting", "running", "finished") else "; the same command goes on with it"
    began = f", started {summary['started_at']}" if summary["started_at"] else ""
    table.add_row("state", f"{state}{began}{again}")
    done, pictures, failed = summary["done"], summary["pictures"], f"{summary['failed']} failed"
    if pictures is None:
        table.add_row("done", f"{done} pictures, {failed}")
    elif done > pictures:
        table.add_row("done", f"{done} pictures, {failed}; the last command asked for {pictures}")
    else:
        share = f" ({done / pictures:.1%})" if pictures else ""
        table.add_row("done", f"{done} of {pictures} pictures{share}, {failed}")
    if summary["images_per_s"]:
        left = summary["seconds_left"]
        told = f", about {left} s left" if left is not None else ""
        table.add_row("rate", f"{summary['images_per_s']:g} images/s in the last minutes{told}")
    for kind in summary["failures"]:
        table.add_row("failed", Text(f"{kind['images']} {kind['type']}, such as: {kind['example']}"))
    table.add_row("output", Text(summary["output"]))
    console.print(table)

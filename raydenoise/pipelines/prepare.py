"""Pictures -> patches -> shards, on Ray Data: list -> survey -> lay out -> cut and write -> manifest.

The driver never sees a pixel: the survey returns counts, each shard is one task that reads its pictures again.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from raydenoise.config import PrepareConfig
from raydenoise.data import inputs, storage
from raydenoise.data.layout import Piece, Shard, Surveyed, lay_out
from raydenoise.data.lease import check_free, held
from raydenoise.data.manifest import check_empty, recorded, utc_now, versions
from raydenoise.data.place import Place, place
from raydenoise.data.schema import FAILURES, PICTURES, SHARDS, SPLITS, SURVEY, WRITTEN
from raydenoise.data.shards import HEAD, MANIFEST, read_shard
from raydenoise.pipelines.attempts import LIMIT, each, start, watching
from raydenoise.pipelines.cutter import Cut, Cutter
from raydenoise.pipelines.displays import Display
from raydenoise.pipelines.parcels import grouped, pack, unpack
from raydenoise.pipelines.session import (
    cluster_address,
    configure_data,
    cores,
    session,
    task_rows,
    waiting_for_nodes,
)
from raydenoise.pipelines.sharing import check_present, check_shared, local_files
from raydenoise.pipelines.stages import PARCELS
from raydenoise.pipelines.summaries import SHOWN_FAILURES
from raydenoise.report.sheets import patch_sheet

LISTED = 100  # failures in the manifest; all are in failures.parquet


@dataclass
class Result:
    """What is known of a job's pictures so far.

    Attributes:
        listed: number of pictures.
        usable: those with patches.
        reports: rows of `schema.FAILURES` by key: failed and skipped pictures.
        written: rows of `schema.WRITTEN`.
        images: pictures with patches in each split.
        channels: that occur.
        dtypes: that occur.
    """

    listed: int
    usable: list[Surveyed] = field(default_factory=list)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    channels: set[int] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)

    def reported(self, status: str) -> list[dict[str, Any]]:
        """Rows of one status, by key."""
        return [row for _, row in sorted(self.reports.items()) if row["status"] == status]


def run(config: PrepareConfig) -> dict[str, Any]:
    """Prepare a collection and return the summary.

    Raises:
        ValueError: an argument is not allowed, no Ray answers at the address, its machines do not share a local folder,
            or there is no patch in all pictures; no more than a lease was written.
        RuntimeError: the job broke.
    """
    started = time.monotonic()
    root = place(config.output, argument="output")
    check_output = partial(check_empty, root)
    check_output()
    free = check_free(root)
    pictures = list_pictures(config)
    result = Result(len(pictures))
    address = cluster_address(config.address)
    manifest: dict[str, Any] = {
        **HEAD,
        "patch": config.patch,
        "paired": config.clean is not None,
        "seed": config.seed,
        "config": asdict(config),
        "versions": versions(),
        "ray": {"address": address or "local"},
        "started_at": utc_now().isoformat(),
    }
    with session(address, cpus=cores(), gpus=0, verbose=config.verbose):
        check_shared(_read_files(pictures), output=root)
        configure_data(verbose=config.verbose)
        with held(root, free=free, check=check_output) as lease:
            attempts = start(LIMIT, agreed=root, known={})
            _survey(config, pictures, result, attempts)
            _check_patches(result)
            with recorded(root, manifest, allowed=lease.check):
                try:
                    _write(config, pictures, lay_out(result.usable, config.split, seed=config.seed), result, attempts)
                    _publish_failures(root, result)
                    _draw_sheets(root, result)
                finally:
                    manifest |= _outcome(result)
    return _summary(result, seconds=time.monotonic() - started, output=str(root))


def list_pictures(config: PrepareConfig) -> pa.Table:
    """List INPUT, or pair the noisy pictures with clean ones: rows of `schema.PICTURES`.

    Raises:
        ValueError: nothing is there, or nothing fits.
    """
    if config.clean is None or config.noisy is None:
        listed = inputs.list_all(config.input)[: config.limit]
        return pa.table([[s.uri for s in listed], [s.key for s in listed], [None] * len(listed)], schema=PICTURES)
    inputs.check_folder(config.noisy, argument="noisy")
    listed = inputs.list_sources(config.noisy, argument="noisy")[: config.limit]
    keys = [source.key for source in listed]
    clean = inputs.pair_references(keys, config.clean, argument="clean")
    return pa.table([clean, keys, [source.uri for source in listed]], schema=PICTURES)


def _read_files(pictures: pa.Table) -> list[str]:
    """Local files of the inputs that every machine must see."""
    return local_files(pictures, "uri", "noisy_uri")


def survey(
    pictures: ray.data.Dataset, *, cutter: Cutter, attempts: "ray.actor.ActorHandle", present: Sequence[str]
) -> ray.data.Dataset:
    """The first pass: pictures in, parcels of rows of `schema.SURVEY` out."""
    kwargs = {"cutter": cutter, "attempts": attempts, "present": present}
    return pictures.map_batches(survey_batch, fn_kwargs=kwargs, batch_size=None, batch_format="pyarrow", num_cpus=1)


def survey_batch(
    batch: pa.Table, *, cutter: Cutter, attempts: "ray.actor.ActorHandle", present: Sequence[str]
) -> Iterator[pa.Table]:
    """Survey pictures one by one; an eighth of the task's rows a parcel."""
    check_present(present)
    rows = each(
        watching(attempts),
        batch.to_pylist(),
        cutter.survey,
        key=lambda picture: str(picture["key"]),
        stage="survey",
        given_up=lambda picture, error: {**picture, "status": "error", **error},
    )
    for some in grouped(rows, size=-(-len(batch) // PARCELS)):
        yield pack(pa.Table.from_pylist(some, schema=SURVEY))


def write(
    shards: ray.data.Dataset,
    *,
    cutter: Cutter,
    attempts: "ray.actor.ActorHandle",
    present: Sequence[str],
    root: Place,
) -> ray.data.Dataset:
    """The second pass: a row of `schema.SHARDS` in, a file on the disk, a parcel of `schema.WRITTEN` out."""
    seen = [str(root / MANIFEST)] if isinstance(root, Path) else []  # which the driver wrote before
    kwargs = {"cutter": cutter, "attempts": attempts, "present": [*present, *seen], "root": root}
    return shards.map_batches(write_batch, fn_kwargs=kwargs, batch_size=None, batch_format="pyarrow", num_cpus=1)


def write_batch(
    batch: pa.Table,
    *,
    cutter: Cutter,
    attempts: "ray.actor.ActorHandle",
    present: Sequence[str],
    root: Place,
) -> Iterator[pa.Table]:
    """Write shards, one at a time."""
    check_present(present)
    watch = watching(attempts)
    for row in batch.to_pylist():
        shard = Shard(row["name"], row["split"], tuple(Piece(**piece) for piece in row["pieces"]))
        cuts = each(
            watch,
            shard.pieces,
            cutter.attempt,
            key=partial(_name, shard),
            stage="cut",
            given_up=_why,
        )
        yield pack(pa.Table.from_pylist([cutter.write(shard, root, cuts)], schema=WRITTEN))


def _name(shard: Shard, piece: Piece) -> str:
    """Name a piece: other shards may have pieces of its picture as well."""
    return f"{shard.name}: {piece.key}"


def _why(_: Piece, error: dict[str, str]) -> Cut:
    return error


def _survey(config: PrepareConfig, pictures: pa.Table, result: Result, attempts: "ray.actor.ActorHandle") -> None:
    rows = task_rows(len(pictures), workers=max(1, int(ray.cluster_resources().get("CPU", 1))))
    blocks = [pictures.slice(first, rows) for first in range(0, len(pictures), rows)]
    found = survey(
        ray.data.from_blocks(blocks), cutter=Cutter(config), attempts=attempts, present=_read_files(pictures)
    )
    seen = failed = 0
    with _display(config, len(pictures), doing="surveying", begin="starting Ray") as display:
        for row in _rows(found):
            seen += 1
            failed += row["status"] == "error"
            if row["status"] == "ok":
                names = ("uri", "key", "noisy_uri", "digest", "patches", "patch_bytes")
                result.usable.append(Surveyed(*(row[name] for name in names)))
                result.channels.add(row["channels"])
                result.dtypes.add(row["dtype"])
            else:
                report = {name: row[name] for name in FAILURES.names}
                result.reports[row["key"]] = {**report, "uri": row["uri"] or row["noisy_uri"]}
            display.update(done=seen, failed=failed)
    if seen != len(pictures):
        raise RuntimeError(f"{seen} of {len(pictures)} pictures have a row; the others were lost on the way")


def _check_patches(result: Result) -> None:
    if result.usable:
        return
    failed, skipped = result.reported("error"), result.reported("skipped")
    first = (failed + skipped)[0]
    raise ValueError(
        f"no patch in {result.listed} pictures: {len(failed)} failed, {len(skipped)} have none, such as "
        f"{first['key']}: {first['error_message']}; allowed: at least one picture with a patch"
    )


def _write(
    config: PrepareConfig,
    pictures: pa.Table,
    shards: list[Shard],
    result: Result,
    attempts: "ray.actor.ActorHandle",
) -> None:
    blocks = [pa.Table.from_pylist([asdict(shard)], schema=SHARDS) for shard in shards]
    found = write(
        ray.data.from_blocks(blocks),
        cutter=Cutter(config),
        attempts=attempts,
        present=_read_files(pictures),
        root=place(config.output),
    )
    pieces = sum(len(shard.pieces) for shard in shards)
    done = failed = 0
    with _display(config, pieces, doing="cutting", begin="reading them again") as display:
        for row in _rows(found):
            result.written.append(row)
            done += row["pieces"]
            failed += len(row["failures"])
            result.reports.update({failure["key"]: {**failure, "status": "error"} for failure in row["failures"]})
            display.update(done=done, failed=failed)
    if len(result.written) != len(shards):
        raise RuntimeError(f"{len(result.written)} of {len(shards)} shards were written; the others were lost")
    if not any(row["rows"] for row in result.written):
        raise RuntimeError("no patch was written: every picture changed or vanished while the job ran")
    result.written.sort(key=lambda row: str(row["name"]))
    for split in SPLITS:
        keys = {piece.key for shard in shards if shard.split == split for piece in shard.pieces}
        result.images[split] = len(keys - result.reports.keys())


def _rows(results: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for rows in unpack(batch):
                yield from rows.to_pylist()
    except ValueError as error:  # Ray's task errors take the type of their cause: no argument is to blame here
        raise RuntimeError(str(error)) from error


def _display(config: PrepareConfig, total: int, *, doing: str, begin: str) -> Display:
    waiting = partial(waiting_for_nodes, cpus=1)
    return Display(total, doing=doing, begin=begin, quiet=config.quiet, waiting=waiting)


def _publish_failures(root: Place, result: Result) -> None:
    if result.reports:
        rows = result.reported("error") + result.reported("skipped")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=FAILURES), sink)
        storage.publish(root / "failures.parquet", memoryview(sink.getvalue()))


def _outcome(result: Result) -> dict[str, Any]:
    """The part of the manifest that the job found out."""
    splits = {}
    for split in SPLITS:
        files = [row for row in result.written if row["split"] == split and row["rows"]]
        splits[split] = {
            "images": result.images.get(split, 0),
            "patches": sum(row["rows"] for row in files),
            "files": [{name: row[name] for name in ("name", "rows", "bytes")} for row in files],
        }
    failed, skipped = result.reported("error"), result.reported("skipped")
    columns = ("uri", "error_type", "error_message")
    return {
        "dtypes": sorted(result.dtypes),
        "channels": sorted(result.channels),
        "splits": splits,
        "images": {"listed": result.listed, "failed": len(failed), "skipped": len(skipped)},
        "failures": [{name: row[name] for name in columns} for row in failed[:LISTED]],
        "skipped": [{name: row[name] for name in columns} for row in skipped[:LISTED]],
    }


def _draw_sheets(root: Place, result: Result) -> None:
    for split in ("train", "test"):
        files = [read_shard(root / row["name"]) for row in result.written if row["split"] == split and row["rows"]]
        if files:
            patch_sheet(files, path=root / f"{split}.png")


def _summary(result: Result, *, seconds: float, output: str) -> dict[str, Any]:
    outcome = _outcome(result)
    splits = {
        name: {
            "images": split["images"],
            "patches": split["patches"],
            "files": len(split["files"]),
            "megabytes": round(sum(file["bytes"] for file in split["files"]) / 1e6, 1),
        }
        for name, split in outcome["splits"].items()
    }
    failed = result.reported("error")
    return {
        "output": output,
        "images": result.listed,
        "used": sum(result.images.values()),
        "skipped": outcome["images"]["skipped"],
        "failed": len(failed),
        "splits": splits,
        "patches": sum(split["patches"] for split in splits.values()),
        "seconds": round(seconds, 1),
        "first_failures": [{"key": row["key"], "error": row["error_message"]} for row in failed[:SHOWN_FAILURES]],
    }

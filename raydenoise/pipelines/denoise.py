"""The main job: list -> decode -> denoise -> publish -> metrics rows -> parquet, on Ray Data."""

import os
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from raydenoise.config import DenoiseConfig
from raydenoise.data import storage
from raydenoise.data.manifest import DENOISING_KIND, Output, RowWriter, recorded, versions
from raydenoise.data.schema import METRICS, SOURCES
from raydenoise.model.card import Card, check_sigma, locate, read_checked
from raydenoise.pipelines.displays import Display
from raydenoise.pipelines.gauges import Gauges
from raydenoise.pipelines.session import (
    Plan,
    cluster_address,
    configure_data,
    local_cpus,
    make_plan,
    session,
    waiting_for_nodes,
)
from raydenoise.pipelines.stages import DenoiseActor, FusedActor, ModelFiles, Stages, decode_batch, publish_batch
from raydenoise.pipelines.summaries import Totals

BLOCK_BYTES = 4096  # a few metrics rows, or one picture: rows come as they are done, not at the end of a task
GPU_BATCH = 4  # pictures handed to a GPU actor at a time; Ray wants a number with num_gpus


def run(config: DenoiseConfig) -> dict[str, Any]:
    """Denoise a collection and return the summary.

    Raises:
        ValueError: an argument is not allowed, or no Ray answers at the address; nothing was written.
        RuntimeError: the job broke.
    """
    started = time.monotonic()
    output = Output(Path(config.output).absolute())
    output.check_free()
    files, card = read_model(config)
    sources = list_sources(config)
    manifest: dict[str, Any] = {
        "kind": DENOISING_KIND,
        "config": asdict(config),
        "model": {"name": card.name, "sha256": card.sha256, "architecture": card.architecture},
        "versions": versions(),
    }
    address = cluster_address(config.address)
    with session(address, cpus=local_cpus(config), verbose=config.verbose):
        plan = make_plan(config, images=len(sources))
        manifest["tile"] = card.grid(config.tile).tile
        manifest["ray"] = {"address": address or "local", "plan": asdict(plan)}
        totals = Totals()
        with recorded(output.root, manifest):
            try:
                _execute(config, output=output, sources=sources, files=files, card=card, plan=plan, totals=totals)
            except ValueError as error:  # Ray's task errors take the type of their cause: no argument is to blame here
                raise RuntimeError(str(error)) from error
            finally:
                summary = totals.summary(seconds=time.monotonic() - started, output=str(output.root))
                manifest |= {"precision": sorted(totals.precisions), "summary": summary}
    return summary


def _execute(
    config: DenoiseConfig,
    *,
    output: Output,
    sources: pa.Table,
    files: ModelFiles,
    card: Card,
    plan: Plan,
    totals: Totals,
) -> None:
    """Run the pipeline and collect its rows."""
    configure_data(block_bytes=BLOCK_BYTES, verbose=config.verbose)
    stages = Stages(config, output.root, {"model": card.name, "model_sha256": card.sha256})
    blocks = [sources.slice(first, plan.rows) for first in range(0, len(sources), plan.rows)]
    results = denoise(ray.data.from_blocks(blocks), files=files, stages=stages, plan=plan)

    writer, gauges = RowWriter(output.metrics, schema=METRICS, now=time.monotonic()), Gauges()
    waiting = partial(waiting_for_nodes, cpus=plan.cpus, gpus=plan.gpus)
    begin = "starting Ray and the model"
    with Display(len(sources), doing="denoising", begin=begin, quiet=config.quiet, waiting=waiting) as display:
        try:
            for rows in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                writer.add(rows, now=time.monotonic())
                totals.add(rows, referenced=config.reference is not None)
                gauges.add(rows)
                display.update(done=totals.images, failed=totals.failed)
        finally:
            writer.flush(now=time.monotonic())
    if totals.images != len(sources):
        raise RuntimeError(f"{totals.images} of {len(sources)} pictures have a row; the others were lost on the way")


def denoise(sources: ray.data.Dataset, *, files: ModelFiles, stages: Stages, plan: Plan) -> ray.data.Dataset:
    """The pipeline: sources in, metrics rows out; pictures are written on the way.

    On CPUs all stages share one process, so that no pixel is copied between processes. A GPU actor only denoises:
    decoding and encoding run beside it on CPUs of their own.
    """
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=plan.actors, initial_size=plan.initial, max_tasks_in_flight_per_actor=2
    )
    actor = {"compute": pool, "num_cpus": plan.cpus, "batch_format": "pyarrow"}
    if plan.fused:
        return sources.map_batches(
            FusedActor, fn_constructor_args=[ray.put(files), stages, plan.cpus], batch_size=None, **actor
        )
    return (
        sources.map_batches(decode_batch, fn_kwargs={"stages": stages}, batch_format="pyarrow", num_cpus=1)
        .map_batches(
            DenoiseActor,
            fn_constructor_args=[ray.put(files), stages, None],
            batch_size=GPU_BATCH,
            num_gpus=plan.gpus,
            **actor,
        )
        .map_batches(publish_batch, fn_kwargs={"stages": stages}, batch_format="pyarrow", num_cpus=0.5)
    )


def list_sources(config: DenoiseConfig) -> pa.Table:
    """List INPUT, name the outputs, pair the references.

    Raises:
        ValueError: there is no input, or no reference fits.
    """
    listed = storage.list_sources(config.input)[: config.limit]
    keys = [source.key for source in listed]
    references = storage.pair_references(keys, config.reference) if config.reference else [None] * len(keys)
    names = storage.output_keys(keys, config.written_format)
    return pa.table([[source.uri for source in listed], keys, names, references], schema=SOURCES)


def read_model(config: DenoiseConfig) -> tuple[ModelFiles, Card]:
    """Read the model and check that the arguments fit it.

    Raises:
        ValueError: there is no such model, or sigma or tile do not fit it.
    """
    files, card = read_files(config.model)
    card.grid(config.tile)
    if config.sigma != "auto":
        check_sigma(config.sigma, card=card)
    return files, card


def read_files(name_or_path: str) -> tuple[ModelFiles, Card]:
    """Read a model once, here; the actors get its bytes. A bare file is inspected and becomes a bundle.

    Raises:
        ValueError: there is no such model.
    """
    path = locate(name_or_path)
    if path.is_dir():
        files, card = ModelFiles.read(path), read_checked(path)
    else:
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leave the GPU to the actors
        from raydenoise.model import bundle  # imports keras: only a bare file needs it here

        with tempfile.TemporaryDirectory() as folder:
            loaded = bundle.load(path)
            bundle.write(loaded, Path(folder))
            files, card = ModelFiles.read(Path(folder)), loaded.card
    return files, card

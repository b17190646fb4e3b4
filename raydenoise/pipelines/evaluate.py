"""Compare methods on one set of pictures, on Ray Data: list -> read, add noise, denoise, measure -> rows -> verdicts.

One stage: an actor holds every model, so that a picture is read and noised once, and no pixel travels.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from raydenoise.config import EvaluateConfig
from raydenoise.config.evaluate import SIGMAS
from raydenoise.core.classical import CLASSICAL, check_installed
from raydenoise.data import inputs, storage
from raydenoise.data.lease import check_free, held
from raydenoise.data.manifest import EVALUATION_KIND, RowWriter, check_empty, recorded, versions
from raydenoise.data.place import Place, place
from raydenoise.data.schema import EVALUATED, EVALUATION, EVALUATION_SOURCES
from raydenoise.data.shards import ShardSet, is_shards, read_manifest, read_places
from raydenoise.evaluation.sheet import draw_sheet
from raydenoise.evaluation.summary import summarize, to_markdown
from raydenoise.fetching import on_disk
from raydenoise.model.card import Card, check_sigma
from raydenoise.pipelines.attempts import LIMIT, each, start, watching
from raydenoise.pipelines.displays import Display
from raydenoise.pipelines.evaluator import NOISY, Evaluator, Task, classical, network
from raydenoise.pipelines.parcels import grouped, pack, unpack
from raydenoise.pipelines.process import (
    ModelFiles,
    load_denoiser,
    prepare_tensorflow,
    read_files,
    tried,
    worker_name,
)
from raydenoise.pipelines.session import (
    Plan,
    cluster_address,
    configure_data,
    local_cpus,
    make_plan,
    session,
    waiting_for_nodes,
)
from raydenoise.pipelines.sharing import check_shared, local_files
from raydenoise.pipelines.stages import PARCELS

STAGE = "evaluate"

Models = dict[str, tuple[ModelFiles, Card] | None]  # by name in the tables; None for a classical method


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate methods and return the summary.

    Raises:
        ValueError: an argument is not allowed, no Ray answers at the address, or its machines do not share a local
            folder; nothing was written.
        RuntimeError: the job broke.
    """
    started = time.monotonic()
    root = place(config.output, argument="output")
    check_output = partial(check_empty, root)
    check_output()
    free = check_free(root)
    sources, paired = list_sources(config)
    models = read_models(config)
    task = make_task(config, models, paired=paired)
    address = cluster_address(config.address)
    manifest: dict[str, Any] = {
        "kind": EVALUATION_KIND,
        "config": asdict(config),
        "noise": "pairs" if paired else {"sigmas": task.sigmas},
        "sigma_sources": task.sources,
        "models": {name: _facts(model) for name, model in models.items()},
        "versions": versions(),
    }
    with (
        tried({name: model[0] for name, model in models.items() if model is not None}) as wait,
        session(address, cpus=local_cpus(config), gpus=config.gpus_per_actor, verbose=config.verbose),
    ):
        plan = make_plan(config, images=len(sources))
        wait()
        check_shared(_read_files(sources), output=root)
        manifest["ray"] = {"address": address or "local", "plan": asdict(plan)}
        with held(root, free=free, check=check_output) as lease, recorded(root, manifest, allowed=lease.check):
            try:
                rows = _execute(task, root=root, sources=sources, models=models, plan=plan)
            except ValueError as error:  # Ray's task errors take the type of their cause: no argument is to blame here
                raise RuntimeError(str(error)) from error
            facts = {"output": str(root), "seconds": round(time.monotonic() - started, 1)}
            summary = facts | _publish(rows, config, root=root, methods=[NOISY, *models])
            manifest["summary"] = {name: summary[name] for name in ("images", "ok", "failed")}
    return summary


def _read_files(sources: pa.Table) -> list[str]:
    """Local files of INPUT that every machine must see."""
    return local_files(sources, "shard") or local_files(sources, "uri", "noisy_uri")


def evaluate(
    sources: ray.data.Dataset,
    *,
    models: Models,
    task: Task,
    plan: Plan,
    attempts: "ray.actor.ActorHandle",
    present: list[str],
) -> ray.data.Dataset:
    """The pipeline: rows of `schema.EVALUATION_SOURCES` in, parcels of tables of `schema.EVALUATED` out."""
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=plan.actors, initial_size=plan.initial, max_tasks_in_flight_per_actor=2
    )
    return sources.map_batches(
        EvaluateActor,
        fn_constructor_args=[ray.put(models), task, None if plan.gpus else plan.cpus, attempts, present],
        batch_size=plan.rows,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=plan.cpus,
        num_gpus=plan.gpus or None,
    )


class EvaluateActor:
    """One process with all models in memory."""

    def __init__(
        self,
        models: "ray.ObjectRef[Models]",
        task: Task,
        threads: int | None,
        attempts: "ray.actor.ActorHandle",
        present: Sequence[str],
    ) -> None:
        self._watch = watching(attempts, present=present)
        held: Models = ray.get(models)
        config = task.config
        if any(held.values()):
            prepare_tensorflow(threads)
        methods = [
            classical(name, strength=config.strength)
            if model is None
            else network(name, load_denoiser(model[0], config), strength=config.strength, tta=config.tta)
            for name, model in held.items()
        ]
        self._evaluate = Evaluator(task, methods, worker=worker_name())

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Evaluate pictures one by one."""
        done = each(
            self._watch,
            batch.to_pylist(),
            lambda source: list(self._evaluate(source)),
            key=lambda source: str(source["key"]),
            stage=STAGE,
            given_up=lambda source, error: [self._evaluate.failed(source, error)],
        )
        for some in grouped(done, size=-(-len(batch) // PARCELS)):
            yield pack(pa.Table.from_pylist(list(chain.from_iterable(some)), schema=EVALUATED))


def list_sources(config: EvaluateConfig) -> tuple[pa.Table, bool]:
    """List INPUT, pictures or stored patches: rows of `schema.EVALUATION_SOURCES`, and whether they are pairs.

    Raises:
        ValueError: there is no input, or an argument does not go with it.
    """
    if is_shards(config.input):
        shards = read_manifest(config.input)
        _check_shards(config, shards)
        rows, paired = _list_patches(shards, split=config.split or "test"), shards.paired
    else:
        if config.split is not None:
            raise ValueError(
                f"split is {config.split!r}; allowed: with a folder of shards, and {config.input!r} is none"
            )
        rows, paired = _list_pictures(config), config.noisy is not None
    rows = sorted(rows, key=lambda row: str(row["key"]))[: config.limit]
    shown = set(np.linspace(0, len(rows) - 1, min(config.sheet, len(rows))).astype(int).tolist())
    listed = [{**row, "shown": index in shown} for index, row in enumerate(rows)]
    return pa.Table.from_pylist(listed, schema=EVALUATION_SOURCES), paired


def _list_pictures(config: EvaluateConfig) -> list[dict[str, Any]]:
    listed = inputs.list_sources(config.input)
    keys = [source.key for source in listed]
    noisy = inputs.pair_references(keys, config.noisy, argument="noisy") if config.noisy else [None] * len(keys)
    return [{"uri": s.uri, "key": s.key, "noisy_uri": uri} for s, uri in zip(listed, noisy, strict=True)]


def _list_patches(shards: ShardSet, *, split: Any) -> list[dict[str, Any]]:
    """List stored patches; the key of one is that of its picture and its place there."""
    rows = []
    for file in shards.files[split]:
        places = iter(read_places(file))
        for group, count in enumerate(file.groups):
            for row in range(count):
                uri, key, y, x = next(places)
                where = {"shard": str(file.path), "group": group, "row": row}
                rows.append({"uri": uri, "key": f"{key}@{y},{x}", **where})
    return rows


def _check_shards(config: EvaluateConfig, shards: ShardSet) -> None:
    split: Any = config.split or "test"
    if config.noisy is not None:
        raise ValueError("noisy given with shards; allowed: pairs that raydenoise prepare --noisy --clean put there")
    if shards.paired and config.sigma is not None:
        raise ValueError("sigma given, and the shards hold pairs; allowed: leave it out")
    if shards.paired and config.sigma_source in ("known", "both"):
        raise ValueError(f"sigma_source is {config.sigma_source!r}, and the shards hold pairs; allowed: auto")
    if not shards.rows(split):
        held = ", ".join(f"{name} {shards.rows(name)}" for name in shards.files)
        raise ValueError(
            f"shards {str(shards.root)!r} hold no patch for {split}; allowed: a split with patches: {held}"
        )


def read_models(config: EvaluateConfig) -> Models:
    """Read the models, each once, here; a model is named by its card, or as given where two would share a name.

    Raises:
        ValueError: there is no such model or method.
    """
    read: dict[str, tuple[ModelFiles, Card] | None] = {}
    for given in config.models:
        if given in CLASSICAL:
            check_installed(given)
            read[given] = None
        else:
            with ExitStack() as stack:
                try:
                    path = stack.enter_context(on_disk(given))
                except ValueError as error:
                    raise ValueError(f"{error}; or a classical method: {', '.join(CLASSICAL)}") from error
                read[given] = read_files(str(path))
    wanted = {given: given if model is None else model[1].name for given, model in read.items()}
    taken = [NOISY, *wanted.values()]
    models: Models = {}
    for given, model in read.items():
        alone = taken.count(wanted[given]) == 1
        models[wanted[given] if alone or model is None else given] = model
    assert len(models) == len(read)
    return models


def _check_model(task: Task, name: str, card: Card) -> None:
    if card.channels not in (1, 3):
        raise ValueError(f"model {name} takes {card.channels} channels; allowed: 1 or 3")
    try:
        card.grid(task.config.tile)
        for sigma in task.sigmas if "known" in task.sources else ():
            check_sigma(sigma, card=card)
    except ValueError as error:
        raise ValueError(f"model {name}: {error}") from error


def make_task(config: EvaluateConfig, models: Models, *, paired: bool) -> Task:
    """Settle what depends on the pictures: which levels, and what the methods are told.

    Raises:
        ValueError: a model does not take one of the levels, or the tile.
    """
    if paired:
        task = Task(config, sigmas=(), sources=("auto",), shown=None)
    else:
        sigmas, source = config.sigma or SIGMAS, config.sigma_source or "both"
        sources = ("known", "auto") if source == "both" else (source,)
        task = Task(config, sigmas=sigmas, sources=sources, shown=sorted(sigmas)[len(sigmas) // 2])
    for name, model in models.items():
        if model is not None:
            _check_model(task, name, model[1])
    return task


def _execute(task: Task, *, root: Place, sources: pa.Table, models: Models, plan: Plan) -> pa.Table:
    """Run the pipeline, publish its rows as they come, and return them all."""
    config = task.config
    configure_data(verbose=config.verbose)
    blocks = [sources.slice(first, plan.rows) for first in range(0, len(sources), plan.rows)]
    read = ray.data.from_blocks(blocks)
    attempts = start(LIMIT, agreed=root, known={})
    present = _read_files(sources)
    results = evaluate(read, models=models, task=task, plan=plan, attempts=attempts, present=present)
    writer = RowWriter(root / "results", schema=EVALUATION, now=time.monotonic())
    waiting = partial(waiting_for_nodes, cpus=plan.cpus, gpus=plan.gpus)
    begin = "starting Ray and the models"
    tables: list[pa.Table] = []
    seen: set[str] = set()
    failed: set[str] = set()
    with Display(len(sources), doing="evaluating", begin=begin, quiet=config.quiet, waiting=waiting) as display:
        try:
            blocks = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for rows in chain.from_iterable(map(unpack, blocks)):
                tables.append(rows)
                writer.add(rows.select(EVALUATION.names), now=time.monotonic())
                seen |= set(rows["key"].to_pylist())
                failed |= set(rows.filter(pc.equal(rows["status"], "error"))["key"].to_pylist())
                display.update(done=len(seen), failed=len(failed))
        finally:
            writer.flush(now=time.monotonic())
    if len(seen) != len(sources):
        raise RuntimeError(f"{len(seen)} of {len(sources)} pictures have rows; the others were lost on the way")
    return pa.concat_tables([table.cast(EVALUATED) for table in tables])


def _publish(rows: pa.Table, config: EvaluateConfig, *, root: Place, methods: list[str]) -> dict[str, Any]:
    """Write summary.json, summary.md and sheet.png; returns the summary."""
    summary = summarize(rows, methods=methods, seed=config.seed)
    storage.publish_json(root / "summary.json", summary)
    storage.publish(root / "summary.md", to_markdown(summary).encode())
    if any(rows["clean_crop"].is_valid().to_pylist()):
        draw_sheet(rows, methods=methods, path=root / "sheet.png")
    return summary


def _facts(model: tuple[ModelFiles, Card] | None) -> Mapping[str, Any]:
    """What the manifest says of a method."""
    if model is None:
        return {"kind": "classical"}
    card = model[1]
    return {"kind": "network", "sha256": card.sha256, "architecture": card.architecture, "name": card.name}

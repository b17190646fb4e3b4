"""The main job: list -> decode -> denoise -> publish -> metrics rows -> parquet, on Ray Data."""

import time
import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ray
import ray.data

from raydenoise.config import DenoiseConfig
from raydenoise.data import inputs, storage
from raydenoise.data.lease import Lease, at_end, check_free, held
from raydenoise.data.ledger import NONE, Commits, Ledger, check_ours, check_same, clear, settle
from raydenoise.data.manifest import DENOISING_KIND, Output, RowWriter, check_writable, recorded, versions
from raydenoise.data.place import place
from raydenoise.data.schema import METRICS
from raydenoise.model.card import Card, check_sigma
from raydenoise.pipelines.attempts import start
from raydenoise.pipelines.displays import Display
from raydenoise.pipelines.gauges import Gauges
from raydenoise.pipelines.parcels import unpack
from raydenoise.pipelines.process import ModelFiles, read_files, tried
from raydenoise.pipelines.session import (
    Plan,
    cluster_address,
    configure_data,
    local_cpus,
    make_plan,
    session,
    waiting_for_nodes,
)
from raydenoise.pipelines.sharing import check_shared
from raydenoise.pipelines.sources import Pictures, check_apart, list_pictures, resolved
from raydenoise.pipelines.stages import DenoiseActor, FusedActor, Stages, decode_batch, publish_batch, without_pictures
from raydenoise.pipelines.summaries import Totals


def run(config: DenoiseConfig) -> dict[str, Any]:
    """Denoise what is not denoised yet of a collection and return the summary of all of it.

    Raises:
        ValueError: an argument is not allowed, another job writes OUT, no Ray answers, or its machines do not share a
            local folder; nothing was written.
        RuntimeError: the job broke; the same command goes on with it.
    """
    started = time.monotonic()
    output = Output(place(config.output, argument="output"))
    check_writable(output.root)
    free = check_free(output.root)
    check_apart(config, output)
    files, card = read_model(config)
    pictures = list_pictures(config)
    manifest: dict[str, Any] = {
        "kind": DENOISING_KIND,
        "config": asdict(config) | resolved(config),
        "model": {"name": card.name, "sha256": card.sha256, "architecture": card.architecture},
        "versions": versions(),
        "pictures": len(pictures),
    }
    if config.overwrite:
        check_ours(output)
    else:
        check_same(output, manifest)
    address = cluster_address(config.address)
    with ExitStack() as stack:
        wait = stack.enter_context(tried({card.name: files}))
        stack.enter_context(
            session(address, cpus=local_cpus(config), gpus=config.gpus_per_actor, verbose=config.verbose)
        )
        make_plan(config, images=len(pictures))  # what it refuses, it refuses before anything is written
        wait()
        lease = stack.enter_context(held(output.root, free=free))
        lease.check()
        commits = Commits(output, lease)
        commits.fence()  # before what may refuse this job, whose lease is then released: the next one would not fence
        commits.check_disk()
        check_shared(_read_files(config, pictures), output=output.root)
        if config.overwrite:
            check_ours(output)
            clear(output, allowed=lease.check)
        else:
            check_same(output, manifest)  # again: another job may have come and gone
        totals = Totals()
        ledger = settle(
            output,
            retry=pictures.keys() if config.retry_failed else NONE,
            count=partial(totals.add, referenced=bool(config.reference)),
            allowed=lease.check,
        )
        left = pictures.without(ledger)
        plan = make_plan(config, images=max(1, len(left)))
        manifest["lease"] = lease.holder  # who looks at OUT tells it by that from the manifest of a job before
        manifest["tile"] = card.grid(config.tile).tile
        manifest["ray"] = {"address": address or "local", "plan": asdict(plan)}
        before = totals.images
        with recorded(output.root, manifest, allowed=lease.check), at_end(partial(_tidy, output, lease)):
            try:
                if len(left):
                    Job(config, output, files, card, plan, ledger, commits).run(left, totals)
            except ValueError as error:  # Ray's task errors take the type of their cause: no argument is to blame here
                raise RuntimeError(str(error)) from error
            finally:
                summary = totals.summary(seconds=time.monotonic() - started, output=str(output.root), before=before)
                manifest |= {"precision": sorted(totals.precisions), "summary": summary}
    return summary


@dataclass(frozen=True)
class Job:
    """What a job has in hand once everything is checked."""

    config: DenoiseConfig
    output: Output
    files: ModelFiles
    card: Card
    plan: Plan
    ledger: Ledger
    commits: Commits

    def run(self, pictures: Pictures, totals: Totals) -> None:
        """Run the pipeline and commit its rows.

        Raises:
            RuntimeError: rows were lost, another job took the lease, or a machine that came late does not see a folder.
        """
        config, plan = self.config, self.plan
        configure_data(verbose=config.verbose)
        known = {} if self.ledger.precision is None else {"precision": self.ledger.precision}
        # A folder of its own: workers of a job that was stopped may still propose.
        attempts = start(config.attempts, agreed=self.output.scratch / uuid.uuid4().hex, known=known)
        present = (*_read_files(config, pictures), *self._probe())
        row = {"model": self.card.name, "model_sha256": self.card.sha256}
        stages = Stages(config, self.output, attempts, present, row)
        results = denoise(pictures.dataset(rows=plan.rows), files=self.files, stages=stages, plan=plan)

        writer = RowWriter(
            self.output.metrics,
            schema=METRICS,
            now=time.monotonic(),
            first=self.commits.next(),
            publish=self.commits.create,
        )
        gauges = Gauges()
        waiting = partial(waiting_for_nodes, cpus=plan.cpus, gpus=plan.gpus)
        begin, before = "starting Ray and the model", totals.images
        total = before + len(pictures)
        with (
            Display(total, doing="denoising", begin=begin, quiet=config.quiet, waiting=waiting) as display,
            at_end(lambda: writer.flush(now=time.monotonic())),
        ):
            blocks = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for rows in chain.from_iterable(map(unpack, blocks)):
                rows = without_pictures(self.ledger.fresh(rows), allowed=self.commits.lease.check)
                writer.add(rows, now=time.monotonic())
                gauges.add(rows)
                totals.add(rows, referenced=config.reference is not None)
                display.update(done=totals.images, failed=totals.failed)
        if totals.images != total:
            raise RuntimeError(
                f"{totals.images} of {total} pictures have a row; the others were lost on the way: run it again"
            )

    def _probe(self) -> list[str]:
        """A fresh file of OUT on a disk, as long as the job: a machine that comes late looks for it."""
        if not isinstance(self.output.scratch, Path):
            return []
        probe = self.output.scratch / uuid.uuid4().hex
        storage.publish(probe, b"")
        return [str(probe)]


def _tidy(output: Output, lease: Lease) -> None:
    """Remove what is left of unfinished pictures, unless they are another job's by now."""
    lease.check()
    storage.remove(output.scratch)


def _read_files(config: DenoiseConfig, pictures: Pictures) -> list[str]:
    """A file of INPUT and of `--reference`, where they are on a disk: every machine must see them."""
    # The first picture may be a broken link.
    first = pictures.first()
    source = (None if "://" in first else inputs.local_file(first)) or inputs.local_file(config.input)
    return [file for file in (source, inputs.local_file(config.reference)) if file is not None]


def denoise(sources: ray.data.Dataset, *, files: ModelFiles, stages: Stages, plan: Plan) -> ray.data.Dataset:
    """The pipeline: parcels of sources in, parcels of metrics rows out; pictures are written on the way.

    On CPUs all stages share one process, so that no pixel is copied between processes. A GPU actor only denoises:
    decoding and encoding run beside it on CPUs of their own.
    """
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=plan.actors, initial_size=plan.initial, max_tasks_in_flight_per_actor=2
    )
    one = {"batch_size": 1, "batch_format": "pyarrow"}  # parcel a task
    actor = {"compute": pool, "num_cpus": plan.cpus, **one}
    if plan.fused:
        return sources.map_batches(FusedActor, fn_constructor_args=[ray.put(files), stages, plan.cpus], **actor)
    return (
        sources.map_batches(decode_batch, fn_kwargs={"stages": stages}, num_cpus=1, **one)
        .map_batches(DenoiseActor, fn_constructor_args=[ray.put(files), stages, None], num_gpus=plan.gpus, **actor)
        .map_batches(publish_batch, fn_kwargs={"stages": stages}, num_cpus=0.5, **one)
    )


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

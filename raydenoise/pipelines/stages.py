"""The stages of the denoising job, one picture at a time: decode -> denoise -> publish.

Each takes a `Work` and returns it further along; whatever goes wrong with a picture becomes its error row, and later
stages let it pass. The pipeline decides which stages share a process.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from raydenoise.config import DenoiseConfig
from raydenoise.core import image as codec
from raydenoise.core.metrics import quality
from raydenoise.core.noise import estimate_sigma
from raydenoise.data import inputs, storage
from raydenoise.data.manifest import Output, utc_now
from raydenoise.data.place import place
from raydenoise.data.schema import METRICS, metrics_table
from raydenoise.data.secrets import redacted
from raydenoise.pipelines.attempts import Verdicts, Watch, each, watching
from raydenoise.pipelines.parcels import grouped, pack, unpack
from raydenoise.pipelines.process import ModelFiles, fast_precision, load_denoiser, prepare_tensorflow, worker_name

Item = TypeVar("Item")
Done = TypeVar("Done")

AHEAD = 2  # pictures read ahead and written behind per actor: hides storage latency, bounds memory
MESSAGE_LENGTH = 300  # characters of an error message that reach the table
WHOLE = "whole"  # the stage of a process that does all of them
PARCELS = 8  # of a task, at most (of CPU actors): Ray keeps about 1 kB in the driver for each, until the job ends
# Before a GPU a parcel holds pixels: one picture in a job of up to 36,000, whose tasks are small (`session.task_rows`),
# and at most so many in a larger one. The listing does not know how large a picture is.
GPU_PICTURES = 4
# So its memory is bounded by what is left out: with so many bytes of pixels a parcel is full, and its other pictures go
# on undecoded, for the GPU actor to do all of them. That is slow, so the bound is for few: four pictures of 44
# megapixels in 8-bit RGB fit. One of 200 megapixels in 16 bit (1.2 GB) may be the one that fills it.
PARCEL_BYTES = 512 << 20


@dataclass
class Work:
    """A picture on its way, with its metrics row so far.

    Attributes:
        source: the columns of `schema.SOURCES`.
        row: the columns of `schema.METRICS` known so far.
        picture: as read, and after denoising with the denoised pixels; none before, and when the row is whole.
        noisy: the pixels as read, kept behind denoising only where a reference will be compared.
    """

    source: dict[str, Any]
    row: dict[str, Any]
    picture: codec.Image | None = None
    noisy: NDArray[Any] | None = None

    @property
    def over(self) -> bool:
        """Whether its row is whole, of a picture that is written or failed: no stage has more to do."""
        return "status" in self.row


@dataclass(frozen=True)
class Stages:
    """What decode and publish need to know; small, sent to every task.

    Attributes:
        config: of the job.
        output: OUT.
        attempts: the actor that hears of every picture begun.
        present: local files of the job, which every machine must see.
        row: columns that all rows share.
    """

    config: DenoiseConfig
    output: Output
    attempts: "ray.actor.ActorHandle"
    present: tuple[str, ...] = ()
    row: dict[str, Any] = field(default_factory=dict)

    def watch(self) -> Watch:
        """This process's watch over its pictures, one a job; the first call looks at the job's folders too.

        Raises:
            RuntimeError: this machine does not see them.
        """
        return watching(self.attempts, present=self.present, timeout=self.config.image_timeout)

    def waiting(self, source: dict[str, Any]) -> Work:
        """A picture at the beginning of its way."""
        return Work(source, {**self.row, "uri": source["uri"], "key": source["key"]})

    def given_up(self, work: Work, error: dict[str, str]) -> Work:
        """A picture at the end of its way. It may have been published just before; the driver removes that."""
        with suppress(ValueError):  # its key is refused: it never was
            work.row["output_uri"] = str(inputs.below(self.output.images, work.source["output_key"]))
        return _fail(work, error)

    def finished(self, work: Work) -> dict[str, Any]:
        """The metrics row of a picture at the end of its way."""
        work.row["finished_at"] = utc_now()
        return work.row

    def decode(self, work: Work) -> Work:
        """Read, decode and estimate the noise of one picture."""
        return _guarded(self._decode, work, "decode", self.watch())

    def _decode(self, work: Work) -> None:
        inputs.check_key(work.source["output_key"])  # before any work
        data = storage.read_picture(work.source["uri"], max_pixels=self.config.max_pixels)
        work.row["bytes_in"] = len(data)
        picture = codec.decode(data, max_pixels=self.config.max_pixels)
        work.picture = picture
        work.row.update(
            format=picture.format,
            height=picture.height,
            width=picture.width,
            channels=picture.channels,
            bit_depth=picture.bit_depth,
            note=picture.note,
            sigma_in_estimate=estimate_sigma(picture.pixels),
        )

    def publish(self, work: Work) -> Work:
        """Encode and write one denoised picture and measure what was written."""
        return _guarded(self._publish, work, "encode", self.watch())

    def _publish(self, work: Work) -> None:
        picture = _held(work.picture)
        format = self.config.written_format or picture.format
        data = codec.encode(picture, format=format, quality=self.config.quality)
        path = inputs.below(self.output.images, work.source["output_key"])
        lossy = _lossy(picture, format)
        published = codec.decode(data, max_pixels=self.config.max_pixels).pixels if lossy else picture.pixels
        published = published[..., : picture.pixels.shape[-1]]  # WebP turns grey into three equal planes
        work.row["sigma_out_estimate"] = estimate_sigma(published)
        if work.source["reference_uri"] is not None:
            self._compare(work, published)
        elif self.config.reference is not None:
            _add_note(work.row, f"no metrics: no picture of this path below {self.config.reference}")
        storage.publish(path, data, scratch=self.output.scratch)
        work.row.update(status="ok", output_uri=str(path), bytes_out=len(data))
        work.picture = work.noisy = None

    def _compare(self, work: Work, published: NDArray[Any]) -> None:
        """Measure against the clean picture; one that cannot be used is named in the note, the result stands."""
        uri = work.source["reference_uri"]
        try:
            data = storage.read_picture(uri, max_pixels=self.config.max_pixels)
            clean = codec.decode(data, max_pixels=self.config.max_pixels).pixels
            before, after = quality(clean, _held(work.noisy)), quality(clean, published)
        except (OSError, ValueError) as error:
            _add_note(work.row, f"no metrics: reference {uri}: {_first_line(error)}")
            return
        for name in ("psnr", "ssim", "mse"):
            work.row[f"{name}_noisy"] = getattr(before, name)
            work.row[f"{name}_denoised"] = getattr(after, name)


def _add_note(row: dict[str, Any], text: str) -> None:
    row["note"] = "; ".join(filter(None, (row.get("note"), text)))


def _guarded(step: Callable[[Work], None], work: Work, stage: str, watch: Watch) -> Work:
    """Run a step on a picture that is under way; a failure becomes the picture's error row."""
    if work.over:
        return work
    started = time.perf_counter()
    try:
        with watch.stage(work.source["key"], stage):
            step(work)
    except Exception as error:  # one picture never takes the job along
        logging.getLogger(__name__).debug("%s failed", work.source["key"], exc_info=True)
        _fail(work, described(error))
    work.row[f"{stage}_s"] = time.perf_counter() - started
    return work


def _fail(work: Work, error: dict[str, str]) -> Work:
    """Make a picture's row an error row."""
    work.picture = work.noisy = None
    work.row.update(status="error", **error)
    return work


def described(error: Exception) -> dict[str, str]:
    """The columns of an error row that say what went wrong."""
    return {"error_type": getattr(error, "kind", type(error).__name__), "error_message": _first_line(error)}


def _first_line(error: Exception) -> str:
    return redacted((str(error).strip() or type(error).__name__).split("\n")[0])[:MESSAGE_LENGTH]


def _held(value: Any) -> Any:
    assert value is not None, "a picture that is under way has its pixels"
    return value


def _lossy(picture: codec.Image, format: codec.Format) -> bool:
    """Whether a decoder returns other pixels than were encoded."""
    return format in ("jpeg", "webp") or (format == "bmp" and picture.bit_depth == 16)


class DenoiseActor:
    """One process with the network in memory: takes rows with pixels, returns them denoised."""

    def __init__(self, files: "ray.ObjectRef[ModelFiles] | ModelFiles", stages: Stages, threads: int | None) -> None:
        self._stages = stages
        self._watch = stages.watch()
        prepare_tensorflow(threads)
        config = stages.config
        if config.precision == "auto":  # one for the whole job: what the first actor's machine computes fast
            config = replace(config, precision=self._watch.agree("precision", fast_precision()))
        self._denoiser = load_denoiser(files if isinstance(files, ModelFiles) else ray.get(files), config)
        self._worker = worker_name()

    def denoise(self, work: Work) -> Work:
        """Denoise one decoded picture."""
        return _guarded(self._denoise, work, "infer", self._watch)

    def _denoise(self, work: Work) -> None:
        work.row.update(worker=self._worker, precision=self._denoiser.precision)
        picture = _held(work.picture)
        card = self._denoiser.card
        sigma = self._stages.config.sigma
        if sigma == "auto":
            sigma = card.limited(work.row["sigma_in_estimate"])
        config = self._stages.config
        result = self._denoiser.denoise(picture.pixels, sigma=sigma, strength=config.strength, tta=config.tta)
        work.picture = replace(picture, pixels=result.image)
        work.row.update(sigma=result.sigma, tiles=result.tiles)
        if work.source["reference_uri"] is not None:
            work.noisy = picture.pixels

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Denoise parcels of `Work`: the GPU actor between decoding and encoding tasks."""
        for works in unpack(batch):
            done = one_by_one(self._stages, works, self._further, stage="denoise")
            yield packed(self._watch, list(done), stage="denoise")

    def _further(self, work: Work) -> Work:
        """Denoise a picture, or do all of one for whose pixels the parcel had no room."""
        return self._whole(work) if work.picture is None else self.denoise(work)

    def _whole(self, work: Work) -> Work:
        """All stages of one picture, with nothing beside it."""
        return self._stages.publish(self.denoise(self._stages.decode(work)))


class FusedActor(DenoiseActor):
    """All stages in one process: on a CPU machine pixels then never leave it.

    Takes parcels of sources, returns parcels of metrics rows.
    """

    def __init__(self, files: "ray.ObjectRef[ModelFiles] | ModelFiles", stages: Stages, threads: int | None) -> None:
        super().__init__(files, stages, threads)
        self._readers = ThreadPoolExecutor(AHEAD, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(AHEAD, thread_name_prefix="write")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Do every picture of a task; an eighth of its rows a parcel."""
        for sources in unpack(batch):
            yield from map(_parcel_of_rows, grouped(self._rows(sources), size=-(-len(sources) // PARCELS)))

    def _rows(self, sources: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Read ahead, denoise, write behind; at most `AHEAD` + 1 pictures wait on either side."""
        verdicts = self._watch.enter([source["key"] for source in sources], stage=WHOLE)
        odd = {*verdicts.suspect, *verdicts.given_up}
        # In the order of the task, always: where Ray does it again, it goes on behind the parcels that it has.
        for alone, group in groupby(sources, key=lambda source: source["key"] in odd):
            if alone:
                yield from self._one_by_one(group, verdicts)
            else:
                yield from self._overlapped(group)

    def _one_by_one(self, sources: Iterable[dict[str, Any]], verdicts: Verdicts) -> Iterator[dict[str, Any]]:
        waiting = map(self._stages.waiting, sources)
        works = one_by_one(self._stages, waiting, self._whole, stage=WHOLE, verdicts=verdicts)
        yield from map(self._stages.finished, works)

    def _overlapped(self, sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        decoded = ahead(self._readers, self._begin, sources)
        yield from ahead(self._writers, self._end, map(self.denoise, decoded))

    def _begin(self, source: dict[str, Any]) -> Work:
        self._watch.begin(source["key"], stage=WHOLE)
        return self._stages.decode(self._stages.waiting(source))

    def _end(self, work: Work) -> dict[str, Any]:
        row = self._stages.finished(self._stages.publish(work))
        self._watch.end(row["key"], stage=WHOLE)
        return row


def one_by_one(
    stages: Stages, works: Iterable[Work], step: Callable[[Work], Work], *, stage: str, verdicts: Verdicts | None = None
) -> Iterator[Work]:
    """Do one stage of a block's pictures, none beside another: see `attempts.each`."""
    yield from each(
        stages.watch(),
        list(works),
        step,
        key=lambda work: str(work.source["key"]),
        stage=stage,
        given_up=stages.given_up,
        verdicts=verdicts,
    )


def packed(watch: Watch, works: list[Work], *, stage: str) -> pa.Table:
    """Pack a parcel. Its largest picture answers for it: what kills the process here is a want of memory."""
    largest = max(works, key=_pixel_bytes).source["key"]
    watch.begin(largest, stage=stage)
    parcel = pack(works)
    watch.end(largest, stage=stage)
    return parcel


def ahead(pool: ThreadPoolExecutor, step: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
    """Map in order, with at most `AHEAD` + 1 items begun and not yet taken."""
    begun: deque[Future[Done]] = deque()
    for item in items:
        begun.append(pool.submit(step, item))
        if len(begun) > AHEAD:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def decode_batch(batch: pa.Table, *, stages: Stages) -> Iterator[pa.Table]:
    """Decode sources, a few pictures a parcel: the task before a GPU actor.

    Where Ray does a task again, it goes on behind the parcels that it has, by their number. So which pictures share one
    is decided by the sources alone, never by what becomes of them.
    """
    for sources in unpack(batch):
        for group in grouped(sources, size=min(GPU_PICTURES, -(-len(sources) // PARCELS))):
            held: list[Work] = []
            step = partial(_decode_within, stages, held)
            for work in one_by_one(stages, map(stages.waiting, group), step, stage="decode"):
                held.append(work)  # where the step sees it
            yield packed(stages.watch(), held, stage="decode")


def _decode_within(stages: Stages, held: list[Work], work: Work) -> Work:
    """Decode a picture, unless its parcel is full: the GPU actor then does all of it."""
    return work if sum(map(_pixel_bytes, held)) >= PARCEL_BYTES else stages.decode(work)


def publish_batch(batch: pa.Table, *, stages: Stages) -> Iterator[pa.Table]:
    """Publish denoised pictures: the task behind a GPU actor. Returns parcels of metrics rows."""
    for works in unpack(batch):
        done = one_by_one(stages, works, stages.publish, stage="publish")
        yield _parcel_of_rows(map(stages.finished, done))


def without_pictures(rows: pa.Table, *, allowed: Callable[[], None] = lambda: None) -> pa.Table:
    """Remove the pictures of error rows, which a process published before it was stopped; the rows then name none.

    For the driver alone: only it knows that a picture has this row, and not another one that came before Ray did its
    task again.

    Args:
        rows: of `schema.METRICS`.
        allowed: called before anything is removed; raises where the folder is another job's by now.
    """
    void = pc.and_(pc.equal(rows["status"], "error"), pc.is_valid(rows["output_uri"]))
    for uri in rows["output_uri"].filter(void).to_pylist():
        allowed()
        with suppress(OSError):  # it stays: a file without a row, as a killed job leaves it
            place(uri).unlink(missing_ok=True)
    index = rows.column_names.index("output_uri")
    return rows.set_column(index, METRICS.field(index), pc.if_else(void, None, rows["output_uri"]))


def _parcel_of_rows(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pack(metrics_table(list(rows)))


def _pixel_bytes(work: Work) -> int:
    return 0 if work.picture is None else work.picture.pixels.nbytes

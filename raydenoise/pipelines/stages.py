"""The stages of the denoising job, one picture at a time: decode -> denoise -> publish.

Each takes a `Work` and returns it further along; whatever goes wrong with a picture becomes its error row, and later
stages let it pass. The pipeline decides which stages share a process.
"""

import logging
import os
import pickle
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import ray
from numpy.typing import NDArray

from raydenoise.config import DenoiseConfig, EvaluateConfig
from raydenoise.core import image as codec
from raydenoise.core.metrics import quality
from raydenoise.core.noise import estimate_sigma
from raydenoise.data import storage
from raydenoise.data.manifest import Output, utc_now
from raydenoise.data.schema import metrics_table
from raydenoise.model.card import CARD_FILE, MODEL_FILE, Card, read_card

if TYPE_CHECKING:
    from raydenoise.model.denoiser import Denoiser

Item = TypeVar("Item")
Done = TypeVar("Done")

AHEAD = 2  # pictures read ahead and written behind per actor: hides storage latency, bounds memory
MESSAGE_LENGTH = 300  # characters of an error message that reach the table
PIXELS = pa.schema([("work", pa.large_binary())])  # pixels between processes; one picture a row


@dataclass(frozen=True)
class ModelFiles:
    """A bundle as bytes, so that it reaches every node whatever disk it lies on."""

    card: bytes
    model: bytes

    @classmethod
    def read(cls, folder: Path) -> "ModelFiles":
        """Read a bundle's folder."""
        return cls((folder / CARD_FILE).read_bytes(), (folder / MODEL_FILE).read_bytes())

    def write(self, folder: Path) -> Card:
        """Write them into a folder and read the card."""
        (folder / CARD_FILE).write_bytes(self.card)
        (folder / MODEL_FILE).write_bytes(self.model)
        return read_card(folder)


@dataclass
class Work:
    """A picture on its way, with its metrics row so far.

    Attributes:
        source: the columns of `schema.SOURCES`.
        row: the columns of `schema.METRICS` known so far.
        picture: as read, and after denoising with the denoised pixels.
        noisy: the pixels as read, kept behind denoising only where a reference will be compared.
        failed: the row is an error row; no stage has more to do.
    """

    source: dict[str, Any]
    row: dict[str, Any]
    picture: codec.Image | None = None
    noisy: NDArray[Any] | None = None
    failed: bool = False


@dataclass(frozen=True)
class Stages:
    """What decode and publish need to know; small, sent to every task."""

    config: DenoiseConfig
    output: Path
    row: dict[str, Any] = field(default_factory=dict)  # columns that all rows share

    def decode(self, source: dict[str, Any]) -> Work:
        """Read, decode and estimate the noise of one picture."""
        work = Work(source, {**self.row, "uri": source["uri"], "key": source["key"]})
        return _guarded(self._decode, work, "decode_s")

    def _decode(self, work: Work) -> None:
        storage.check_key(work.source["output_key"])  # before any work
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

    def publish(self, work: Work) -> dict[str, Any]:
        """Encode and write one denoised picture, measure what was written, return its metrics row."""
        _guarded(self._publish, work, "encode_s")
        work.row["finished_at"] = utc_now()
        return work.row

    def _publish(self, work: Work) -> None:
        picture = _held(work.picture)
        format = self.config.written_format or picture.format
        data = codec.encode(picture, format=format, quality=self.config.quality)
        path = storage.below(Output(self.output).images, work.source["output_key"])
        lossy = _lossy(picture, format)
        published = codec.decode(data, max_pixels=self.config.max_pixels).pixels if lossy else picture.pixels
        published = published[..., : picture.pixels.shape[-1]]  # WebP turns grey into three equal planes
        work.row["sigma_out_estimate"] = estimate_sigma(published)
        if work.source["reference_uri"] is not None:
            self._compare(work, published)
        elif self.config.reference is not None:
            _add_note(work.row, f"no metrics: no picture of this path below {self.config.reference}")
        storage.publish(path, data)
        work.row.update(status="ok", output_uri=str(path), bytes_out=len(data))

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


def _guarded(step: Callable[[Work], None], work: Work, timing: str) -> Work:
    """Run a step on a picture that is well so far; a failure becomes the picture's error row."""
    if work.failed:
        return work
    started = time.perf_counter()
    try:
        step(work)
    except Exception as error:  # one picture never takes the job along
        logging.getLogger(__name__).debug("%s failed", work.source["key"], exc_info=True)
        work.failed, work.picture, work.noisy = True, None, None
        work.row.update(status="error", **described(error))
    work.row[timing] = time.perf_counter() - started
    return work


def described(error: Exception) -> dict[str, str]:
    """The columns of an error row that say what went wrong."""
    return {"error_type": getattr(error, "kind", type(error).__name__), "error_message": _first_line(error)}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:MESSAGE_LENGTH]


def _held(value: Any) -> Any:
    assert value is not None, "a picture that has not failed has its pixels"
    return value


def _lossy(picture: codec.Image, format: codec.Format) -> bool:
    """Whether a decoder returns other pixels than were encoded."""
    return format in ("jpeg", "webp") or (format == "bmp" and picture.bit_depth == 16)


class DenoiseActor:
    """One process with the network in memory: takes rows with pixels, returns them denoised."""

    def __init__(self, files: "ray.ObjectRef[ModelFiles] | ModelFiles", stages: Stages, threads: int | None) -> None:
        self._stages = stages
        prepare_tensorflow(threads)
        self._denoiser = load_denoiser(files if isinstance(files, ModelFiles) else ray.get(files), stages.config)
        self._worker = worker_name()

    def denoise(self, work: Work) -> Work:
        """Denoise one decoded picture."""
        return _guarded(self._denoise, work, "infer_s")

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

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Denoise rows of pickled `Work`: the GPU actor between decoding and encoding tasks."""
        return pack([self.denoise(work) for work in unpack(batch)])


class FusedActor(DenoiseActor):
    """All stages in one process: on a CPU machine pixels then never leave it. Takes sources, returns metrics rows."""

    def __init__(self, files: "ray.ObjectRef[ModelFiles] | ModelFiles", stages: Stages, threads: int | None) -> None:
        super().__init__(files, stages, threads)
        self._readers = ThreadPoolExecutor(AHEAD, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(AHEAD, thread_name_prefix="write")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Read ahead, denoise, write behind; at most `AHEAD` + 1 pictures wait on either side. Yields row by row."""
        decoded = ahead(self._readers, self._stages.decode, batch.to_pylist())
        for row in ahead(self._writers, self._stages.publish, map(self.denoise, decoded)):
            yield metrics_table([row])


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
    """Decode sources, one output block a picture: the task before a GPU actor."""
    for source in batch.to_pylist():
        yield pack([stages.decode(source)])


def publish_batch(batch: pa.Table, *, stages: Stages) -> pa.Table:
    """Publish denoised pictures: the task behind a GPU actor."""
    return metrics_table([stages.publish(work) for work in unpack(batch)])


def pack(works: list[Work]) -> pa.Table:
    """Put pictures on their way into a table: bytes, since Ray mixes up columns of unlike arrays."""
    return pa.Table.from_pylist([{"work": pickle.dumps(work, protocol=5)} for work in works], schema=PIXELS)


def unpack(batch: pa.Table) -> Iterator[Work]:
    """Take them out again."""
    for cell in batch["work"]:
        yield pickle.loads(cell.as_buffer())


def prepare_tensorflow(threads: int | None) -> None:
    """Import TensorFlow in an actor, with the threads that are its own and GPU memory that grows on demand."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if not assigned_gpus():  # Ray hides no GPU from an actor that asked for none
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf  # thread settings: Ray's num_cpus does not reach it

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def load_denoiser(files: ModelFiles, config: "DenoiseConfig | EvaluateConfig") -> "Denoiser":
    """Load a model in an actor, behind `prepare_tensorflow`."""
    from raydenoise.model.denoiser import Denoiser

    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder))
        return Denoiser.load(folder, tile=config.tile, precision=config.precision, batch_tiles=config.batch_tiles)


def assigned_gpus() -> list[str]:
    """The GPUs that Ray gave to this process."""
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]


def worker_name() -> str:
    """Name this process in the metrics: host, process and the CUDA devices it sees."""
    devices = f"/gpu{os.environ.get('CUDA_VISIBLE_DEVICES', '')}" if assigned_gpus() else ""
    return f"{socket.gethostname()}/{os.getpid()}{devices}"

"""A process that denoises: its threads, its device, the network in its memory."""

import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from raydenoise.config import DenoiseConfig, EvaluateConfig
from raydenoise.fetching import on_disk
from raydenoise.model import trial
from raydenoise.model.card import CARD_FILE, MODEL_FILE, Card, read_card, read_checked, ships
from raydenoise.model.vetting import vet

if TYPE_CHECKING:
    from raydenoise.model.denoiser import Denoiser


@dataclass(frozen=True)
class ModelFiles:
    """A bundle as bytes, so that it reaches every node whatever disk it lies on.

    Attributes:
        card: its card.json.
        model: its model.keras.
        loaded: Keras is known to load it.
    """

    card: bytes
    model: bytes
    loaded: bool = False

    @classmethod
    def read(cls, folder: Path) -> "ModelFiles":
        """Read a bundle's folder."""
        return cls((folder / CARD_FILE).read_bytes(), (folder / MODEL_FILE).read_bytes())

    def write(self, folder: Path) -> Card:
        """Write them into a folder and read the card."""
        (folder / CARD_FILE).write_bytes(self.card)
        (folder / MODEL_FILE).write_bytes(self.model)
        return read_card(folder)


def read_files(name_or_path: str) -> tuple[ModelFiles, Card]:
    """Read and vet a model once, on the driver; the actors get its bytes.

    A bare file is inspected and becomes a bundle.

    Raises:
        ValueError: there is no such model, or its files are refused.
    """
    with on_disk(name_or_path) as path:
        if path.is_dir():
            card = read_checked(path)
            if not ships(path):
                vet(path / MODEL_FILE)
            return replace(ModelFiles.read(path), loaded=ships(path)), card
        vet(path)
        os.environ["KERAS_BACKEND"] = "tensorflow"  # as the actors
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leave the GPU to the actors
        from raydenoise.model import bundle  # imports keras: only a bare file needs it here

        with tempfile.TemporaryDirectory() as folder:
            loaded = bundle.load(path, vetted=True)
            bundle.write(loaded, Path(folder))
            return replace(ModelFiles.read(Path(folder)), loaded=True), loaded.card


def tried(models: Mapping[str, ModelFiles]) -> AbstractContextManager[Callable[[], None]]:
    """Let Keras load those of strangers in processes of their own, while Ray starts: see `trial.tried`."""
    return trial.tried({name: files.write for name, files in models.items() if not files.loaded})


def prepare_tensorflow(threads: int | None) -> None:
    """Import TensorFlow in an actor, with the threads that are its own."""
    set_environment()
    import tensorflow as tf  # thread settings: Ray's num_cpus does not reach it

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def set_environment() -> None:
    """Set what Keras and TensorFlow read before they begin, in a process of Ray's, whatever its user's shell says.

    The backend is TensorFlow, to which all settings here belong. The GPUs' memory grows on demand, and none is seen
    that Ray did not assign.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if not assigned_gpus():  # Ray hides no GPU from a process that asked for none
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def fast_precision() -> str:
    """What this process's device computes fast, behind `prepare_tensorflow`."""
    from raydenoise.model.precision import resolve

    return resolve("auto")


def fast_precision_of_worker() -> str:
    """The same of a task's own process, which has imported nothing yet."""
    prepare_tensorflow(None)
    return fast_precision()


def load_denoiser(files: ModelFiles, config: "DenoiseConfig | EvaluateConfig") -> "Denoiser":
    """Load a model in an actor, behind `prepare_tensorflow`."""
    from raydenoise.model import bundle
    from raydenoise.model.denoiser import Denoiser

    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder))
        loaded = bundle.load(folder, vetted=True)
    return Denoiser(loaded, tile=config.tile, precision=config.precision, batch_tiles=config.batch_tiles)


def assigned_gpus() -> list[str]:
    """The GPUs that Ray gave to this process."""
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]


def worker_name() -> str:
    """Name this process in the metrics: host, process and the CUDA devices it sees."""
    devices = f"/gpu{os.environ.get('CUDA_VISIBLE_DEVICES', '')}" if assigned_gpus() else ""
    return f"{socket.gethostname()}/{os.getpid()}{devices}"

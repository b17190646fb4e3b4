"""The log of a training run: metrics rows in parquet, TensorBoard events. Written by one worker."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from tensorboardX import SummaryWriter

from raydenoise.data import storage
from raydenoise.data.place import Place, Remote
from raydenoise.data.schema import TRAINING
from raydenoise.training.loop import Progress

METRICS, EVENTS = "metrics", "tensorboard"


class RunLog:
    """Collects rows; `publish` writes those since the last time as one file.

    A file is published with each checkpoint and named by its last step, so that a run that goes on from a checkpoint
    finds exactly the rows up to it: later ones are removed when the log is opened.
    """

    def __init__(self, run: Place, *, first: int) -> None:
        self._run, self._folder = run, run / METRICS
        for name in storage.names(self._folder):
            if _last_step(name) > first:
                storage.remove(self._folder / name)
        self._aside = tempfile.TemporaryDirectory() if isinstance(run, Remote) else None  # events are appended to
        folder = self._aside.name if self._aside else str(run / EVENTS)
        self._events = SummaryWriter(folder, purge_step=first + 1)
        self._rows: list[dict[str, Any]] = []

    def add(self, progress: Progress, psnr: dict[str, float]) -> None:
        """Take one report; `psnr` in dB where there was a validation."""
        row = {name: value for name, value in asdict(progress).items() if name in TRAINING.names} | psnr
        self._rows.append(row)
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, progress.step)

    def publish(self) -> None:
        """Write the rows that wait."""
        if not self._rows:
            return
        rows = pa.Table.from_pylist(self._rows, schema=TRAINING)
        storage.publish_table(self._folder / f"step-{self._rows[-1]['step']:09d}.parquet", rows)
        self._rows = []
        self._publish_events()

    def close(self) -> None:
        """Close the events file."""
        self._events.close()
        self._publish_events()
        if self._aside:
            self._aside.cleanup()

    def _publish_events(self) -> None:
        self._events.flush()
        if self._aside:
            storage.publish_folder(Path(self._aside.name), self._run / EVENTS)


def _last_step(name: str) -> int:
    return int(name.removeprefix("step-").removesuffix(".parquet"))

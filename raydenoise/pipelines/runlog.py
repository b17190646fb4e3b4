"""The log of a training run: metrics rows in parquet, TensorBoard events. Written by one worker."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tensorboardX import SummaryWriter

from raydenoise.data.schema import TRAINING
from raydenoise.data.storage import publish
from raydenoise.training.loop import Progress

METRICS, EVENTS = "metrics", "tensorboard"


class RunLog:
    """Collects rows; `publish` writes those since the last time as one file.

    A file is published with each checkpoint and named by its last step, so that a run that goes on from a checkpoint
    finds exactly the rows up to it: later ones are removed when the log is opened.
    """

    def __init__(self, run: Path, *, first: int) -> None:
        self._folder = run / METRICS
        for part in self._folder.glob("*.parquet"):
            if _last_step(part) > first:
                part.unlink()
        self._events = SummaryWriter(str(run / EVENTS), purge_step=first + 1)
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
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=TRAINING), sink, compression="zstd")
        publish(self._folder / f"step-{self._rows[-1]['step']:09d}.parquet", sink.getvalue().to_pybytes())
        self._events.flush()
        self._rows = []

    def close(self) -> None:
        """Close the events file."""
        self._events.close()


def _last_step(part: Path) -> int:
    return int(part.stem.removeprefix("step-"))

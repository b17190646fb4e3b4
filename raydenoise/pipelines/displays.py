"""What a person sees while a training or a tuning runs."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raydenoise import tuning
from raydenoise.config.space import described
from raydenoise.pipelines.progress import LINE_SECONDS


class TrainDisplay:
    """The live line of a training: a bar on a terminal, a line every ten seconds elsewhere, nothing when quiet."""

    def __init__(self, steps: int, *, quiet: bool, read: Callable[[], dict[str, Any]]) -> None:
        self._steps, self._read = steps, read
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._bar: Progress | None = None

    def __enter__(self) -> "TrainDisplay":
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("starting the workers", total=self._steps)
            self._bar.start()
        else:
            self._console.print(f"training for {self._steps} steps: starting Ray and the workers")
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._ticker.join()
        if self._bar is not None:
            self._bar.stop()

    def _tick(self) -> None:
        said, last = 0, 0.0
        while not self._stop.wait(1.0):
            try:
                news = self._read()
            except Exception:  # a display must not break a job: the board may be gone with its node
                continue
            if "step" not in news:
                continue
            if self._bar is not None:
                self._bar.update(self._task, completed=news["step"], description=training_line(news))
            elif news["step"] != said and time.monotonic() - last >= LINE_SECONDS:
                left = (self._steps - news["step"]) * news["batch_size"] / news["rate"]
                line = f"step {news['step']} of {self._steps}: {training_line(news)}, about {left:.0f} s left"
                self._console.print(line, markup=False, soft_wrap=True)
                said, last = news["step"], time.monotonic()


def training_line(news: dict[str, Any]) -> str:
    """Describe the last news of a training."""
    psnr = f", validation {news['psnr']['psnr']:.2f} dB" if news["psnr"] else ""
    return f"loss {news['loss']:.5f}{psnr}, {news['rate']:.0f} patches/s"


class TuneDisplay:
    """A line for each trial that ends, and on a terminal a bar of them; nothing when quiet.

    It looks at the folders of the runs: the trials are elsewhere.
    """

    def __init__(self, root: Path, combinations: Sequence[Mapping[str, Any]], *, quiet: bool) -> None:
        self._root, self._combinations = root, combinations
        self._said = {number for number in range(len(combinations)) if tuning.ended(root, number)}
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._bar: Progress | None = None

    def __enter__(self) -> "TuneDisplay":
        total, done = len(self._combinations), len(self._said)
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("tuning", total=total, completed=done)
            self._bar.start()
        else:
            before = f", {done} of them before" if done else ""
            self._console.print(f"tuning with {total} trials{before}: starting Ray and the workers")
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._ticker.join()
        self._look()
        if self._bar is not None:
            self._bar.stop()

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        for number, drawn in enumerate(self._combinations):
            if number not in self._said and tuning.ended(self._root, number):
                self._said.add(number)
                line = trial_line(tuning.read_trial(self._root, number, drawn))
                self._console.print(line, markup=False, soft_wrap=True)
                if self._bar is not None:
                    self._bar.update(self._task, completed=len(self._said))


def trial_line(trial: tuning.Trial) -> str:
    """Describe a trial that ended."""
    psnr = f" with {trial.psnr:.2f} dB" if trial.psnr is not None else ""
    error = f": {trial.error[: tuning.SHOWN_ERROR]}" if trial.error else ""
    return f"trial {trial.number} ({described(trial.drawn)}): {trial.status} at step {trial.steps}{psnr}{error}"

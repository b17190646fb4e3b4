"""What a person sees while a job runs, on stderr: a bar on a terminal, lines elsewhere, nothing when quiet."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from raydenoise import tuning
from raydenoise.config.space import described

LINE_SECONDS = 10.0  # between two lines where the output is no terminal
LOOK_SECONDS = 1.0  # between two looks at how far a job is


class Live:
    """What the displays share: the bar, the lines, and a thread that looks again and again.

    Args:
        look: called by the thread.
        quiet: show nothing.
    """

    def __init__(self, look: Callable[[], None], *, quiet: bool) -> None:
        self._look = look
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def start(self, *, title: str, line: str, total: int, done: int = 0) -> None:
        """Show the bar with its title, or the first line."""
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(
                *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=self._console
            )
            self._task = self._bar.add_task(title, total=total, completed=done, rate="")
            self._bar.start()
        else:
            self.say(line)
        self._ticker.start()

    def stop(self) -> None:
        """Look no more and take the bar away."""
        self._stop.set()
        self._ticker.join()
        if self._bar is not None:
            self._bar.stop()

    @property
    def drawn(self) -> bool:
        """Whether there is a bar, which tells what lines would."""
        return self._bar is not None

    def show(self, done: int, *, title: str | None = None, rate: str = "") -> None:
        """Move the bar where there is one."""
        if self._bar is not None:
            title = title or self._bar.tasks[0].description
            self._bar.update(self._task, completed=done, description=title, rate=rate)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _tick(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self._look()


class Display:
    """How many pictures are done.

    Args:
        total: pictures.
        doing: what is done to them, such as "denoising".
        begin: what comes first, such as "starting Ray".
        quiet: show nothing.
        waiting: tells why nothing comes, where it knows.
    """

    def __init__(self, total: int, *, doing: str, begin: str, quiet: bool, waiting: Callable[[], str | None]) -> None:
        self._total, self._doing, self._begin, self._waiting = total, doing, begin, waiting
        self._done = self._failed = 0
        self._live = Live(self._look, quiet=quiet)
        self._said: str | None = None

    def __enter__(self) -> "Display":
        self._looked = time.monotonic()
        line = f"{self._doing} {self._total} pictures: {self._begin}"
        self._live.start(title=self._begin, line=line, total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, *, done: int, failed: int) -> None:
        """Show how far the job is."""
        if not self._done:
            self._started_work = time.monotonic()
            self._before = done
        self._done, self._failed = done, failed
        self._live.show(done, title=self._doing, rate=self._rate_text())

    def say(self, text: str) -> None:
        """Print one line."""
        self._live.say(text)

    def _rate(self) -> float:
        elapsed = time.monotonic() - self._started_work
        return (self._done - self._before) / elapsed if elapsed > 1 else 0.0

    def _rate_text(self) -> str:
        return f"{self._rate():.1f} images/s, {self._failed} failed" if self._done else ""

    def _look(self) -> None:
        if time.monotonic() - self._looked < LINE_SECONDS:
            return
        self._looked = time.monotonic()
        reason = None if self._done else self._waiting()
        if reason is not None and reason != self._said:
            self.say(reason)
            self._said = reason
        if not self._live.drawn and 0 < self._done < self._total:
            rate = self._rate()
            left = f", about {(self._total - self._done) / rate:.0f} s left" if rate else ""
            self.say(f"{self._done} of {self._total} pictures, {self._rate_text()}{left}")


def say(text: str, *, quiet: bool) -> None:
    """Print one line outside of any display."""
    Console(stderr=True, quiet=quiet, highlight=False).print(text, markup=False, soft_wrap=True)


class TrainDisplay:
    """The step of a training, its loss and its validation.

    Args:
        steps: of the whole training.
        quiet: show nothing.
        read: the last news.
        waiting: tells why nothing comes, where it knows.
    """

    def __init__(
        self, steps: int, *, quiet: bool, read: Callable[[], dict[str, Any]], waiting: Callable[[], str | None]
    ) -> None:
        self._steps, self._read, self._waiting = steps, read, waiting
        self._looked = time.monotonic()
        self._reason: str | None = None
        self._live = Live(self._look, quiet=quiet)
        self._said, self._last = 0, 0.0

    def __enter__(self) -> "TrainDisplay":
        line = f"training for {self._steps} steps: starting Ray and the workers"
        self._live.start(title="starting the workers", line=line, total=self._steps)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _look(self) -> None:
        try:
            self._tell_reason()
            news = self._read()
        except Exception:  # a display must not break a job: the board may be gone with its node
            return
        if "step" not in news:
            return
        self._live.show(news["step"], title=training_line(news))
        if not self._live.drawn and news["step"] != self._said and time.monotonic() - self._last >= LINE_SECONDS:
            left = (self._steps - news["step"]) * news["batch_size"] / news["rate"]
            self._live.say(f"step {news['step']} of {self._steps}: {training_line(news)}, about {left:.0f} s left")
            self._said, self._last = news["step"], time.monotonic()

    def _tell_reason(self) -> None:
        if time.monotonic() - self._looked < LINE_SECONDS:
            return
        self._looked = time.monotonic()
        reason = self._waiting()
        if reason is not None and reason != self._reason:
            self._live.say(reason)
        self._reason = reason


def training_line(news: dict[str, Any]) -> str:
    """Describe the last news of a training."""
    psnr = f", validation {news['psnr']['psnr']:.2f} dB" if news["psnr"] else ""
    return f"loss {news['loss']:.5f}{psnr}, {news['rate']:.0f} patches/s"


class TuneDisplay:
    """The trials of a tuning, a line for each that ends.

    It looks at the folders of the runs: the trials are elsewhere.
    """

    def __init__(self, root: Path, combinations: Sequence[Mapping[str, Any]], *, quiet: bool) -> None:
        self._root, self._combinations = root, combinations
        self._said = {number for number in range(len(combinations)) if tuning.ended(root, number)}
        self._live = Live(self._look, quiet=quiet)

    def __enter__(self) -> "TuneDisplay":
        total, done = len(self._combinations), len(self._said)
        before = f", {done} of them before" if done else ""
        line = f"tuning with {total} trials{before}: starting Ray and the workers"
        self._live.start(title="tuning", line=line, total=total, done=done)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._look()  # trials that ended since

    def _look(self) -> None:
        for number, drawn in enumerate(self._combinations):
            if number not in self._said and tuning.ended(self._root, number):
                self._said.add(number)
                self._live.say(trial_line(tuning.read_trial(self._root, number, drawn)))
                self._live.show(len(self._said))


def trial_line(trial: tuning.Trial) -> str:
    """Describe a trial that ended."""
    psnr = f" with {trial.psnr:.2f} dB" if trial.psnr is not None else ""
    error = f": {trial.error[: tuning.SHOWN_ERROR]}" if trial.error else ""
    return f"trial {trial.number} ({described(trial.drawn)}): {trial.status} at step {trial.steps}{psnr}{error}"

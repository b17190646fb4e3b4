"""The `raydenoise` command."""

import contextlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Literal, Protocol

from raydenoise import __version__, config
from raydenoise.data.secrets import redacted

Summary = dict[str, Any]

DONE, BROKEN, BAD_ARGUMENTS, SOME_FAILED = 0, 1, 2, 3
# What TensorFlow prints at every start: information and warnings, each with its place in the source, and what belongs
# to them. Errors stay.
START_UP = re.compile(
    r"(\d{4}-\d\d-\d\d [\d:.]+: )?[IW](\d{4} [\d:.]+ +\d+)? \S+:\d+\] "
    r"|WARNING: All log messages before absl::InitializeLog"
    r"|To enable the following instructions: "
)


class Settings(Protocol):
    """What the configs of all verbs hold."""

    @property
    def quiet(self) -> bool:
        """Print errors only."""

    @property
    def json(self) -> bool:
        """Print the summary as one JSON line."""

    @property
    def verbose(self) -> bool:
        """Let Ray and TensorFlow talk."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status.

    0: everything done. 1: the job itself broke. 2: bad arguments, said before any work started. 3: finished, and some
    pictures failed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"raydenoise {__version__}")
        return DONE
    if not arguments or arguments[0] not in VERBS:
        return _usage(arguments)
    return VERBS[arguments[0]](arguments[1:])


def denoise(argv: Sequence[str] | None = None) -> int:
    """`raydenoise denoise`: see docs/denoise.md."""
    settings = config.parse(
        config.DenoiseConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise denoise",
        description="Denoise a collection of pictures on Ray.",
    )

    def pipeline() -> Summary:
        from raydenoise.pipelines import denoise  # imports ray: after the arguments are read

        return denoise.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise.pipelines.summaries import print_summary

        print_summary(summary)

    return _run("denoise", settings, pipeline=pipeline, show=show, allowed=settings.allow_failed)


def prepare(argv: Sequence[str] | None = None) -> int:
    """`raydenoise prepare`: see docs/training.md."""
    settings = config.parse(
        config.PrepareConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise prepare",
        description="Cut pictures into shards of training patches on Ray.",
    )

    def pipeline() -> Summary:
        from raydenoise.pipelines import prepare

        return prepare.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise.pipelines.summaries import print_prepared

        print_prepared(summary)

    return _run("prepare", settings, pipeline=pipeline, show=show)


def train(argv: Sequence[str] | None = None) -> int:
    """`raydenoise train`: see docs/training.md."""
    settings = config.parse(
        config.TrainConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise train",
        description="Train a network on Ray Train, data-parallel.",
    )

    def pipeline() -> Summary:
        from raydenoise.pipelines import train

        return train.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise.pipelines.summaries import print_training

        print_training(summary)

    return _run("train", settings, pipeline=pipeline, show=show)


def report(argv: Sequence[str] | None = None) -> int:
    """`raydenoise report`: see docs/report.md."""
    settings = config.parse(
        config.ReportConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise report",
        description="Write a page about a run, without Ray and without a network.",
    )

    def pipeline() -> Summary:
        from raydenoise.report import page

        return page.run(settings)

    def show(summary: Summary) -> None:
        print(f"report  {summary['report']}")

    return _run("report", settings, pipeline=pipeline, show=show)


def tune(argv: Sequence[str] | None = None) -> int:
    """`raydenoise tune`: see docs/tuning.md."""
    settings = config.parse(
        config.TuneConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise tune",
        description="Search for the options of train that give the highest validation PSNR, on Ray Tune.",
    )

    def pipeline() -> Summary:
        from raydenoise.pipelines import tune

        return tune.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise.pipelines.summaries import print_tuning

        print_tuning(summary)

    return _run("tune", settings, pipeline=pipeline, show=show)


def preview(argv: Sequence[str] | None = None) -> int:
    """`raydenoise preview`: see docs/preview.md."""
    settings = config.parse(
        config.PreviewConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise preview",
        description="Show a few pictures before and after, with several settings, on one sheet. Without Ray.",
    )

    def pipeline() -> Summary:
        from raydenoise import preview

        return preview.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise import preview

        preview.show(summary)

    return _run("preview", settings, pipeline=pipeline, show=show)


def inspect(argv: Sequence[str] | None = None) -> int:
    """`raydenoise inspect`: see docs/models.md."""
    settings = config.parse(
        config.InspectConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise inspect",
        description="Describe a model: card, layers, work per pixel, receptive radius, halo, scores. Without Ray.",
    )

    def pipeline() -> Summary:
        from raydenoise import inspection

        return inspection.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise import inspection

        inspection.show(summary)

    return _run("inspect", settings, pipeline=pipeline, show=show)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """`raydenoise evaluate`: see docs/evaluate.md."""
    settings = config.parse(
        config.EvaluateConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise evaluate",
        description="Compare models and classical methods on one set of pictures on Ray.",
    )

    def pipeline() -> Summary:
        from raydenoise.pipelines import evaluate

        return evaluate.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise.pipelines.summaries import print_evaluation

        print_evaluation(summary)

    return _run("evaluate", settings, pipeline=pipeline, show=show)


def status(argv: Sequence[str] | None = None) -> int:
    """`raydenoise status`: see docs/reliability.md."""
    settings = config.parse(
        config.StatusConfig,
        sys.argv[1:] if argv is None else argv,
        prog="raydenoise status",
        description="Tell how far a denoising job is, from its folder alone. Without Ray.",
    )

    def pipeline() -> Summary:
        from raydenoise.report import status

        return status.run(settings)

    def show(summary: Summary) -> None:
        from raydenoise.report import status

        status.show(summary)

    return _run("status", settings, pipeline=pipeline, show=show, allowed="all")


def _run(
    verb: str,
    settings: Settings,
    *,
    pipeline: Callable[[], Summary],
    show: Callable[[Summary], None],
    allowed: int | Literal["all"] = 0,
) -> int:
    """Run the pipeline of a verb and say how it went; returns the exit status."""
    with contextlib.nullcontext() if settings.verbose else native_output_aside() as aside:
        try:
            summary = pipeline()
        except ValueError as error:
            return _fail(verb, f"error: {error}", BAD_ARGUMENTS, verbose=settings.verbose)
        except KeyboardInterrupt:
            return _fail(verb, "interrupted; what was finished is in the output folder", BROKEN, verbose=False)
        except Exception as error:
            sys.stderr.write(redacted(_last_lines(aside)))
            message = f"the job broke: {type(error).__name__}: {error}"
            return _fail(verb, message, BROKEN, verbose=settings.verbose)
    if settings.json:
        print(json.dumps(summary, ensure_ascii=False))
    elif not settings.quiet:
        show(summary)
    return DONE if allowed == "all" or summary.get("failed", 0) <= allowed else SOME_FAILED


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "prepare": prepare,
    "train": train,
    "tune": tune,
    "preview": preview,
    "denoise": denoise,
    "evaluate": evaluate,
    "report": report,
    "status": status,
    "inspect": inspect,
}


def _usage(arguments: list[str]) -> int:
    asked = arguments[:1] in (["-h"], ["--help"])
    stream = sys.stdout if asked else sys.stderr
    if arguments and not asked:
        print(f"raydenoise: error: {arguments[0]!r} is unknown; allowed: {', '.join(VERBS)}", file=stream)
    print("usage: raydenoise {" + ",".join(VERBS) + "} ...   (raydenoise VERB --help tells more)", file=stream)
    return DONE if asked else BAD_ARGUMENTS


def _fail(verb: str, message: str, status: int, *, verbose: bool) -> int:
    if verbose:
        sys.stderr.write(redacted(traceback.format_exc()))
    print(redacted(f"raydenoise {verb}: {message}"), file=sys.stderr)
    return status


@contextlib.contextmanager
def native_output_aside() -> Iterator[IO[bytes]]:
    """Keep what Ray's and TensorFlow's native code prints away from the terminal; yields where it goes.

    It writes to file descriptor 2 past Python and past every log level, so that the descriptor is what must be turned
    aside. Python's own stderr stays where it was.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as sink, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        python_stderr = sys.stderr
        if _is_descriptor_2(python_stderr):
            python_stderr.flush()
            sys.stderr = terminal
        os.dup2(sink.fileno(), 2)
        try:
            yield sink
        finally:
            os.dup2(terminal.fileno(), 2)
            sys.stderr = python_stderr


def _is_descriptor_2(stream: object) -> bool:
    try:
        return bool(stream.fileno() == 2)  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return False


def _last_lines(native: IO[bytes] | None, count: int = 10) -> str:
    """The end of what native code printed, without TensorFlow's start: it may say why a job broke."""
    if native is None:
        return ""
    native.seek(0)
    lines = native.read().decode(errors="replace").splitlines()
    return "".join(line + "\n" for line in [line for line in lines if not START_UP.match(line)][-count:])


if __name__ == "__main__":
    sys.exit(main())

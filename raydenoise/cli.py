"""The `raydenoise` command."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from raydenoise import __version__, config

DONE, BROKEN, BAD_ARGUMENTS, SOME_FAILED = 0, 1, 2, 3


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
    _quiet_libraries(verbose=settings.verbose)
    try:
        from raydenoise.pipelines import denoise as pipeline  # imports ray: seconds, so after the arguments are read
        from raydenoise.pipelines.progress import print_summary

        summary = pipeline.run(settings)
    except ValueError as error:
        return _fail(f"error: {error}", BAD_ARGUMENTS, verbose=settings.verbose)
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished is in the output folder", BROKEN, verbose=False)
    except Exception as error:
        return _fail(f"the job broke: {type(error).__name__}: {error}", BROKEN, verbose=settings.verbose)
    if settings.json:
        print(json.dumps(summary, ensure_ascii=False))
    elif not settings.quiet:
        print_summary(summary)
    return SOME_FAILED if summary["failed"] else DONE


VERBS: dict[str, Callable[[Sequence[str]], int]] = {"denoise": denoise}


def _usage(arguments: list[str]) -> int:
    asked = arguments[:1] in (["-h"], ["--help"])
    stream = sys.stdout if asked else sys.stderr
    if arguments and not asked:
        print(f"raydenoise: error: {arguments[0]!r} is unknown; allowed: {', '.join(VERBS)}", file=stream)
    print("usage: raydenoise {" + ",".join(VERBS) + "} ...   (raydenoise VERB --help tells more)", file=stream)
    return DONE if asked else BAD_ARGUMENTS


def _fail(message: str, status: int, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print(f"raydenoise denoise: {message}", file=sys.stderr)
    return status


def _quiet_libraries(*, verbose: bool) -> None:
    """Say to the libraries, before they are imported here or in a worker, what they may print."""
    if not verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")


if __name__ == "__main__":
    sys.exit(main())

"""Options of `raydenoise status`."""

from dataclasses import dataclass

from raydenoise.config.options import option


@dataclass(frozen=True)
class StatusConfig:
    """What `raydenoise status` does."""

    output: str = option("output folder of raydenoise denoise: local, s3:// or gs://", metavar="OUT", nargs="?")
    json: bool = option("print everything as one JSON line", default=False, read=bool)
    verbose: bool = option("print the whole trace of an error", default=False, read=bool)

    @property
    def quiet(self) -> bool:
        """To print is all that it does."""
        return False

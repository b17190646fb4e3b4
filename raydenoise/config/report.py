"""Options of `raydenoise report`."""

from dataclasses import dataclass

from raydenoise.config.options import option, quiet_option


@dataclass(frozen=True)
class ReportConfig:
    """What `raydenoise report` does. A value that is not allowed raises ValueError when the config is made."""

    folder: str = option(
        "output folder of raydenoise denoise, train, evaluate or prepare", metavar="OUT|RUN|EVAL|SHARDS", nargs="?"
    )
    output: str | None = option(
        "folder for report.html and report/*.png; by default the folder itself", default=None, metavar="DIR"
    )
    pictures: int = option("best and as many worst pictures to show; 0: none", default=3, read=int, metavar="N")
    quiet: bool = quiet_option()
    json: bool = option("print where the report is as one JSON line", default=False, read=bool)
    verbose: bool = option("print the whole trace of an error", default=False, read=bool)

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures is {self.pictures}; allowed: 0 or more")

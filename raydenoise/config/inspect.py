"""Options of `raydenoise inspect`."""

from dataclasses import dataclass

from raydenoise.config.options import option


@dataclass(frozen=True)
class InspectConfig:
    """What `raydenoise inspect` does."""

    bundle: str = option("shipped name, bundle folder, or .keras / .h5 file", metavar="BUNDLE", nargs="?")
    json: bool = option("print everything as one JSON line", default=False, read=bool)
    verbose: bool = option("let TensorFlow talk", default=False, read=bool)

    @property
    def quiet(self) -> bool:
        """To print is all that it does."""
        return False

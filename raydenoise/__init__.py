"""raydenoise: denoise large collections of pictures with Ray Data and Keras."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydenoise.model.denoiser import Denoiser

__all__ = ["Denoiser", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import on first use: `import raydenoise` alone costs milliseconds."""
    if name == "Denoiser":
        from raydenoise.model.denoiser import Denoiser

        return Denoiser
    raise AttributeError(f"module 'raydenoise' has no attribute {name!r}")

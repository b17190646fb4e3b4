"""One typed, frozen config per verb."""

from raydenoise.config.denoise import FORMATS, PRECISIONS, DenoiseConfig
from raydenoise.config.evaluate import EvaluateConfig
from raydenoise.config.options import parse
from raydenoise.config.prepare import PrepareConfig
from raydenoise.config.train import TrainConfig

__all__ = ["FORMATS", "PRECISIONS", "DenoiseConfig", "EvaluateConfig", "PrepareConfig", "TrainConfig", "parse"]

"""One typed, frozen config per verb."""

from raydenoise.config.denoise import FORMATS, PRECISIONS, DenoiseConfig
from raydenoise.config.evaluate import EvaluateConfig
from raydenoise.config.inspect import InspectConfig
from raydenoise.config.options import parse
from raydenoise.config.prepare import PrepareConfig
from raydenoise.config.preview import PreviewConfig
from raydenoise.config.report import ReportConfig
from raydenoise.config.status import StatusConfig
from raydenoise.config.train import TrainConfig
from raydenoise.config.tune import TuneConfig

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "DenoiseConfig",
    "EvaluateConfig",
    "InspectConfig",
    "PrepareConfig",
    "PreviewConfig",
    "ReportConfig",
    "StatusConfig",
    "TrainConfig",
    "TuneConfig",
    "parse",
]

"""Models: blocks put together, and known models as values."""

from nestling.models.config import ModelConfig
from nestling.models.language_model import LanguageModel, ModelState
from nestling.models.presets import build, configure, match_parameters, parameter_count

__all__ = [
    "LanguageModel",
    "ModelConfig",
    "ModelState",
    "build",
    "configure",
    "match_parameters",
    "parameter_count",
]

"""Models: blocks put together, and known models as values."""

from nestling.models.config import ModelConfig
from nestling.models.language_model import LanguageModel
from nestling.models.observe import Observation, losses, observe
from nestling.models.presets import build, configure, match_parameters, parameter_count
from nestling.models.reset import reset
from nestling.models.state import ModelState
from nestling.models.warm_start import with_level, with_levels

__all__ = [
    "LanguageModel",
    "ModelConfig",
    "ModelState",
    "Observation",
    "build",
    "configure",
    "losses",
    "match_parameters",
    "observe",
    "parameter_count",
    "reset",
    "with_level",
    "with_levels",
]

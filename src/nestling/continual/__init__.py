"""Continual learning: what is kept and what is lost while a model learns one thing after another."""

from nestling.continual.metrics import (
    backward_transfer,
    final_average,
    forgetting,
    forgetting_by_domain,
    forward_transfer,
    plasticity,
)

__all__ = [
    "backward_transfer",
    "final_average",
    "forgetting",
    "forgetting_by_domain",
    "forward_transfer",
    "plasticity",
]

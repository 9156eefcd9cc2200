"""Continual learning: what is kept and what is lost while a model learns on and on."""

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

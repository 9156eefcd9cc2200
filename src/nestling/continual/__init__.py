"""Continual learning: what is kept and what is lost while a model learns on and on."""

from nestling.continual.metrics import (
    average_incremental,
    backward_transfer,
    errors,
    final_average,
    forgetting,
    forgetting_by_domain,
    forward_transfer,
    intransigence,
    online_average,
    plasticity,
    savings,
)

__all__ = [
    "average_incremental",
    "backward_transfer",
    "errors",
    "final_average",
    "forgetting",
    "forgetting_by_domain",
    "forward_transfer",
    "intransigence",
    "online_average",
    "plasticity",
    "savings",
]

"""Which parameters fade: matrices get weight decay, everything that is a scale or a table does not.

Decay pulls a weight toward zero between its updates. That is a prior for a matrix, and damage for
a norm's scale, a bias, or the embedding of a symbol that has not been seen for a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

NO_DECAY = ("embed", "norm", "bias", "scale")
"""Parts of a name that mark tables and scales, whatever their number of axes."""


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix (or a stack of them) and not a table or a scale.

    >>> decays("blocks.0.mlp.w_in", torch.zeros(4, 8)), decays("embedding.weight", torch.ones(9, 4))
    (True, False)
    """
    return parameter.ndim >= 2 and not any(mark in name.lower() for mark in NO_DECAY)


def decay_groups(
    parameters: Mapping[str, Parameter], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of a torch optimizer, those with weight decay first; empty ones left out.

    >>> named = {"w": Parameter(torch.zeros(2, 2)), "norm.weight": Parameter(torch.ones(2))}
    >>> [(len(g["params"]), g["weight_decay"]) for g in decay_groups(named, weight_decay=0.1)]
    [(1, 0.1), (1, 0.0)]
    """
    fading = [p for name, p in parameters.items() if decays(name, p)]
    others = [p for name, p in parameters.items() if not decays(name, p)]
    groups = [
        {"params": fading, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    parameters: Mapping[str, Parameter],
    *,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """``torch.optim.AdamW`` over :func:`decay_groups`.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        W <- W - lr (m' / (sqrt(v') + eps) + weight_decay W)          m', v' bias-corrected

    >>> named = {"w": Parameter(torch.ones(2, 2))}
    >>> optimizer = adamw(named, lr=0.1, weight_decay=0.5)
    >>> named["w"].grad = torch.ones(2, 2)
    >>> optimizer.step()
    >>> round(named["w"][0, 0].item(), 4)    # 1 - 0.1 (1 + 0.5)
    0.85
    """
    groups = decay_groups(parameters, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)

from __future__ import annotations

import torch
from torch.nn import Parameter

from nestling.optim import adamw, decay_groups

NAMED = {
    "embedding.weight": Parameter(torch.ones(9, 4)),
    "blocks.0.norm.weight": Parameter(torch.ones(4)),
    "blocks.0.mixer.norm": Parameter(torch.ones(2, 4)),
    "blocks.0.mixer.w_in": Parameter(torch.ones(2, 4, 4)),
    "blocks.0.mlp.weight": Parameter(torch.ones(4, 4)),
    "blocks.0.mlp.bias": Parameter(torch.ones(4)),
}


def test_only_matrices_decay():
    fading, others = decay_groups(NAMED, weight_decay=0.3)
    assert {id(p) for p in fading["params"]} == {
        id(NAMED["blocks.0.mixer.w_in"]),
        id(NAMED["blocks.0.mlp.weight"]),
    }
    assert len(others["params"]) == 4
    assert (fading["weight_decay"], others["weight_decay"]) == (0.3, 0.0)


def test_zero_gradient_leaves_all_but_matrices_where_they_are():
    optimizer = adamw(NAMED, lr=0.1, weight_decay=0.5)
    for parameter in NAMED.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    means = {name: round(p.mean().item(), 6) for name, p in NAMED.items()}
    assert means == {name: 0.95 if name.endswith(("w_in", "mlp.weight")) else 1.0 for name in NAMED}

from __future__ import annotations

import pytest
import torch

from nestling.train import warmup_cosine


def test_matches_torch_cosine_after_a_linear_rise():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80, eta_min=0.05)
    factors = [warmup_cosine(s, steps=90, warmup=10, floor=0.05) for s in range(91)]
    assert factors[:10] == [(s + 1) / 10 for s in range(10)]
    for step in range(10, 91):
        assert factors[step] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        reference.step()


def test_ends():
    assert warmup_cosine(0, steps=5) == 1.0
    assert warmup_cosine(7, steps=5, floor=0.2) == 0.2
    assert warmup_cosine(2, steps=5, warmup=10) == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1, "steps": 5}, "step: expected a whole number >= 0, got -1"),
        ({"step": 0, "steps": 0}, "steps: expected a whole number >= 1, got 0"),
        ({"step": 0, "steps": 5, "floor": 1.5}, r"floor: expected a number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(**arguments)

"""What torch optimizers remember: told from the real state after a step, and asked before it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from nestling.levels import Level
from nestling.optim import memories

MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, betas=(0.8, 0.97)),
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "rmsprop": lambda p: torch.optim.RMSprop(p, alpha=0.95),
    "centered": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
}
EXPECTED = {
    "sgd": {},
    "momentum": {"momentum_buffer": ("DotProduct x Decay(0.8)", "gradients", 31)},
    "adam": {
        "exp_avg": ("DotProduct x Decay(0.8)", "gradients", 31),
        "exp_avg_sq": ("DotProduct x Decay(0.97)", "squared gradients", 31),
    },
    "rmsprop": {"square_avg": ("DotProduct x Decay(0.95)", "squared gradients", 31)},
    "adagrad": {"sum": ("DotProduct x Keep", "squared gradients", 31)},
    # a row and a column of the (4, 6) matrix; (6,) and () have a plain second moment
    "adafactor": {
        "row_var": ("row_var of Adafactor", "squared gradients, mean of every row", 4),
        "col_var": ("col_var of Adafactor", "squared gradients, mean of every column", 6),
        "variance": ("variance of Adafactor", "squared gradients", 7),
    },
}


def parameters() -> list[Parameter]:
    return [Parameter(torch.ones(shape)) for shape in ((4, 6), (6,), ())]


def told(optimizer):
    return {
        m.component.name.removeprefix("optimizer."): (
            m.component.rule,
            m.component.context_flow,
            m.component.parameters,
        )
        for m in memories(optimizer)
    }


def state_size(optimizer: torch.optim.Optimizer) -> int:
    """Numbers held, counted another way: everything but one count for each parameter."""
    clocks = ("step", "mu_product", "eta", "mu")
    return sum(
        value.numel()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and key not in clocks
    )


@pytest.mark.parametrize("name", MAKERS)
def test_asked_before_the_first_step_is_told_after_it(name):
    held = parameters()
    optimizer = MAKERS[name](held)
    asked = told(optimizer)
    assert all(not torch.is_nonzero((p != 1).any()) for p in held), "asking moves nothing"
    for parameter in held:
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    assert asked == told(optimizer)
    assert sum(size for _, _, size in asked.values()) == state_size(optimizer)
    if name in EXPECTED:
        assert asked == EXPECTED[name]


def test_asking_leaves_no_trace():
    optimizer = MAKERS["adamw"](parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    memories(optimizer)
    assert calls == []
    assert len(optimizer.state) == 0
    assert [len(group["params"]) for group in optimizer.param_groups] == [3]


def test_second_moment_needs_no_first_but_what_is_made_of_another_comes_after_it():
    after = {m.component.name: m.component.after for m in memories(MAKERS["adam"](parameters()))}
    assert after == {"optimizer.exp_avg": (), "optimizer.exp_avg_sq": ()}
    found = memories(MAKERS["amsgrad"](parameters()), level=Level(32), name="opt")
    assert [(m.component.name, m.component.after) for m in found] == [
        ("opt.exp_avg", ()),
        ("opt.exp_avg_sq", ()),
        ("opt.max_exp_avg_sq", ("opt.exp_avg_sq",)),
    ]
    assert {m.component.level.period for m in found} == {32}


def test_groups_of_different_rules_are_different_memories():
    a, b, c = parameters()
    optimizer = torch.optim.SGD(
        [{"params": [a]}, {"params": [b], "momentum": 0.5}, {"params": [c], "momentum": 0.9}],
        lr=0.1,
    )
    found = memories(optimizer)
    assert [(m.component.name, m.component.parameters) for m in found] == [
        ("optimizer.momentum_buffer (DotProduct x Decay(0.5))", 6),
        ("optimizer.momentum_buffer (DotProduct x Decay(0.9))", 1),
    ]
    assert [m.serves for m in found] == [(b,), (c,)]


def test_frozen_parameters_are_not_remembered():
    a, b, c = parameters()
    b.requires_grad_(False)
    assert told(MAKERS["adam"]([a, b, c]))["exp_avg"][2] == 25


def test_big_models_are_asked_without_their_memory():
    with torch.device("meta"):
        weight = Parameter(torch.empty(100_000, 100_000))
    assert told(MAKERS["adamw"]([weight]))["exp_avg"][2] == 10**10


def test_what_cannot_be_asked_says_so():
    with pytest.raises(ValueError, match="LBFGS has not moved yet"):
        memories(torch.optim.LBFGS(parameters()))

"""Momenta are memories: in the table of levels each stands at its own period."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import CASES, PLAIN, Small, small, train
from torch import nn

from nestling.levels import Level
from nestling.optim import M3, LevelwiseOptimizer, memories
from nestling.train.system import nested_system

every = pytest.mark.parametrize("name", CASES)
CLOCKS = ("step",)


def told(optimizer, **words):
    return [
        (m.component.name, m.component.rule, m.component.level.period, m.component.parameters,
         m.component.after, m.component.objective, len(m.serves))
        for m in memories(optimizer, **words)
    ]  # fmt: skip


@every
def test_asked_before_the_first_step_is_told_after_it(name):
    model = small()
    optimizer = CASES[name].make(model)
    asked = told(optimizer)
    assert len(optimizer.state) == 0
    train(model, optimizer, range(6))
    assert told(optimizer) == asked
    held = sum(
        value.numel()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key not in CLOCKS
    )
    assert sum(parameters for _, _, _, parameters, *_ in asked) == held


def test_what_m3_remembers():
    """224 numbers in five matrices, 35 in biases and a norm."""
    optimizer = M3(Small(), frequency=5, betas=(0.8, 0.7, 0.6))
    assert [row[:5] for row in told(optimizer, level=Level(64), name="opt")] == [
        ("opt.fast", "DotProduct x Decay(0.8) x NewtonSchulz", 64, 224, ()),
        ("opt.slow", "DotProduct x Decay(0.6) x NewtonSchulz", 320, 224, ()),
        ("opt.slow_output", "held", 320, 224, ("opt.slow",)),
        ("opt.second_moment (DotProduct x Decay(0.7))", "DotProduct x Decay(0.7)", 64, 224, ()),
        ("opt.momentum", "DotProduct x Decay(0.9)", 64, 35, ()),
        ("opt.second_moment (DotProduct x Decay(0.95))", "DotProduct x Decay(0.95)", 64, 35, ()),
    ]


def test_the_second_moment_of_updates_comes_after_them():
    rows = {row[0]: row[4] for row in told(CASES["m3_updates"].make([nn.Linear(4, 4).weight]))}
    assert rows["optimizer.second_moment"] == ("optimizer.fast", "optimizer.slow_output")
    rows = {row[0]: row[4] for row in told(CASES["adamuon"].make([nn.Linear(4, 4).weight]))}
    assert rows["optimizer.second_moment"] == ("optimizer.momentum",)


def test_second_moments_of_updates_and_of_gradients_that_fade_alike_are_told_apart():
    rows = {row[0]: row[4] for row in told(CASES["adamuon"].make(small()))}
    of = "optimizer.second_moment (DotProduct x Decay(0.95), squared {})"
    momentum = "optimizer.momentum (DotProduct x Decay(0.95) x NewtonSchulz)"
    assert rows[of.format("updates")] == (momentum,)
    assert rows[of.format("gradients")] == ()


def test_a_deep_memory_says_what_it_is():
    found = memories(CASES["dmgd_ones"].make([nn.Linear(8, 4).weight]))
    assert [(m.component.name, m.component.memory, m.component.objective, m.component.parameters)
            for m in found] == [
        ("optimizer.deep_w_in", "MLP, 2 layers", "L(m(g); 1)", 24),
        ("optimizer.deep_w_out", "MLP, 2 layers", "L(m(g); 1)", 24),
    ]  # fmt: skip


@pytest.mark.parametrize("moved", [False, True])
def test_the_system_of_a_model_and_m3(moved):
    """The slow momentum is slower than the weights: f steps of 128 tokens."""
    model = small()
    optimizer = M3(model, frequency=5)
    if moved:
        train(model, optimizer, range(3))
    system = nested_system(model, optimizer, tokens_per_step=128)
    periods = {c.name: c.level.period for c in system.components}
    assert periods["optimizer.fast"] == periods["optimizer.momentum"] == 128
    assert periods["optimizer.slow"] == periods["optimizer.slow_output"] == 640
    weights = [c for c in system.components if c.kind == "weights"]
    assert {c.level.period for c in weights} == {128}
    assert sum(c.parameters for c in weights) == sum(p.numel() for p in model.parameters())
    numbers = system.numbers
    assert numbers["optimizer.fast"] < numbers[weights[0].name] < numbers["optimizer.slow"]


@pytest.mark.parametrize("name", PLAIN)
def test_the_system_of_every_optimizer(name):
    model = small()
    system = nested_system(model, PLAIN[name].make(model), tokens_per_step=16)
    moments = [c for c in system.components if c.kind == "moments"]
    assert moments
    assert all(c.level.period % 16 == 0 for c in moments)
    assert all(system.numbers[c.name] >= 1 for c in system.components)


def test_the_system_of_levels_with_an_optimizer_each():
    """A momentum of period 5 in a level of period 32 moves every 160 tokens."""
    model = small()
    named = dict(model.named_parameters())
    slow = {n: p for n, p in named.items() if n.startswith("second")}
    fast = {n: p for n, p in named.items() if n not in slow}
    optimizer = LevelwiseOptimizer(
        [(Level(8), fast), (Level(32), slow)], lambda held: M3(held.items(), frequency=5)
    )
    system = nested_system(model, optimizer, tokens_per_step=8)
    periods = {c.name: c.level.period for c in system.components}
    assert periods["optimizer.period_8.slow"] == 40
    assert periods["optimizer.period_32.slow"] == 160
    assert periods["optimizer.period_32.fast"] == 32
    assert torch.equal(named["second.weight"], small().second.weight)

"""Small chains in float64, with everything random that a test could otherwise miss."""

from __future__ import annotations

import dataclasses

import torch

from nestling.continuum import (
    Adam,
    ContinuumConfig,
    ContinuumLevel,
    DeltaGradientDescent,
    GradientDescent,
    HeavyBall,
    InContext,
    Local,
    chunked,
    recurrent,
)
from nestling.continuum.config import VARIANTS
from nestling.continuum.source import Given
from nestling.layers.continuum import ContinuumMemory
from nestling.memory import DotProduct, Huber, flatten, map_tensors

RULES = {
    "sgd": GradientDescent(),
    "momentum": HeavyBall(0.7),
    "adam": Adam(eps=1e-3),
    "dgd": DeltaGradientDescent(),
}
SOURCES = {
    "local": Local(matrices="every"),
    "local_dot_projected": Local(DotProduct(), key="projection", matrices="every"),
    "local_huber_last": Local(Huber(0.3), matrices="last"),
    "given": Local(matrices="every"),
}
THREE, FOUR = (2, 3, 7), (1, 3, 5, 8)
WIDTH = 5


def memory(
    variant, periods, rules, source=SOURCES["local"], *, steps=(0.02, 0.01, 0.03, 0.02), seed=0,
    kept=(1.0, 0.7, 0.9, 0.5),
):  # fmt: skip
    """Levels of different rules, step sizes, retention and hidden sizes; no parameter as begun."""
    levels = tuple(
        ContinuumLevel(period, InContext(rule=rules[i % len(rules)], source=source,
                                         step_size=steps[i % len(steps)],
                                         kept=kept[i % len(kept)]), hidden=3 + i)
        for i, period in enumerate(periods)
    )  # fmt: skip
    torch.manual_seed(seed)
    made = ContinuumMemory(WIDTH, ContinuumConfig(levels=levels, variant=VARIANTS[variant]))
    made = made.double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
            if "norm" in name:
                parameter.mul_(1.2)
    return made


def with_errors(chain, batch, length, seed=5):
    """The same chain with random errors from elsewhere, other ones for every level and token."""
    g = torch.Generator().manual_seed(seed)
    levels = [
        dataclasses.replace(
            level, source=Given(torch.randn(batch, length, WIDTH, generator=g).double())
        )
        for level in chain.levels
    ]
    return dataclasses.replace(chain, levels=tuple(levels))


def random_state(made, batch, seed=3):
    """A state in the middle of a text: own weights, errors, moments and clocks for each row."""
    torch.manual_seed(seed)
    state = made.initial_state(batch)

    def shake(x):
        if not x.is_floating_point():
            return x
        return (x + 0.1 * torch.randn_like(x).abs()).detach().requires_grad_()

    state = map_tensors(shake, state)
    levels = {}
    for index, level in state.levels.items():
        period = made.config.periods[int(index)]
        clock = torch.randint(0, min(period or 9, 9), (batch,))
        age = torch.randint(0, 3, (batch,))
        levels[index] = dataclasses.replace(level, clock=clock, age=age, writes=age + 1,
                                            seen=clock + 50, contributed=clock + 20)  # fmt: skip
    return dataclasses.replace(state, levels=levels)


def batch_of(states):
    """Rows that were computed one by one as one state."""
    rows = [flatten(state) for state in states]
    return {path: torch.cat([row[path] for row in rows]) for path in rows[0]}


def gradients(outputs, inputs):
    loss = sum((out.sin() * torch.linspace(0.5, 1.5, out.numel()).view(out.shape)).sum()
               for out in outputs if out.is_floating_point())  # fmt: skip
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(inputs.items(), found, strict=True)
    }


def both(made, x, state, lengths=None, errors=False):
    """(outputs, end state, all gradients) of the definition and of the chunked form."""
    B, T = x.shape[:2]
    chain = made.chain()
    if errors:
        chain = with_errors(chain, B, T)
    inputs = {"x": x, **dict(made.named_parameters())}
    inputs |= {p: t for p, t in flatten(state).items() if t.requires_grad and t.is_leaf}
    found = []
    for engine in (recurrent, chunked):
        y, end = engine(chain, x, state, lengths)
        end = batch_of(end) if isinstance(end, list) else flatten(end)
        if lengths is not None:
            padded = torch.arange(T)[None] >= lengths[:, None]
            y = y.masked_fill(padded[..., None], 0.0)
        found.append((y, end, gradients([y, *end.values()], inputs)))
    return found

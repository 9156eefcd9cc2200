"""The memories, rules and paddings that the laws are tried on."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from nestling.memory import (
    L2,
    Decay,
    DecayToInitial,
    Delta,
    DotProduct,
    Huber,
    Keep,
    LearningRule,
    Momentum,
    NewtonSchulz,
)

from . import problem as problems
from .problem import (
    ENGINES,
    Problem,
    assert_same,
    engine_answers,
    random_problem,
    value_and_gradients,
)

RULES = {
    "dgd": LearningRule(objective=L2(), retention=Delta(), momentum=Momentum()),
    "to_initial": LearningRule(objective=Huber(0.4), retention=Delta(DecayToInitial())),
    "decay": LearningRule(objective=DotProduct(), retention=Decay(), momentum=Momentum()),
    "keep": LearningRule(objective=L2(), retention=Keep()),
    "mapped": LearningRule(
        objective=L2(), retention=Delta(), momentum=Momentum(), output_map=NewtonSchulz()
    ),
    "mapped_sum": LearningRule(
        objective=L2(), retention=DecayToInitial(), output_map=NewtonSchulz()
    ),
    "own_values": LearningRule(objective=L2(), retention=Delta(), values="self"),
}
MEMORIES = ("linear", "mlp", "deep_mlp")

each_engine = pytest.mark.parametrize("engine", ENGINES)
each_rule = pytest.mark.parametrize("rule", RULES)
each_case = pytest.mark.parametrize(
    ("memory", "rule"),
    [*product(MEMORIES[:2], RULES), ("deep_mlp", "dgd"), ("deep_mlp", "own_values")],
)
each_memory = pytest.mark.parametrize("memory", MEMORIES)


def problem_of(memory: str, rule: str, **shape) -> Problem:
    """A random problem; self-made values need a square linear memory."""
    square = memory == "linear" and RULES[rule].values == "self"
    return random_problem("square" if square else memory, RULES[rule], **shape)


def judge(problem: Problem, *, what: str = "") -> None:
    """Answers and gradients of both engines are those of the autograd reference, and finite."""
    expected = value_and_gradients(problem, problems.port_answers)
    for engine in ENGINES:
        found = value_and_gradients(problem, lambda p, engine=engine: engine_answers(p, engine))
        for mine, right, kind in zip(found, expected, ("value of", "gradient at"), strict=True):
            label = f"{what} {engine}, {kind}"
            assert all(bool(x.isfinite().all()) for x in mine.values()), f"{label}: not finite"
            assert_same(mine, right, what=label)


PADDING = {
    "left": "...xxxxxxxxxx",
    "right": "xxxxxxxxxx...",
    "middle": "xxx..xx.xxxxx",
    "chunk_edges": "xxxx.x.xxxx..",
    "almost_all": "......x......",
    "all": ".............",
    "none": "xxxxxxxxxxxxx",
}


def padded(memory: str, rule: str, first: str, second: str = "none") -> Problem:
    """Two rows with different masks; masked entries hold ordinary numbers."""
    mask = torch.tensor([[mark == "x" for mark in PADDING[kind]] for kind in (first, second)])
    return replace(problem_of(memory, rule), mask=mask)

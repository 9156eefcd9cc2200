"""Wrong arguments are refused by name before any arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nestling.engine import scan
from nestling.memory import (
    L2,
    Delta,
    LearningRule,
    LinearMemory,
    MemoryState,
    MLPMemory,
    Momentum,
    SoftmaxMemory,
)

from .problem import ENGINES, memory_named, random_problem

RULE = LearningRule(objective=L2(), retention=Delta(), momentum=Momentum())
each_engine = pytest.mark.parametrize("engine", ENGINES)


def refuse(argument: str, memory: str = "linear", *, rule=RULE, state=(), **changes) -> None:
    """A scan with ``changes`` (of its tokens, its state or its options) must name ``argument``."""
    problem = random_problem(memory, RULE)
    options = {"chunk_size": 5, "engine": "chunked"}
    options |= {n: changes.pop(n) for n in ("chunk_size", "engine", "reads") if n in changes}
    fed = {
        n: change(getattr(problem.tokens(), n)) if callable(change) else change
        for n, change in changes.items()
    }
    given = replace(problem.state(), **dict(state))
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        scan(memory_named(memory), rule, given, replace(problem.tokens(), **fed), **options)


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, True, "5", None])
def test_chunk_size(chunk_size):
    """A positive whole number and nothing else."""
    refuse("chunk_size", chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_chunk_size_of_softmax(chunk_size):
    """Checked there too, though it changes nothing."""
    problem = random_problem("linear", RULE)
    with pytest.raises(ValueError, match="chunk_size"):
        scan(
            SoftmaxMemory(), LearningRule(), MemoryState(weights={}), problem.tokens(),
            chunk_size=chunk_size,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["fast", "", None, "Chunked"])
def test_engine_name(name):
    """The two that exist are named in the message."""
    refuse("engine", engine=name)
    refuse("recurrent", engine=name)


def test_reads_name():
    """Exact or at the anchor."""
    refuse("reads", reads="sometimes")


@each_engine
def test_missing_gates(engine):
    """Momentum needs beta, and every write needs eta."""
    refuse("beta", beta=None, engine=engine)
    refuse("eta", eta=None, engine=engine)


@each_engine
@pytest.mark.parametrize("name", ["k", "v", "q", "eta", "alpha", "beta"])
def test_token_shapes(name, engine):
    """One token too few, an axis too few, a row too many; k and v are held against each other."""
    named = "(k|v)" if name == "k" else name
    refuse(named, **{name: lambda x: x[:, :, 1:]}, engine=engine)
    refuse(named, **{name: lambda x: x[0]}, engine=engine)
    refuse(named, **{name: lambda x: torch.cat([x, x])}, engine=engine)


@pytest.mark.parametrize("name", ["k", "v", "q", "eta", "alpha", "beta"])
def test_token_dtypes(name):
    """Whole numbers and complex ones are no tokens, and precisions are not mixed silently."""
    refuse(name, **{name: lambda x: x.long()})
    refuse(name, **{name: lambda x: x.to(torch.complex128)})
    refuse(name, **{name: lambda x: x.float()})


@pytest.mark.parametrize("name", ["k", "v", "q", "eta", "alpha", "beta"])
def test_token_devices(name):
    """Everything lives where the state lives."""
    refuse(name, **{name: lambda x: x.to("meta")})


def test_empty():
    """No token is no scan."""
    problem = random_problem("linear", RULE)
    with pytest.raises(ValueError, match=r"\bk\b"):
        scan(LinearMemory(), RULE, problem.state(), problem.tokens(slice(0, 0)), chunk_size=5)


@each_engine
def test_mask(engine):
    """Bool, and one flag per row and token."""
    refuse("mask", mask=torch.ones(2, 13), engine=engine)
    refuse("mask", mask=torch.ones(2, 12, dtype=torch.bool), engine=engine)
    refuse("mask", mask=torch.ones(2, 2, 13, dtype=torch.bool), engine=engine)


@pytest.mark.parametrize("group", ["weights", "momentum", "anchor", "initial"])
def test_state_tensors(group):
    """Foreign names, shapes, dtypes and devices in any part of the state."""
    zeros = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    for wrong in (
        {"v": zeros},
        {"w": zeros.mT},
        {"w": zeros[:1]},
        {"w": zeros.long()},
        {"w": zeros.float()},
        {"w": zeros.to("meta")},
    ):
        # A dtype or device of the weights' own shows where the rest of the state does not follow.
        named = "(weights|momentum)" if group == "weights" else group
        refuse(named, state={group: wrong})


def test_state_clock():
    """One whole number per row, inside a chunk."""
    refuse("position", state={"position": torch.zeros(2)})
    refuse("position", state={"position": torch.zeros(3, dtype=torch.long)})
    anchor = random_problem("linear", RULE).state().weights
    for place in (-1, 5, 99):
        refuse("position", state={"position": torch.full((2,), place), "anchor": anchor})


def test_open_chunk_without_anchor():
    """A clock inside a chunk needs the weights at the chunk's start."""
    refuse("anchor", state={"position": torch.full((2,), 3)})


def test_mlp_needs_equal_sizes():
    """The residual adds the key to the value."""
    refuse("v", "mlp", v=lambda x: x[..., :3])
    refuse("v", "mlp", v=lambda x: torch.cat([x, x], -1))


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"hidden": -4}, {"depth": 1}, {"depth": 0}])
def test_mlp_sizes(wrong):
    """At least one hidden unit and two matrices."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MLPMemory(**{"hidden": 4, "depth": 2, **wrong})


def test_rule_fields():
    """The rule's own choices are checked when it is made."""
    with pytest.raises(ValueError, match="values"):
        LearningRule(values="mine")
    with pytest.raises(ValueError, match="matrices"):
        Delta(matrices="last")

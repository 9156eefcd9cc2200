"""What optimizers refuse: the error names the argument, and nothing has been moved or added."""

from __future__ import annotations

import re

import jaxtyping
import pytest
import torch
from optimizer_cases import CASES, MLP, PLAIN, small
from torch import nn
from torch.nn import Parameter

from nestling.memory import L2, LinearMemory, Lp
from nestling.optim import (
    DGD,
    DMGD,
    GGD,
    M3,
    AdaMuon,
    DeltaMomentum,
    GeneralizedMomentum,
    GradientMemory,
    GradientRule,
    Orthogonal,
    Others,
    PreconditionedMomentum,
    SecondMoment,
    adam,
    adamuon,
    dmgd,
    m3,
    muon,
)

every = pytest.mark.parametrize("name", CASES)
plain = pytest.mark.parametrize("name", PLAIN)
NAN = float("nan")


@pytest.fixture(autouse=True, scope="module")
def _annotations_are_not_checked():
    """Wrong arguments meet the errors that a user meets, who has no such checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def ones(*shape: int) -> Parameter:
    return Parameter(torch.ones(shape or (2, 3)))


@pytest.mark.parametrize("value", [-1.0, NAN, float("inf")])
@pytest.mark.parametrize("argument", ["lr", "weight_decay"])
@every
def test_rates(name, argument, value):
    with pytest.raises(ValueError, match=f"{argument}: expected a number >= 0, got {value}"):
        CASES[name].make(small(), **{argument: value})


@pytest.mark.parametrize("argument", ["lr", "weight_decay"])
@plain
def test_rates_of_a_group(name, argument):
    with pytest.raises(ValueError, match=f"{argument}: expected a number >= 0, got -1"):
        PLAIN[name].make([{"params": [ones()], argument: -1.0}])
    optimizer = PLAIN[name].make([ones()])
    with pytest.raises(ValueError, match=f"{argument}: expected a number >= 0, got -1"):
        optimizer.add_param_group({"params": [ones()], argument: -1.0})
    assert len(optimizer.param_groups) == 1


NAMED = {
    "frequency: expected a whole number >= 1, got 0": lambda: M3([ones()], frequency=0),
    "frequency: expected a whole number >= 1, got 2.5": lambda: m3(frequency=2.5),
    "alpha: expected a number >= 0, got -1": lambda: M3([ones()], alpha=-1.0),
    r"betas: expected a number in \[0, 1\), got 1.0": lambda: M3([ones()], betas=(1.0, 0.9, 0.9)),
    r"betas: expected 3 numbers, got \(0.9, 0.9\)": lambda: M3([ones()], betas=(0.9, 0.9)),
    r"betas: expected 2 numbers, got \(0.9,\)": lambda: AdaMuon([ones()], betas=(0.9,)),
    r"betas: expected 2 numbers, got \(0.9, 0.9, 0.5\)": lambda: adam((0.9, 0.9, 0.5)),
    r"betas: expected 2 numbers, got \(0.5,\)": lambda: PreconditionedMomentum(
        [ones()], betas=(0.5,)
    ),
    r"betas: expected a number in \[0, 1\), got 1": lambda: adam((0.9, 1)),
    r"betas: expected a number in \[0, 1\), got 1.25": lambda: adamuon((1.25, 0.9)),
    r"betas: expected a number in \[0, 1\), got nan": lambda: adamuon((0.9, NAN)),
    r"beta: expected a number in \[0, 1\), got 1.0": lambda: muon(1.0),
    r"beta: expected a number in \[0, 1\), got 1": lambda: DeltaMomentum([ones()], beta=1),
    r"beta: expected a number in \[0, 1\), got -0.1": lambda: DMGD([ones()], MLP, beta=-0.1),
    r"beta: expected a number in \[0, 1\), got 'a'": lambda: DGD(small(), beta="a"),
    "delta: expected a number >= 0, got -1": lambda: DeltaMomentum([ones()], delta=-1),
    "eta: expected a number >= 0, got -2": lambda: DMGD([ones()], MLP, eta=-2),
    "values: expected 'gradient' or 'ones', got 'one'": lambda: dmgd(values="one"),
    "objective: the linear memory takes DotProduct": lambda: dmgd(LinearMemory(), objective=L2()),
    "objective: expected L2.. or DotProduct.., got Lp": lambda: GGD(small(), objective=Lp(p=3.0)),
    "by: expected 'second_moment', 'orthogonal' or a map, got 'x'": lambda: PreconditionedMomentum(
        [ones()], "x"
    ),
    "eps: expected a number >= 0, got -1": lambda: PreconditionedMomentum([ones()], eps=-1.0),
    r"dtype: expected one of \['auto', .*\], got 'int8'": lambda: Orthogonal(dtype="int8"),
    "steps: expected a whole number >= 1, got 0": lambda: Orthogonal(steps=0),
    "period: expected a whole number >= 1, got 0": lambda: GradientMemory(period=0),
    "period: a memory with delta or nesterov": lambda: GradientMemory(period=2, delta=1.0),
    r"keep: expected a number in \[0, 1\], got 1.5": lambda: GradientMemory(keep=1.5),
    "of: expected 'gradient' or 'update', got 'x'": lambda: SecondMoment(of="x"),
    "at: expected 'update' or 'key', got 'x'": lambda: SecondMoment(at="x"),
    "of: a key is divided": lambda: SecondMoment(of="update", at="key"),
    "memories: expected at least one": lambda: GradientRule(name="x", memories=()),
    "memories: expected different names": lambda: GradientRule(
        name="x", memories=(GradientMemory(), GradientMemory())
    ),
    "length: expected one of": lambda: GradientRule(
        name="x", memories=(GradientMemory(),), length="x"
    ),
    "length: 'rms' is for matrices": lambda: GradientRule(
        name="x", memories=(GradientMemory(),), length="rms"
    ),
    "corrected: expected memories that are averages": lambda: GradientRule(
        name="x", memories=(GradientMemory(keep=1.0),), corrected=True
    ),
    "rule: Muon is for matrices only": lambda: Others(rule=muon()),
    "lr: expected a number >= 0, got -1": lambda: Others(lr=-1),
    "by: expected 'main' or 'others', got 'x'": lambda: M3([{"params": [ones()], "by": "x"}]),
    "roles: .* got 'matricks'": lambda: GeneralizedMomentum(
        small(), m3(), roles={"out.weight": "matricks"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", NAMED)
def test_the_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        NAMED[message]()


@plain
def test_no_parameters(name):
    make = PLAIN[name].make
    for empty in ([], iter([]), nn.Identity(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(ValueError, match="params: expected at least one parameter, got none"):
            make(empty)
    with pytest.raises(ValueError, match="params: group 1 is empty"):
        make([{"params": [ones()]}, {"params": []}])
    optimizer = make([ones()])
    with pytest.raises(ValueError, match="params: group 0 is empty"):
        optimizer.add_param_group({"params": []})


@plain
def test_what_is_no_parameter(name):
    make = PLAIN[name].make
    with pytest.raises(TypeError, match=r"params: expected a model, .* got one tensor"):
        make(ones())
    for strange in ([1.0], ["w"], [("w", 1.0)], {"w": ones()}):
        with pytest.raises(TypeError, match=r"params: expected .* got (float|str)"):
            make(strange)
    for dtype in (torch.complex64, torch.int64):
        other = Parameter(torch.ones(2, 2, dtype=dtype), requires_grad=False)
        with pytest.raises(ValueError, match=f"real floating-point numbers, got {dtype}"):
            make([other])
        with pytest.raises(ValueError, match=f"real floating-point numbers, got {dtype}"):
            make([ones()]).add_param_group({"params": [other]})
    twice = ones()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        make([twice, twice])


@every
def test_sparse_gradients(name):
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Linear(4, 2))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = CASES[name].make(model, lr=0.1)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"params: the gradient of 0\.weight is sparse"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["m3", "adamuon", "muon", "dmgd", "orthogonal"])
def test_a_vector_where_the_rule_is_for_matrices(name):
    make, rule = PLAIN[name].make, re.escape(PLAIN[name].rule)
    expected = rf"{rule} is for matrices, got shape \(3,\); put it in a group with by='others'"
    with pytest.raises(ValueError, match=f"params: {expected}"):
        make([{"params": [ones(3)], "by": "main"}])
    optimizer = make([{"params": [ones(3)], "by": "others"}, {"params": [ones()], "by": "others"}])
    assert {group["rule"] for group in optimizer.param_groups} == {"Adam"}


def test_models_only_where_layers_are_listened_to():
    with pytest.raises(TypeError, match="model: expected a module, got list"):
        DGD([ones()])

"""Every optimizer goes down: in a round bowl, a narrow one, a curved valley, and an MLP's loss."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import CASES, Case, Held, batch, drawn, minimise, small
from torch import Tensor
from torch.nn.functional import cross_entropy

from nestling.optim import DGD, GeneralizedMomentum, dmgd

DESCEND = {name: case for name, case in CASES.items() if case.left is not None}
TARGET = drawn((6, 4), 1, torch.float32)
ROTATION = torch.linalg.qr(drawn((6, 6), 2, torch.float32))[0]
NARROW = ROTATION @ torch.diag(torch.logspace(-3, 0, 6)) @ ROTATION.T
STARTS = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [2.0, 0.5]])


def round_bowl(W: Tensor) -> Tensor:
    return 0.5 * (W - TARGET).square().sum()


def narrow_bowl(W: Tensor) -> Tensor:
    """Curvatures from 1 to 1e-3, along no axis."""
    return 0.5 * ((W - TARGET).T @ NARROW @ (W - TARGET)).trace()


def valley(W: Tensor) -> Tensor:
    """Rosenbrock's function of every row, in a unit where no slope is steeper than 3."""
    x, y = W.T
    return ((1 - x).square() + 100 * (y - x.square()).square()).sum() / 1000


LANDSCAPES = {
    "round": (0, round_bowl, torch.zeros(6, 4), 150),
    "narrow": (1, narrow_bowl, torch.zeros(6, 4), 300),
    "valley": (2, valley, STARTS, 300),
}


@pytest.mark.parametrize("landscape", LANDSCAPES)
@pytest.mark.parametrize("name", DESCEND)
def test_landscapes(name, landscape):
    place, loss, start, steps = LANDSCAPES[landscape]
    case: Case = DESCEND[name]
    model = Held(start.clone())
    optimizer = case.make(model, lr=case.lrs[place], weight_decay=0.0)
    left = minimise(model, lambda: loss(model.w), optimizer, steps)
    assert case.left is not None
    assert left < case.left[place]


@pytest.mark.parametrize("name", DESCEND)
def test_a_small_mlp(name):
    case = DESCEND[name]
    model, (x, y) = small(), batch(0, rows=64)
    optimizer = case.make(model, lr=case.lrs[3], weight_decay=0.0)
    left = minimise(model, lambda: (model(x) - y).square().mean(), optimizer, 100)
    assert case.left is not None
    assert left < case.left[3]


@pytest.mark.parametrize("name", ["m3", "adamuon", "dmgd", "orthogonal", "dgd"])
def test_classes(name):
    """Cross-entropy of 64 points in three classes."""
    case, model, (x, y) = CASES[name], small(), batch(0, rows=64)
    labels = y.argmax(-1)
    optimizer = case.make(model, lr=case.lrs[3], weight_decay=0.0)
    minimise(model, lambda: cross_entropy(model(x), labels), optimizer, 100)
    assert (model(x).argmax(-1) == labels).float().mean() > 0.9


def test_a_memory_that_shall_answer_ones_adds_a_drift_and_does_not_settle():
    """NL Eq. 50 as printed pulls every answer toward ones, whatever the gradient is."""
    left, mean = {}, {}
    for values in ("ones", "gradient"):
        model = Held(torch.zeros(6, 4))
        optimizer = GeneralizedMomentum(model, dmgd(values=values), lr=0.1)
        left[values] = minimise(model, lambda m=model: round_bowl(m.w), optimizer, 150)
        mean[values] = float((model.w.detach() - TARGET).mean())
    assert left["gradient"] < 1e-3
    assert left["ones"] > 1.0
    # subtracted, so that the weights end below the optimum
    assert mean["ones"] < -0.3
    assert abs(mean["gradient"]) < 1e-3


def test_delta_gradient_descent_settles_where_its_own_objective_does():
    """L + 1/2 mean |W x|^2: what it erases is the gradient of the second term."""
    layer = torch.nn.Linear(4, 3, bias=False).double()
    x, target = drawn((32, 4), 3), drawn((32, 3), 4)
    optimizer = DGD(layer, lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (layer(x) - target).square().sum(-1)).mean().backward()
        optimizer.step()
    # W C - Y^T X / n + W C = 0
    C, cross = x.T @ x / 32, target.T @ x / 32
    torch.testing.assert_close(layer.weight.detach(), torch.linalg.solve(2 * C, cross.T).T)

"""DGD: the exact solution of its problem, whatever way a layer is used; GGD and deep momentum."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import drawn, grads, same
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from nestling.memory import (
    L2,
    Delta,
    DotProduct,
    Huber,
    Keep,
    LearningRule,
    LinearMemory,
    MLPMemory,
)
from nestling.optim import DGD, GGD, GeneralizedMomentum, dmgd

KEYS, VALUES = 4, 3


def layer(bias: bool = False) -> nn.Linear:
    made = nn.Linear(KEYS, VALUES, bias=bias).double()
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            parameter.copy_(drawn(parameter.shape, seed))
    return made


def loss_of(y: Tensor, target: Tensor) -> Tensor:
    """A mean over all inputs; its derivative is not the one of a square."""
    return (y - target).cosh().log().sum(-1).mean()


def expected(W: Tensor, x: Tensor, error: Tensor, eta: float) -> Tensor:
    """The mean form, written out: errors are those of a loss that is a sum."""
    rows = x.flatten(0, -2)
    C, G = rows.T @ rows / len(rows), error.flatten(0, -2).T @ rows / len(rows)
    size = eta / (1 + eta * rows.square().sum(-1).mean())
    return W - size * (W @ C + G)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("length", [0.5, 1.0, 3.0])
def test_one_sample_gives_the_exact_minimum(length, bias):
    """NL Eq. 56-57: argmin 1/2 |W x - u|^2 + 1/(2 eta) |W - W_t|^2 with u = -dL/dy."""
    eta, made = 0.7, layer(bias)
    x = length * nn.functional.normalize(drawn((KEYS,), 3), dim=0)
    optimizer = DGD(made, lr=eta)
    y = made(x[None])
    loss_of(y, drawn((1, VALUES), 4)).backward()
    W, u = made.weight.detach().clone(), -(y.detach() - drawn((1, VALUES), 4)).tanh()[0]
    optimizer.step()
    # Normal equations of (x^T, I / sqrt(eta)) W^T = (u^T, W_t^T / sqrt(eta)), by least squares.
    A = torch.cat([x[None], torch.eye(KEYS, dtype=torch.float64) / eta**0.5])
    B = torch.cat([u[None], W.T / eta**0.5])
    solution = torch.linalg.lstsq(A, B).solution.T
    torch.testing.assert_close(made.weight.detach(), solution, rtol=1e-11, atol=1e-12)
    # The constant, by itself: eta' = eta / (1 + eta lambda^2)
    constant = eta / (1 + eta * length**2)
    by_hand = W @ (torch.eye(KEYS).double() - constant * torch.outer(x, x))
    by_hand = by_hand + constant * torch.outer(u, x)
    torch.testing.assert_close(made.weight.detach(), by_hand, rtol=1e-11, atol=1e-12)
    if bias:
        torch.testing.assert_close(made.bias.detach(), drawn((VALUES,), 1) + eta * u)


@pytest.mark.parametrize("shape", [(KEYS,), (8, KEYS), (2, 5, KEYS), (2, 1, 3, KEYS)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_is_the_mean_form(shape, bias):
    made, x = layer(bias), drawn(shape, 3)
    target = drawn((*shape[:-1], VALUES), 4)
    optimizer = DGD(made, lr=0.3)
    y = made(x)
    loss_of(y, target).backward()
    W = made.weight.detach().clone()
    optimizer.step()
    error = (y.detach() - target).tanh()
    found = expected(W, x.reshape(-1, KEYS), error.reshape(-1, VALUES), 0.3)
    torch.testing.assert_close(made.weight.detach(), found, rtol=1e-11, atol=1e-12)


def test_explicit_is_one_step_along_the_gradient():
    made, x, target = layer(), drawn((8, KEYS), 3), drawn((8, VALUES), 4)
    optimizer = GGD(made, lr=0.1, implicit=False)
    y = made(x)
    loss_of(y, target).backward()
    W = made.weight.detach().clone()
    optimizer.step()
    error = (y.detach() - target).tanh()
    W = W - 0.1 * (W @ x.T @ x + error.T @ x) / 8
    torch.testing.assert_close(made.weight.detach(), W, rtol=1e-11, atol=1e-12)


def test_momentum_of_what_is_written():
    made, x = layer(), drawn((8, KEYS), 3)
    optimizer = DGD(made, lr=0.3, beta=0.5, weight_decay=0.1)
    W, M = made.weight.detach().clone(), torch.zeros(VALUES, KEYS, dtype=torch.float64)
    for step in range(4):
        target = drawn((8, VALUES), 10 + step)
        optimizer.zero_grad()
        y = made(x)
        loss_of(y, target).backward()
        optimizer.step()
        written = (W - expected(W, x, (y.detach() - target).tanh(), 0.3)) / 0.3
        M = 0.5 * M + written
        W = (1 - 0.03) * W - 0.3 * M
    torch.testing.assert_close(made.weight.detach(), W, rtol=1e-11, atol=1e-12)


class Uses(nn.Module):
    """One layer, used in many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = layer(bias=True), how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "plain":
                return self.layer(x).relu()
            case "in place":
                return self.layer(x).relu_()
            case "by name":
                return self.layer(input=x).relu()
            case "asked before":
                self.layer(x)
                with torch.no_grad():
                    self.layer(2 * x)
                return self.layer(x).relu()
            case "detached":
                return self.layer(x).relu() + 0 * self.layer(x).detach()
            case "checkpoint" | "checkpoint, reentrant":
                held = checkpoint(self.layer, x.requires_grad_(), use_reentrant="," in self.how)
                return held.relu()
        raise AssertionError(self.how)


WAYS = ["in place", "by name", "asked before", "detached", "checkpoint", "checkpoint, reentrant"]


@pytest.mark.parametrize("how", WAYS)
def test_how_a_layer_is_used_changes_nothing(how):
    """Only what an error comes back through is counted, and once."""
    models = [Uses("plain"), Uses(how)]
    for model in models:
        optimizer = DGD(model, lr=0.3)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model(drawn((8, KEYS), step)), drawn((8, VALUES), 7)).backward()
            optimizer.step()
    for ours, other in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-12)


def test_a_layer_used_twice_has_twice_the_inputs():
    """Its loss is taken to be a mean over all of them."""
    made = nn.Linear(KEYS, KEYS, bias=False).double()
    W, x = drawn((KEYS, KEYS), 1), drawn((8, KEYS), 3)
    made.weight.data.copy_(W)
    optimizer = DGD(made, lr=0.3)
    h = made(x)
    y = made(h.tanh())
    loss_of(y, drawn((8, KEYS), 4)).backward()
    G, inputs = made.weight.grad.clone(), torch.cat([x, h.detach().tanh()])
    optimizer.step()
    C, size = inputs.T @ inputs / 16, inputs.square().sum(-1).mean()
    found = W - 0.3 / (1 + 0.3 * size) * (W @ C + G)
    torch.testing.assert_close(made.weight.detach(), found, rtol=1e-11, atol=1e-12)


def test_small_batches_of_one_size_add_up_to_the_big_one():
    models, x, target = [layer(bias=True) for _ in range(2)], drawn((8, KEYS), 3), drawn((8, 3), 4)
    for model, parts in zip(models, (1, 4), strict=True):
        optimizer = DGD(model, lr=0.3, beta=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            for rows, wanted in zip(x.chunk(parts), target.chunk(parts), strict=True):
                (loss_of(model(rows), wanted) / parts).backward()
            optimizer.step()
    for ours, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-12)


def test_numbers_of_few_bits_are_summed_in_float32():
    made, x, target = layer().bfloat16(), drawn((512, KEYS), 3), drawn((512, VALUES), 4)
    optimizer = DGD(made, lr=0.3)
    loss_of(made(x.bfloat16()), target.bfloat16()).backward()
    held = optimizer.state[made.weight]
    assert {held[name].dtype for name in ("answers", "squares", "count")} == {torch.float32}
    assert float(held["count"]) == 512
    torch.testing.assert_close(held["squares"], x.bfloat16().float().square().sum())
    autocast = layer().float()
    optimizer = DGD(autocast, lr=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        y = autocast(x.float())
    loss_of(y.float(), target.float()).backward()
    held = optimizer.state[autocast.weight]["answers"]
    torch.testing.assert_close(held, autocast.weight @ x.float().T @ x.float(), rtol=2e-2, atol=1)


def test_the_dot_product_is_gradient_descent():
    """GGD, NL Eq. 59-60: every step of gradient descent solves a problem of this form."""
    models = [nn.Sequential(layer(True), nn.Tanh(), nn.Linear(3, 2).double()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = GGD(models[0], objective=DotProduct(), lr=0.1, beta=0.7, weight_decay=0.0)
    other = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.7)
    assert not models[0][0]._forward_hooks
    for step in range(6):
        for model, optimizer in zip(models, (ours, other), strict=True):
            optimizer.zero_grad()
            loss_of(model(drawn((8, KEYS), step)), drawn((8, 2), 7)).backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_after_close_it_is_gradient_descent():
    models = [layer(), layer()]
    ours = DGD(models[0], lr=0.1)
    ours.close()
    for model, optimizer in zip(
        models, (ours, torch.optim.SGD(models[1].parameters(), lr=0.1)), strict=True
    ):
        loss_of(model(drawn((8, KEYS), 3)), drawn((8, VALUES), 4)).backward()
        optimizer.step()
    torch.testing.assert_close(models[0].weight, models[1].weight)


@pytest.mark.parametrize("objective", [L2(), DotProduct()], ids=["L2", "dot"])
def test_token_by_token_it_is_the_delta_rule_of_a_memory(objective):
    """The memory is the layer's weight transposed, its key the input; explicit steps of eta.

    The loss of the layer is the memory's objective, and what DGD erases is what Delta erases.
    """
    eta, made = 0.4, layer()
    rule = LearningRule(objective=objective, retention=Delta(Keep()))
    M = made.weight.detach().T.clone()
    optimizer = GGD(made, lr=eta, implicit=False)
    one = torch.tensor(1.0, dtype=torch.float64)
    for step in range(6):
        k, v = nn.functional.normalize(drawn((KEYS,), step), dim=0), drawn((VALUES,), 50 + step)
        optimizer.zero_grad()
        y = made(k[None])
        loss = 0.5 * (y - v).square().sum() if isinstance(objective, L2) else -(y * v).sum()
        loss.backward()
        optimizer.step()
        kept = rule.retention.retain(M, k, eta * one, one, M, True)
        surprise = LinearMemory().surprises({"w": M}, k[None], v[None], rule)["w"]
        M = kept - eta * surprise.key.mT @ surprise.error
        torch.testing.assert_close(made.weight.detach().T, M, rtol=1e-11, atol=1e-12)


def mlp(weights: dict[str, Tensor], u: Tensor) -> Tensor:
    """``u + normalise(gelu(u W_in)) W_out``."""
    h = nn.functional.normalize(nn.functional.gelu(u @ weights["w_in"]), dim=-1)
    return u + h @ weights["w_out"]


@pytest.mark.parametrize("values", ["gradient", "ones"])
@pytest.mark.parametrize("objective", [DotProduct(), L2(), Huber()], ids=["dot", "L2", "huber"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_deep_momentum_is_gradient_descent_on_an_mlp(shape, objective, values):
    """NL Eq. 50, with autograd as the judge; the memory is asked with the newest gradient."""
    hidden, beta, eta = 5, 0.8, 0.5
    rule = dmgd(MLPMemory(hidden=hidden), objective=objective, values=values, beta=beta, eta=eta)
    W = Parameter(drawn(shape, 1))
    optimizer = GeneralizedMomentum([W], rule, lr=1.0)
    assert optimizer.entries(optimizer.param_groups[0], W.shape) == {
        "deep_w_in": (4, hidden), "deep_w_out": (hidden, 4),
    }  # fmt: skip
    start = {
        "w_in": torch.randn(4, hidden, generator=torch.Generator().manual_seed(0)).double() / 2,
        "w_out": torch.zeros(hidden, 4, dtype=torch.float64),
    }
    held = {name: value.clone() for name, value in start.items()}
    for step in range(4):
        grads([W], step)
        before = W.detach().clone()
        optimizer.step()
        u = W.grad if shape[0] >= shape[1] else W.grad.T
        u = u / u.square().mean().sqrt()
        v = u if values == "gradient" else torch.ones_like(u)
        leaves = {name: value.clone().requires_grad_() for name, value in held.items()}
        answer = mlp(leaves, u)
        torch.autograd.backward(answer, objective.gradient(answer.detach(), v) / len(u))
        for name, rate in (("w_in", 0.1 * eta), ("w_out", eta)):
            moved = beta * (held[name] - start[name]) - rate * leaves[name].grad
            held[name] = start[name] + moved
        answer = mlp(held, u)
        answer = answer if shape[0] >= shape[1] else answer.T
        answer = 0.2 * answer / answer.square().mean().sqrt()
        torch.testing.assert_close(before - W.detach(), answer, rtol=1e-8, atol=1e-9)


def test_deep_memories_begin_alike_wherever_they_are_made():
    """Neither the default dtype nor the random state has a part in it."""
    made = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            holder = nn.Module()
            holder.w = Parameter(drawn((9, 7), 1))
            optimizer = GeneralizedMomentum(holder, dmgd(MLPMemory(hidden=3)), lr=0.1)
            torch.manual_seed(len(made))
            grads([holder.w], 1)
            optimizer.step()
            made.append(holder)
        finally:
            torch.set_default_dtype(torch.float32)
        from nestling.optim.deep_memory import _initial

        _initial.cache_clear()
    assert same(*made)


@pytest.mark.parametrize("erase", [0.0, 0.3, 1.0, 2.0])
def test_a_share_of_what_is_erased(erase):
    """argmin of -<W x, u> + erase/2 |W x|^2 + 1/(2 eta) |W - W_t|^2, by its normal equations."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3, bias=False).double(), torch.randn(1, 4).double()
    before, error, eta = layer.weight.detach().clone(), torch.randn(3).double(), 0.7
    optimizer = DGD(layer, lr=eta, erase=erase)
    (layer(x) @ error).sum().backward()
    optimizer.step()
    curvature = erase * x.mT @ x + torch.eye(4).double() / eta
    expected = torch.linalg.solve(curvature, (before / eta - error[:, None] * x).mT).mT
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-12, atol=1e-12)

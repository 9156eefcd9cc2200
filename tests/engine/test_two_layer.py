"""The hand-written chunk step against the definition, and its parts against plain autograd."""

from __future__ import annotations

import pytest
import torch

from nestling.engine import plan, run
from nestling.engine.products import products
from nestling.layers.generate import generate
from nestling.layers.self_modifying_config import SelfModifyingConfig
from nestling.memory import (
    DecayToInitial,
    Delta,
    DotProduct,
    GatedTokens,
    LearningRule,
    MemoryState,
    MLPMemory,
)
from nestling.memory.hidden_map import hidden_map
from nestling.memory.unit import unit

ROWS, STACK, HEADS, KEY, LENGTH = 2, 3, 2, 4, 11
RULES = {
    "squares": LearningRule(retention=Delta(), values="self"),
    "unit": LearningRule(retention=Delta(), values="self_unit", hidden_step=0.3),
    "hope": SelfModifyingConfig().rule,
    "squares_to_initial": LearningRule(retention=Delta(DecayToInitial()), values="self"),
    "dots": LearningRule(objective=DotProduct(), retention=Delta(), values="self", hidden_step=0.0),
}


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)).detach())


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def run_stack(rule: str, engine: str, hidden: int, chunk_size: int) -> list[torch.Tensor]:
    """Reads, final state and every gradient of a stack of memories under one engine."""
    torch.manual_seed(3)
    sizes = {"w_in": (KEY, hidden), "w_out": (hidden, KEY)}
    weights = {name: leaf(ROWS, STACK, HEADS, *io) for name, io in sizes.items()}
    initial = {name: leaf(ROWS, STACK, HEADS, *io) for name, io in sizes.items()}
    k, v = leaf(ROWS, 1, HEADS, LENGTH, KEY), leaf(ROWS, 1, HEADS, LENGTH, KEY)
    q = leaf(ROWS, HEADS, LENGTH, KEY)
    eta, alpha = leaf(ROWS, STACK, HEADS, LENGTH), leaf(ROWS, 1, HEADS, LENGTH)
    tokens = GatedTokens(
        k=unit(k), v=v, q=q, eta=eta.sigmoid(), alpha=alpha.sigmoid(),
        beta=torch.ones_like(alpha), mask=torch.ones(ROWS, LENGTH, dtype=torch.bool),
    )  # fmt: skip
    layout = plan(None, None, batch=ROWS, length=LENGTH, chunk_size=chunk_size)
    parts = tokens.split(layout.sizes)
    _, y, state = run(
        MLPMemory(hidden), RULES[rule], MemoryState(weights=weights, initial=initial), layout,
        lambda _, index: parts[index], engine=engine, reader=STACK - 1,
    )  # fmt: skip
    assert y is not None
    torch.manual_seed(4)
    outputs = [y, *state.weights.values()]
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype)).sum() for x in outputs)
    inputs = [*weights.values(), *initial.values(), k, v, q, eta, alpha]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [x.detach() for x in outputs] + [g for g in gradients if g is not None]


@pytest.mark.parametrize("hidden", [KEY, 7])
@pytest.mark.parametrize("chunk_size", [1, 4, 16])
@pytest.mark.parametrize("rule", RULES)
def test_stack_equals_definition(rule, hidden, chunk_size):
    found = run_stack(rule, "chunked", hidden, chunk_size)
    expected = run_stack(rule, "recurrent", hidden, chunk_size)
    toward_initial = RULES[rule].retention.toward_initial
    assert len(found) == len(expected) == (12 if toward_initial else 10)
    for ours, definition in zip(found, expected, strict=True):
        assert relative_difference(ours, definition) < 1e-10


@pytest.mark.parametrize("gate", [[0.5, 0.0, 0.25, 0.0, 1.0], [0.9, 0.8, 0.7, 0.6, 0.5]])
def test_stretches_and_their_gradient_at_gates_of_zero(gate):
    alpha = torch.tensor(gate, dtype=torch.float64, requires_grad=True)
    E = products(alpha).stretches
    expected = [
        [alpha[s:t].prod() if s <= t else alpha.new_zeros(()) for s in range(6)] for t in range(6)
    ]
    plain = torch.stack([torch.stack(row) for row in expected])
    assert torch.equal(E, plain)
    weight = torch.randn(6, 6, dtype=torch.float64)
    (ours,) = torch.autograd.grad((E * weight).sum(), alpha)
    (theirs,) = torch.autograd.grad((plain * weight).sum(), alpha)
    assert relative_difference(ours, theirs) < 1e-12


@pytest.mark.parametrize("vectors", [(), ("k",), ("v",), ("k", "v")])
def test_generated_vectors_and_gates_equal_plain_reads(vectors):
    torch.manual_seed(5)
    gates, hidden = 2, 5
    x, u = leaf(ROWS, HEADS, LENGTH, KEY), leaf(ROWS, HEADS, LENGTH, KEY)
    count = len(vectors) + gates + 1
    W, U = leaf(ROWS, count, HEADS, KEY, hidden), leaf(ROWS, count, HEADS, hidden, KEY)
    r, b = leaf(gates, HEADS, KEY), leaf(gates, HEADS)
    made = generate(x, u, (W, U), (r, b), vectors=vectors)
    names = (*vectors, "eta", "alpha", "memory")
    inputs = torch.stack([u if name == "v" else x for name in names], dim=1)
    values = (inputs + hidden_map(inputs @ W)[0] @ U).unbind(1)
    plain = [unit(value) for value in values[: len(vectors)]]
    for i in range(gates):
        logit = (values[len(vectors) + i] * r[i][:, None]).sum(-1) + b[i][:, None]
        plain.append(logit.sigmoid())
    weights = [torch.randn_like(x) for x in plain]
    for ours, theirs in zip(made, plain, strict=True):
        assert relative_difference(ours, theirs) < 1e-12
    found, expected = (
        torch.autograd.grad(
            sum((y * w).sum() for y, w in zip(ys, weights, strict=True)),
            (x, u, W, U, r, b),
            materialize_grads=True,
        )
        for ys in (made, plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_difference(ours, theirs) < 1e-10


def test_gradient_at_the_zero_vector_is_finite():
    x = torch.zeros(1, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(unit(x).sum() + hidden_map(x)[0].sum(), x)
    assert torch.isfinite(dx).all()

"""What the optimizers are equal to: torch's own, their definitions written out, exact solutions."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_cases import drawn, grads
from torch import Tensor
from torch.nn import Parameter
from torch.optim._muon import _zeropower_via_newtonschulz

from nestling.memory import LinearMemory, newton_schulz
from nestling.optim import (
    M3,
    DeltaMomentum,
    GeneralizedMomentum,
    Orthogonal,
    PreconditionedMomentum,
    adam,
    delta_momentum,
    dmgd,
    m3,
    muon,
)

BF16 = Orthogonal(dtype="bfloat16")
SHAPES = [(4, 6), (6, 4), (5, 5), (4, 6)]


def pair(dtype: torch.dtype = torch.float32, shapes=SHAPES) -> list[list[Parameter]]:
    """The same parameters twice."""
    return [[Parameter(drawn(shape, 5 + i, dtype)) for i, shape in enumerate(shapes)]
            for _ in range(2)]  # fmt: skip


def equal_runs(ours, other, parameters, steps: int = 12, rtol=1e-7, atol=1e-7) -> None:
    for step in range(steps):
        for held, optimizer in zip(parameters, (ours, other), strict=True):
            grads(held, step)
            optimizer.step()
    for a, b in zip(*parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 7), (32, 8)])
def test_newton_schulz_is_torchs_to_the_bit(shape):
    """In bfloat16, each matrix of a batch as well as one by itself."""
    S = drawn((3, *shape), 1, torch.float32)
    ours = newton_schulz(S, dtype=torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    for one, matrix in zip(ours, S, strict=True):
        expected = _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        assert torch.equal(newton_schulz(matrix, dtype=torch.bfloat16), expected)
        assert torch.equal(one, expected)


MUONS = {
    "muon": (muon(output=BF16), True, "match_rms_adamw"),
    "original": (muon(output=BF16, length="muon"), True, "original"),
    "no nesterov": (muon(output=BF16, nesterov=False), False, "match_rms_adamw"),
    "deep, linear": (
        dmgd(LinearMemory(), beta=0.95, output=BF16, length="spectral"), False, "match_rms_adamw",
    ),
    "m3, one time scale": (
        m3(alpha=0.0, second_moment=None, output=BF16, length="spectral", frequency=4),
        True, "match_rms_adamw",
    ),
    "m3, one time scale, no nesterov": (
        m3(alpha=0.0, second_moment=None, output=BF16, length="spectral", nesterov=False),
        False, "match_rms_adamw",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUONS)
def test_muon(name):
    """NL Eq. 52: the linear memory of gradients with Newton-Schulz as its output map."""
    rule, nesterov, length = MUONS[name]
    parameters = pair()
    ours = GeneralizedMomentum(parameters[0], rule, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(
        parameters[1], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov,
        adjust_lr_fn=length,
    )  # fmt: skip
    equal_runs(ours, other, parameters)


def orthogonal(M: Tensor) -> Tensor:
    return newton_schulz(M)


def m3_step(
    g: Tensor, state: dict, t: int, *, sums: bool, of: str | None, f: int, printed: bool
) -> Tensor:
    """One step of M3, from its definition; the paper's names."""
    b1, b2, b3, alpha = 0.8, 0.7, 0.6, 0.3
    zero = torch.zeros_like(g)
    M1, M2, V = (state.get(name, zero) for name in ("M1", "M2", "V"))
    state["recent"] = [*state.get("recent", []), g]
    M1 = M1 + b1 * g if sums else b1 * M1 + (1 - b1) * g
    if t % f == 0:
        recent = torch.stack(state.pop("recent"))
        M2 = M2 + b3 * recent.sum(0) if sums else b3 * M2 + (1 - b3) * recent.mean(0)
        state["O2"] = orthogonal(M2)
    newest = M1 if printed else (M1 + b1 * g if sums else b1 * M1 + (1 - b1) * g)
    update = orthogonal(newest) + alpha * state.get("O2", zero)
    x = g if of == "gradient" else update
    if of is not None:
        V = V + b2 * x.square() if sums else b2 * V + (1 - b2) * x.square()
        root = V.sqrt() + 1e-8
        if of == "gradient" and not printed:
            root = root + root.square().mean().sqrt()
        update = update / root
    state.update(M1=M1, M2=M2, V=V)
    return 0.2 * update / update.square().mean().sqrt()


@pytest.mark.parametrize("of", ["gradient", "update", None])
@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("f", [1, 4])
@pytest.mark.parametrize("printed", [False, True])
def test_m3_is_its_definition(sums, of, f, printed):
    """NL Eq. 75 over several periods, in double precision, as averages and as printed."""
    words = {"nesterov": False, "damping": 0.0} if printed else {}
    rule = m3(betas=(0.8, 0.7, 0.6), alpha=0.3, frequency=f, sums=sums, second_moment=of, **words)
    ours, other = pair(torch.float64)
    optimizer = GeneralizedMomentum(ours, rule, lr=0.1, weight_decay=0.2)
    states = [{} for _ in other]
    for t in range(1, 15):
        for held in (ours, other):
            grads(held, t)
        optimizer.step()
        for W, state in zip(other, states, strict=True):
            step = m3_step(W.grad, state, t, sums=sums, of=of, f=f, printed=printed)
            W.data = (1 - 0.1 * 0.2) * W.data - 0.1 * step
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_m3_with_its_own_defaults_is_its_rule_and_adam():
    """What ``M3(...)`` says is what the rule of these arguments does."""
    ours, other = pair(torch.float64, [*SHAPES, (7,)])
    words = {"betas": (0.8, 0.7, 0.6), "alpha": 0.3, "frequency": 4}
    equal_runs(
        M3(ours, lr=0.02, weight_decay=0.0, **words),
        GeneralizedMomentum(other, m3(**words), lr=0.02),
        [ours, other], rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    vector, twin = pair(torch.float64, [(7,)])
    adamw = torch.optim.AdamW(twin, lr=0.02, betas=(0.9, 0.95), weight_decay=0.0)
    equal_runs(M3(vector, lr=0.02), adamw, [vector, twin], rtol=1e-11, atol=1e-11)


def test_the_slow_newton_schulz_is_computed_once_a_period(monkeypatch):
    """In f steps f + 1 calls for each shape, whatever the number of its matrices."""
    calls = []

    def counted(S, **words):
        calls.append(tuple(S.shape))
        return newton_schulz(S, **words)

    monkeypatch.setattr("nestling.optim.gradient_memory.newton_schulz", counted)
    parameters = pair()[0]
    optimizer = M3(parameters, frequency=5)
    per_step = []
    for step in range(15):
        grads(parameters, step)
        before = len(calls)
        optimizer.step()
        per_step.append(len(calls) - before)
    assert per_step == [3, 3, 3, 3, 6] * 3
    assert calls.count((2, 4, 6)) == 18


def test_adam():
    parameters = pair(shapes=[(4, 6), (5,), ()])
    rule = adam((0.9, 0.99))
    ours = GeneralizedMomentum(
        [{"params": parameters[0], "by": "main"}], rule, lr=0.02, weight_decay=0.1
    )
    other = torch.optim.AdamW(parameters[1], lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)
    equal_runs(ours, other, parameters, rtol=1e-6, atol=1e-6)


def test_adam_holds_the_optimal_memory_of_squares():
    """NL Eq. 101-105: argmin of sum_t b^(T - t) (V - g_t^2)^2, for every weight by itself."""
    W, b, T = Parameter(torch.zeros(3, dtype=torch.float64)), 0.9, 12
    optimizer = GeneralizedMomentum([W], adam((0.8, b)), lr=0.1)
    squares = []
    for step in range(T):
        grads([W], step)
        squares.append(W.grad.square())
        optimizer.step()
    weights = torch.tensor([math.sqrt(b ** (T - t)) for t in range(1, T + 1)], dtype=torch.float64)
    solved = torch.linalg.lstsq(weights[:, None], weights[:, None] * torch.stack(squares))
    corrected = optimizer.state[W]["second_moment"] / (1 - b**T)
    torch.testing.assert_close(corrected, solved.solution[0], rtol=1e-12, atol=0)


MIXED = [(4, 6), (6, 4), (7,), (), (2, 3, 4), (3, 2, 2, 2)]


def test_delta_momentum_without_delta_is_momentum():
    parameters = pair(torch.float64, MIXED)
    ours = DeltaMomentum(parameters[0], lr=0.02, beta=0.8, delta=0.0)
    other = torch.optim.SGD(parameters[1], lr=0.02, momentum=0.8)
    equal_runs(ours, other, parameters, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalized", [True, False])
def test_delta_momentum_is_its_definition(normalized):
    """NL Eq. 48-49: M (beta I - delta g^T g) + g, a vector as one row, a stack one by one."""
    parameters = pair(torch.float64, MIXED)[0]
    delta = 0.7 if normalized else 0.01
    optimizer = DeltaMomentum(parameters, beta=0.8, delta=delta, normalized=normalized)
    views = [(1, 1, -1) if p.ndim < 2 else (1, *p.shape) if p.ndim == 2 else tuple(p.shape)
             if p.ndim == 3 else (1, p.shape[0], -1) for p in parameters]  # fmt: skip
    held = [torch.zeros_like(p).reshape(view) for p, view in zip(parameters, views, strict=True)]
    for step in range(5):
        grads(parameters, step)
        optimizer.step()
        for M, p, view in zip(held, parameters, views, strict=True):
            for m, g in zip(M, p.grad.reshape(view), strict=True):
                key = g / g.square().sum().sqrt() if normalized else g
                eye = torch.eye(g.shape[-1], dtype=torch.float64)
                m.copy_(m @ (0.8 * eye - delta * key.T @ key) + g)
    for M, p in zip(held, parameters, strict=True):
        found = optimizer.state[p]["momentum"]
        torch.testing.assert_close(found, M.reshape(p.shape), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_what_is_erased_has_no_unit_where_it_is_normalised(normalized, scale):
    """The same gradients in another unit: the momentum is in that unit, or it is another one."""
    rule, found = delta_momentum(delta=0.5, normalized=normalized), []
    for unit in (1.0, scale):
        W = Parameter(drawn((4, 6), 1))
        optimizer = GeneralizedMomentum([W], rule, lr=0.0)
        for step in range(3):
            grads([W], step, scale=unit)
            optimizer.step()
        found.append(optimizer.state[W]["momentum"] / unit)
    if normalized:
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    else:
        assert (found[0] - found[1]).norm() > 0.5 * found[0].norm()


def test_momentum_divided_before_it_is_written_is_rmsprop():
    parameters = pair(torch.float64, MIXED)
    ours = PreconditionedMomentum(parameters[0], lr=0.02, betas=(0.8, 0.95), eps=1e-6)
    other = torch.optim.RMSprop(parameters[1], lr=0.02, alpha=0.95, momentum=0.8, eps=1e-6)
    equal_runs(ours, other, parameters, rtol=1e-12, atol=1e-12)


def test_momentum_of_orthogonal_gradients_is_its_definition():
    parameters = pair(torch.float64)[0]
    optimizer = PreconditionedMomentum(parameters, "orthogonal", lr=0.1, betas=(0.8, 0.9))
    W, held = [p.detach().clone() for p in parameters], [torch.zeros_like(p) for p in parameters]
    for step in range(5):
        grads(parameters, step)
        optimizer.step()
        for w, M, p in zip(W, held, parameters, strict=True):
            M.mul_(0.8).add_(orthogonal(p.grad))
            w.sub_(0.1 * M)
    for w, p in zip(W, parameters, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-11, atol=1e-12)

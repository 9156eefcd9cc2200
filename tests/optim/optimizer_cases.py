"""The optimizers that join the contract, and the problems that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nestling.memory import DotProduct, LinearMemory, MLPMemory
from nestling.optim import (
    DGD,
    DMGD,
    GGD,
    M3,
    AdaMuon,
    DeltaMomentum,
    GeneralizedMomentum,
    GradientRule,
    Handling,
    Orthogonal,
    PreconditionedMomentum,
    adam,
    dmgd,
    m3,
    muon,
)

Make = Callable[..., GeneralizedMomentum]
MLP = MLPMemory(hidden=6)


@dataclass(frozen=True)
class Case:
    """One optimizer.

    Attributes:
        make: takes parameters, or a model, and the arguments that all optimizers share.
        rule: its name.
        lrs: learning rates for a round bowl, a narrow one, Rosenbrock's valley and an MLP.
        left: the shares of these losses that may be left; ``None``: it does not descend.
        layers: listens to layers, so that it needs their model.
    """

    make: Make
    rule: str
    lrs: tuple[float, float, float, float]
    left: tuple[float, float, float, float] | None
    layers: bool = False


def general(rule: GradientRule) -> Make:
    """The maker of a rule that has no class."""
    return lambda params, **words: GeneralizedMomentum(params, rule, **words)


def signs(gradients: Sequence[Tensor]) -> list[Tensor]:
    """A preconditioner that is a function."""
    return [gradient.sign() for gradient in gradients]


def slow(params: Any, **words: Any) -> M3:
    """M3 with a period that a test of a dozen steps passes twice."""
    return M3(params, frequency=5, **words)


SUMS = m3(frequency=5, sums=True)
UPDATES = m3(frequency=5, second_moment="update")
ONES = dmgd(MLP, values="ones")
LINEAR = dmgd(LinearMemory(), output=Orthogonal(), length="spectral")

CASES: dict[str, Case] = {
    "m3": Case(slow, "M3", (1.0, 0.3, 0.3, 0.1), (0.05, 0.01, 0.05, 0.08)),
    "m3_sums": Case(general(SUMS), "M3", (0.3, 0.1, 0.3, 0.1), (0.2, 0.35, 0.1, 0.12)),
    "m3_updates": Case(general(UPDATES), "M3", (0.3, 0.1, 0.1, 0.1), (0.01, 1e-3, 5e-3, 0.08)),
    "adamuon": Case(AdaMuon, "AdaMuon", (0.3, 0.3, 0.3, 0.1), (5e-3, 1e-3, 1e-3, 0.15)),
    "muon": Case(general(muon()), "Muon", (0.3, 0.3, 0.3, 0.1), (1e-4, 1e-5, 1e-5, 0.03)),
    "delta": Case(DeltaMomentum, "DeltaMomentum", (0.3, 1.0, 0.3, 0.1), (1e-9, 5e-3, 0.02, 0.08)),
    "delta_raw": Case(
        lambda params, **words: DeltaMomentum(params, normalized=False, delta=0.1, **words),
        "DeltaMomentum", (0.3, 1.0, 0.03, 0.1), (1e-6, 1e-3, 0.02, 0.08),
    ),
    "dmgd": Case(
        lambda params, **words: DMGD(params, MLP, **words),
        "DMGD", (0.1, 0.1, 0.1, 0.03), (1e-5, 5e-3, 0.01, 0.08),
    ),
    "dmgd_ones": Case(general(ONES), "DMGD", (0.03, 0.03, 0.03, 0.03), None),
    "dmgd_linear": Case(general(LINEAR), "DMGD", (0.3, 0.3, 0.3, 0.1), (1e-3, 1e-5, 1e-4, 0.02)),
    "second_moment": Case(
        PreconditionedMomentum, "Preconditioned(V)",
        (0.03, 0.03, 0.03, 3e-3), (1e-5, 1e-3, 2e-3, 0.06),
    ),
    "orthogonal": Case(
        lambda params, **words: PreconditionedMomentum(params, "orthogonal", **words),
        "Preconditioned(Orthogonal)", (0.03, 0.01, 0.03, 0.03), (1e-4, 1e-5, 1e-4, 5e-3),
    ),
    "signs": Case(
        lambda params, **words: PreconditionedMomentum(params, signs, **words),
        "Preconditioned(signs)", (0.03, 0.01, 0.03, 0.01), (1e-4, 1e-4, 1e-3, 5e-3),
    ),
    "adam": Case(general(adam()), "Adam", (0.3, 0.3, 0.3, 0.1), (1e-5, 1e-4, 5e-3, 0.04)),
    "dgd": Case(
        lambda model, **words: DGD(model, beta=0.8, **words),
        "DGD", (0.3, 1.0, 0.1, 0.03), (1e-9, 1e-3, 0.05, 0.4), layers=True,
    ),
    "ggd": Case(
        lambda model, **words: GGD(model, objective=DotProduct(), beta=0.8, **words),
        "GD", (0.3, 1.0, 0.1, 0.1), (1e-9, 1e-3, 0.05, 0.06), layers=True,
    ),
}  # fmt: skip
"""By name, every optimizer that joins the contract."""
PLAIN = {name: case for name, case in CASES.items() if not case.layers}
"""Those that take parameters and groups of them."""


class Held(nn.Module):
    """A model that is one matrix."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = Parameter(start)


class Small(nn.Module):
    """Matrices of three shapes, two of them of one shape, a stack, a norm and biases."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 8, bias=False)
        self.heads = Parameter(0.5 * torch.randn(2, 4, 4))
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.third(self.second(self.first(x).tanh()).relu())
        parts = h.unflatten(-1, (2, 1, 4)) @ self.heads
        return self.out(self.norm(h + parts.flatten(-3)))


def small(dtype: torch.dtype = torch.float32, seed: int = 0) -> Small:
    """The same model for the same seed."""
    return Small(seed).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32, rows: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs of one step and what a fixed map makes of them."""
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(step))
    A = torch.randn(5, 3, generator=torch.Generator().manual_seed(99))
    return x.to(dtype), (x @ A).tanh().to(dtype)


def backward(model: nn.Module, step: int, rows: int = 16) -> Tensor:
    """The loss of one step, after its gradients were added."""
    x, y = batch(step, next(model.parameters()).dtype, rows)
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> Tensor:
    """Some steps; the loss of the last."""
    loss = torch.zeros(())
    for step in steps:
        optimizer.zero_grad()
        loss = backward(model, step)
        optimizer.step()
    return loss


def minimise(
    model: nn.Module, loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int
) -> float:
    """What is left of the loss, as a share, after steps whose length fades to nothing."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with torch.no_grad():
        first = float(loss_of())
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        return float(loss_of()) / first


def grads(named: Sequence[Parameter], seed: int, scale: float = 1.0) -> None:
    """Random gradients, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in named:
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (scale * drawn).to(parameter.dtype)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models are equal to the last bit."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def drawn(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random numbers, the same for the same seed."""
    return torch.randn(
        tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


CAPTURABLE = Handling(capturable=True)
MASTER = Handling(master_weights=True)

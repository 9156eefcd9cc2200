"""How much each parameter matters for what was learned: the diagonal of the Fisher information.

    F_i = mean over items of (d ln p(y | x) / d theta_i)^2

with y the item's own target ("empirical") or drawn from the model ("sampled", the Fisher proper).
An item of text is a sequence, whose ln p is the sum over its tokens, divided by their number so
that its scale does not grow with the length.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from nestling.continual.protocol import IGNORED, Batch
from nestling.continual.strategies.base import cross_entropy, scores_of
from nestling.shapes import Tensor

Targets = Literal["empirical", "sampled"]


def diagonal_fisher(
    model: nn.Module,
    items: Batch,
    *,
    most: int | None = None,
    targets: str = "empirical",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The diagonal, by name of the parameter; one backward pass for each item.

    Args:
        model: inputs to scores; its gradients are left as they are.
        items: of what was learned.
        most: the first so many items only; ``None``: all.
        targets: ``"empirical"`` or ``"sampled"``.
        generator: of the draws, on the CPU.

    Raises:
        ValueError: if ``targets`` is neither, or ``most`` is not positive.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> items = Batch(torch.tensor([[2.0]]), torch.tensor([1]))
    >>> diagonal_fisher(model, items)["weight"]          # (2 (1/2 - 0))^2, (2 (1/2 - 1))^2
    tensor([[1.],
            [1.]])
    """
    check(most, targets)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    count = min(len(items), most or len(items))
    for index in range(count):
        item = items.rows(slice(index, index + 1))
        scores = scores_of(model, item.inputs)
        answer = item.targets
        if targets == "sampled":
            drawn = torch.multinomial(
                scores.detach().flatten(0, -2).softmax(-1).cpu(), 1, generator=generator
            )
            answer = drawn.to(answer.device).view_as(answer).masked_fill(answer == IGNORED, IGNORED)
        found = torch.autograd.grad(
            cross_entropy(scores, answer), list(named.values()), allow_unused=True
        )
        for name, gradient in zip(named, found, strict=True):
            if gradient is not None:
                total[name] += gradient.detach().square()
    return {name: value / count for name, value in total.items()}


def check(most: int | None, targets: str, *, name: str = "most") -> None:
    """Refuse what :func:`diagonal_fisher` cannot use.

    Raises:
        ValueError: naming the argument.
    """
    if targets not in get_args(Targets):
        raise ValueError(f"targets: expected one of {get_args(Targets)}, got {targets!r}")
    if most is not None and most < 1:
        raise ValueError(f"{name}: expected at least 1, got {most}")

"""Text that a model writes from itself: how a slow level speaks to the fast ones.

    x_t+1 ~ p(. | x_1 ... x_t)^(1 / temperature),        x_1 given

Nothing that was read is stored for it. With which token a dream begins decides what it is about:
see :meth:`nestling.levels.SlowLevel.consolidate`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nestling.shapes import Tensor


@torch.no_grad()
def dream(
    model: nn.Module,
    first: Tensor,
    *,
    length: int,
    temperature: float = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """Sequences that a language model writes after their first tokens.

    Args:
        model: ``model(ids, state)`` gives logits and the state to go on with (models of this
            library), or ``model(input_ids=..., past_key_values=...)`` gives both (transformers).
        first: the first tokens, ``(N,)``.
        length: tokens written after each.
        temperature: of the draws.
        generator: of the draws; on the CPU, so that every device dreams the same.

    Returns:
        ``(N, length + 1)``, the first tokens in front.

    Raises:
        ValueError: if ``first``, ``length`` or ``temperature`` is out of range, or the model's
            output is not finite.

    >>> class Next(nn.Module):                  # always the next number
    ...     def initial_state(self): ...
    ...     def forward(self, ids, state=None):
    ...         return torch.eye(10)[(ids + 1) % 10] * 1e9, None
    >>> dream(Next(), torch.tensor([3, 8]), length=3, generator=torch.Generator())
    tensor([[3, 4, 5, 6],
            [8, 9, 0, 1]])
    """
    if first.ndim != 1 or first.is_floating_point() or not len(first):
        raise ValueError(f"first: expected at least one id, one axis, got {tuple(first.shape)}")
    if length < 1:
        raise ValueError(f"length: expected at least 1, got {length}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    token, state, written = first[:, None], None, [first[:, None]]
    for _ in range(length):
        logits, state = _read_on(model, token, state)
        weights = (logits.float().cpu() / temperature).softmax(-1)
        if not bool(weights.isfinite().all()):
            raise ValueError("model: its output is not finite")
        token = torch.multinomial(weights, 1, generator=generator).to(first.device)
        written.append(token)
    return torch.cat(written, dim=1)


def _read_on(model: nn.Module, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Logits after the last token, ``(N, V)``, and the state with it read."""
    if hasattr(model, "initial_state"):
        logits, state = model(ids, state)
    else:
        found = model(input_ids=ids, past_key_values=state, use_cache=True)
        logits, state = found.logits, found.past_key_values
    return logits[:, -1], state

"""Rows of unequal length, with padding anywhere, as rows with all padding on the right."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nestling.shapes import Tensor


class Packed(NamedTuple):
    """Tokens left-aligned.

    Attributes:
        ids: ``(B, T)``, 0 at padding.
        lengths: ``(B,)`` tokens of each row, on the CPU.
        targets: ``(B, T)`` the token after each, if given.
        order: ``(B, T)`` where each column comes from; ``None`` if nothing has moved.
    """

    ids: Tensor
    lengths: Tensor
    targets: Tensor | None
    order: Tensor | None

    def back(self, x: Tensor) -> Tensor:
        """``(B, T, ...)`` in the order in which the tokens came."""
        if self.order is None:
            return x
        back = self.order.argsort(dim=1).to(x.device)
        return x.gather(1, back.reshape(*back.shape, *[1] * (x.dim() - 2)).expand_as(x))


def pack(ids: Tensor, mask: Tensor | None, targets: Tensor | None = None) -> Packed:
    """Left-align.

    >>> packed = pack(torch.tensor([[0, 7, 0, 9]]), torch.tensor([[False, True, False, True]]))
    >>> packed.ids.tolist(), packed.lengths.tolist(), packed.back(packed.ids).tolist()
    ([[7, 9, 0, 0]], [2], [[0, 7, 0, 9]])
    """
    if mask is None or bool(mask.all()):
        return Packed(ids, torch.full((ids.shape[0],), ids.shape[1]), targets, None)
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    ids = ids.masked_fill(~mask, 0).gather(1, order)
    if targets is not None:
        targets = targets.masked_fill(~mask, 0).gather(1, order)
    return Packed(ids, mask.sum(1).cpu(), targets, order)


def take(tokens: Tensor, start: Tensor, size: Tensor, width: int | None = None) -> Tensor:
    """``size`` tokens of every row from ``start`` on, zero behind them.

    >>> take(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([1, 0]), torch.tensor([2, 1]))
    tensor([[2, 3],
            [4, 0]])
    """
    width = int(size.max()) if width is None else width
    place = torch.arange(width)[None]
    index = (start[:, None] + place).clamp(max=tokens.shape[1] - 1)
    return tokens.gather(1, index).masked_fill(place >= size[:, None], 0)

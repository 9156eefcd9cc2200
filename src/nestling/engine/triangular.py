"""Batches of small unit lower triangular systems ``(I + L) X = R``.

Row blocks are solved one after the other; the diagonal blocks are inverted exactly by repeated
squaring, ``(I + N)^-1 = (I - N)(I + N^2)(I + N^4) ...``, which ends because N is strictly lower
triangular (nilpotent). Everything is a batched matrix product, where a library's triangular
solver would take the batch one system after the other.
"""

from __future__ import annotations

import torch

from nestling.shapes import Float, Tensor

BLOCK = 16
"""Tiling only: never changes the result beyond rounding."""


def solve_unit_lower(
    L: Float[Tensor, "... C C"], R: Float[Tensor, "... C V"]
) -> Float[Tensor, "... C V"]:
    """Solve ``(I + L) X = R`` for strictly lower triangular L, in the dtype of R.

    >>> solve_unit_lower(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0], [1.0]]))
    tensor([[ 1.],
            [-1.]])
    """
    return torch.linalg.solve_triangular(L, R, upper=False, unitriangular=True)

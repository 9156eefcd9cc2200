"""Newton-Schulz: the nearest (semi-)orthogonal matrix of a batch, by matrix products only.

    X_0 = S / |S|_F,    X <- a X + b (X X^T) X + c (X X^T)^2 X        (Jordan et al. 2024, Muon)

NL Eq. 52 uses it as the output map of a momentum; Atlas uses it for a memory's own step.
"""

from __future__ import annotations

import torch

from nestling.shapes import Float, Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Muon's quintic, which trades exactness (singular values end in about [0.7, 1.2]) for speed."""


def newton_schulz(
    S: Float[Tensor, "... I O"],
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "... I O"]:
    """Map every matrix of a batch near its orthogonal polar factor.

    A matrix in bfloat16 gives what ``torch.optim.Muon`` makes of it, to the bit: the products are
    the same, in the same order.

    Args:
        S: matrices, any leading axes.
        steps: iterations.
        coefficients: of the odd quintic polynomial.
        eps: keeps the zero matrix at zero.
        dtype: to compute and answer in; that of ``S`` unless given.

    >>> newton_schulz(torch.diag(torch.tensor([4.0, 0.5]))).diagonal().abs() > 0.6
    tensor([True, True])
    """
    a, b, c = coefficients
    wide = S.shape[-2] <= S.shape[-1]
    X = S.to(dtype or S.dtype)
    X = X if wide else X.mT
    batch = X.shape[:-2]
    fused = torch.addmm
    if batch:
        X, fused = X.reshape(-1, *X.shape[-2:]), torch.baddbmm
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = X @ X.mT
        X = fused(X, fused(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    X = X.reshape(*batch, *X.shape[-2:])
    return X if wide else X.mT

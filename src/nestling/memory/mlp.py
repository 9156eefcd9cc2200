"""The deep memory: a residual MLP (NL Eq. 89), its read and its gradients by hand.

    h_0 = x,   z_i = h_{i-1} W_i,   h_i = normalise(gelu(z_i)),   M(x) = x + h_{L-1} W_L

The hidden vectors are L2-normalised (reading R3): they are the keys of the matrices after them,
and Delta Gradient Descent needs keys of bounded norm (NL Eq. 57).

Backwards, with ``e`` the derivative of the objective with respect to ``M(x)``:

    error_L = e,   error_i = gelu'(z_i) * J_normalise^T (error_{i+1} W_{i+1}^T)

Writing these lines out keeps the inner gradient an ordinary batch of matrix products which the
outer loop differentiates a second time; no ``vmap(grad(...))`` is involved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nestling.memory.linear import Apply, Surprise
from nestling.memory.rule import LearningRule
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor

EPS = 1e-12
"""Below every norm that occurs: ``h = g / max(|g|, EPS)``."""

INVERSE_SQRT_2_PI = 0.3989422804014327


class _HiddenMap(torch.autograd.Function):
    """``h = g / n`` with ``g = gelu(z)``, ``n = max(|g|, EPS)``, and its derivative by hand.

    ``dg = dh / n + h (dn - h . dh / n)``, in five passes over memory instead of a dozen.
    """

    @staticmethod
    def forward(ctx, z: Tensor) -> tuple[Tensor, Tensor]:
        g = F.gelu(z)
        n = torch.linalg.vector_norm(g, dim=-1, keepdim=True).clamp_(min=EPS)
        h = g.div_(n)
        ctx.save_for_backward(z, h, n)
        return h, n

    @staticmethod
    @once_differentiable
    def backward(ctx, dh: Tensor, dn: Tensor) -> Tensor:
        z, h, n = ctx.saved_tensors
        along = (dn - (h * dh).sum(-1, keepdim=True) / n).masked_fill_(n <= EPS, 0.0)
        return torch.ops.aten.gelu_backward((dh / n).addcmul_(h, along), z)


class _HiddenMapTransposed(torch.autograd.Function):
    """``y = gelu'(z) t``, ``t = (e - h (h . e)) / n``, and its derivative by hand.

    With ``dt = gelu'(z) dy`` and ``r = h . dt``:  ``de = (dt - h r) / n``,
    ``dh = -(dt (h . e) + e r) / n``,  ``dn = -t . dt / n``,  ``dz = dy t gelu''(z)``.
    """

    @staticmethod
    def forward(ctx, e: Tensor, z: Tensor, h: Tensor, n: Tensor) -> Tensor:
        s = (h * e).sum(-1, keepdim=True)
        t = torch.addcmul(e, h, s, value=-1).div_(n)
        ctx.save_for_backward(e, z, h, n, s)
        return torch.ops.aten.gelu_backward(t, z)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        e, z, h, n, s = ctx.saved_tensors
        t = torch.addcmul(e, h, s, value=-1).div_(n)
        dt = torch.ops.aten.gelu_backward(dy, z)
        dn = -(t * dt).sum(-1, keepdim=True) / n
        r = (h * dt).sum(-1, keepdim=True) / n
        scaled = dt.div_(n)
        dh = (scaled * -s).addcmul_(e, r, value=-1)
        de = scaled.addcmul_(h, r, value=-1)
        square = z * z
        dz = torch.exp(square * -0.5).mul_(INVERSE_SQRT_2_PI)  # the normal density, then gelu''
        dz.mul_(square.neg_().add_(2.0)).mul_(t).mul_(dy)
        return de, dz, dh, dn


def hidden_map(z: Float[Tensor, "... M"]) -> tuple[Tensor, Tensor]:
    """``normalise(gelu(z))`` and the norm that was divided by."""
    return _HiddenMap.apply(z)


def hidden_map_transposed(
    error: Float[Tensor, "... M"], z: Tensor, h: Tensor, norm: Tensor
) -> Float[Tensor, "... M"]:
    """The error before :func:`hidden_map`, ``gelu'(z) * (I - h h^T) error / norm``."""
    return _HiddenMapTransposed.apply(error, z, h, norm)


@dataclass(frozen=True)
class MLPMemory:
    """Residual MLP with normalised hidden vectors; two layers by default.

    Args:
        hidden: size of the hidden vectors.
        depth: number of matrices, at least 2: ``w_in``, ``w_hidden_1`` ..., ``w_out``.

    Raises:
        ValueError: if ``hidden`` or ``depth`` is too small.

    >>> MLPMemory(hidden=8).shapes(4, 4)
    {'w_in': (4, 8), 'w_out': (8, 4)}
    """

    hidden: int
    depth: int = 2

    parametric = True

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: expected at least 1, got {self.hidden}")
        if self.depth < 2:
            raise ValueError(
                f"depth: expected at least 2, got {self.depth}; one matrix is LinearMemory()"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Matrices from input to output."""
        return ("w_in", *(f"w_hidden_{i}" for i in range(1, self.depth - 1)), "w_out")

    @property
    def name(self) -> str:
        """For tables."""
        return f"MLP, {self.depth} layers, hidden {self.hidden}"

    def shapes(self, key_size: int, value_size: int) -> dict[str, tuple[int, int]]:
        """Name and ``(in, out)`` of every matrix, from input to output.

        Raises:
            ValueError: if key and value sizes differ: the memory is residual.
        """
        if key_size != value_size:
            raise ValueError(
                f"v: MLPMemory is residual and needs values of the keys' size {key_size}, "
                f"got {value_size}"
            )
        sizes = (key_size, *[self.hidden] * (self.depth - 1), value_size)
        return {name: (sizes[i], sizes[i + 1]) for i, name in enumerate(self.names)}

    def read(self, x: Float[Tensor, "... K"], apply: Apply) -> Float[Tensor, "... K"]:
        """``x + h_{L-1} W_L``, each matrix acting through ``apply``."""
        h = x
        for name in self.names[:-1]:
            h, _ = hidden_map(apply(name, h))
        return x + apply(self.names[-1], h)

    def surprises(
        self,
        weights: Weights,
        k: Float[Tensor, "... C K"],
        v: Float[Tensor, "... C K"],
        rule: LearningRule,
    ) -> dict[str, Surprise]:
        """The gradient of ``L(M(k); v)``: a key and an error for every matrix."""
        h, keys, held, trace = k, [], [], []
        for name in self.names[:-1]:
            keys.append(h)
            held.append(h @ weights[name])
            trace.append(hidden_map(held[-1]))
            h = trace[-1][0]
        keys.append(h)
        held.append(h @ weights["w_out"])
        target = self.read(v, lambda name, x: x @ weights[name]) if rule.values == "self" else v
        error = rule.objective.gradient(k + held[-1], target)
        errors = [error]
        for i in range(self.depth - 2, -1, -1):
            error = hidden_map_transposed(error @ weights[self.names[i + 1]].mT, held[i], *trace[i])
            errors.insert(0, error)
        return {name: Surprise(keys[i], errors[i], held[i]) for i, name in enumerate(self.names)}

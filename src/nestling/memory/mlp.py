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

from nestling.memory.hidden_map import hidden_map, hidden_map_transposed
from nestling.memory.linear import Apply, Surprise
from nestling.memory.rule import LearningRule
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor


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
        target = rule.target(v, lambda x: self.read(x, lambda name, h: h @ weights[name]))
        error = rule.objective.gradient(k + held[-1], target)
        errors = [error]
        for i in range(self.depth - 2, -1, -1):
            error = hidden_map_transposed(error @ weights[self.names[i + 1]].mT, held[i], *trace[i])
            errors.insert(0, error)
        return {name: Surprise(keys[i], errors[i], held[i]) for i, name in enumerate(self.names)}

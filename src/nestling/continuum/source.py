"""Where the error of a block in context comes from (NL 3.3, 7.1).

``Local``: the block is an associative memory of its own input, so a whole level is written
chunk-parallel. ``Backprop``: the next-token loss of a chunk, backpropagated to the block.
"""

from __future__ import annotations

from dataclasses import dataclass

from nestling.memory import L2
from nestling.memory.objective import Objective
from nestling.shapes import Float, Tensor


@dataclass(frozen=True)
class Local:
    """``L_t = objective(M(q_t); v_t)`` with learned keys ``q_t`` and targets ``v_t = k_t P_v``.

    ``M`` is the block's MLP without the residual, ``k_t`` its normalised input.

    Args:
        objective: of the memory.
        key: ``"input"``: ``q_t = k_t``, whose projection is the norm's learned scale, so that what
            is read is also the memory's prediction; ``"projection"``: ``q_t = k_t P_k``, a matrix
            and a second forward pass.
        matrices: ``"every"`` matrix of the MLP is written, or the ``"last"`` one only: a fast
            linear layer over learned features, at a third of the cost. Writing both was seen to
            diverge: keys of the last matrix move with the first (docs/log.md).

    Raises:
        ValueError: naming the argument that is neither.

    >>> Local(key="projection").key
    'projection'
    """

    objective: Objective = L2()
    key: str = "input"
    matrices: str = "last"

    def __post_init__(self) -> None:
        if self.key not in ("input", "projection"):
            raise ValueError(f"key: expected 'input' or 'projection', got {self.key!r}")
        if self.matrices not in ("every", "last"):
            raise ValueError(f"matrices: expected 'every' or 'last', got {self.matrices!r}")

    @property
    def name(self) -> str:
        """For tables."""
        return f"local {type(self.objective).__name__}"


@dataclass(frozen=True)
class Backprop:
    """``L_t = -ln p(x_{t+1})``, backpropagated within a chunk; written by ``observe`` only.

    Args:
        order: 1 makes the write a constant for the outer loop, 2 differentiates through it.
        chunk: largest number of tokens through which the gradient flows; a chunk also ends
            wherever a level of this source ends its period.

    Raises:
        ValueError: if ``order`` is neither 1 nor 2, or ``chunk`` below 1.

    >>> Backprop().order
    1
    """

    order: int = 1
    chunk: int = 256

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {self.order!r}")
        if not isinstance(self.chunk, int) or self.chunk < 1:
            raise ValueError(f"chunk: expected a whole number >= 1, got {self.chunk!r}")

    @property
    def name(self) -> str:
        """For tables."""
        return f"next-token loss, order {self.order}"


@dataclass(frozen=True)
class Given:
    """Errors from elsewhere: the derivative of some loss with respect to the MLP's output.

    Args:
        errors: ``(B, T, D)``, for the tokens of one call.
    """

    errors: Float[Tensor, "B T D"]


Source = Local | Backprop

"""Learning rules: how a memory is written, as the product objective x retention x momentum.

One token moves one matrix ``M`` (rows are inputs, reading R1) with its own input ``k`` and the
gradient ``G = k^T g`` of the objective, taken at the chunk's anchor:

    S_t = beta_t S_{t-1} - eta_t G_t                      momentum (S_t = -eta_t G_t without)
    M_t = retain(M_{t-1}) + S_t                           NL Eq. 88 with the momentum of Table 6

``retain`` is one of the classes below. Known rules are products: ``LearningRule(L2())`` on a
linear memory is the delta rule, ``LearningRule(DotProduct(), Decay())`` is RetNet or a gated
linear attention, ``LearningRule(L2(), Delta())`` is NL's Delta Gradient Descent with decay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from nestling.memory.objective import L2, Objective
from nestling.memory.orthogonal import newton_schulz
from nestling.memory.unit import unit
from nestling.shapes import Float, Tensor


@runtime_checkable
class Retention(Protocol):
    """What is kept of a matrix when a token is written.

    The flags say the same to the closed form in ``engine/chunked.py`` as :meth:`retain` says to
    the token loop in ``engine/recurrent.py``.
    """

    @property
    def decays(self) -> bool:
        """Whether ``alpha`` matters."""
        ...

    @property
    def toward_initial(self) -> bool:
        """Whether the decay ends at the initial memory rather than at zero."""
        ...

    def erases(self, first: bool) -> bool:
        """Whether ``- eta k k^T`` acts on the first matrix of a memory, or on a later one."""
        ...

    def retain(
        self,
        M: Float[Tensor, "... I O"],
        k: Float[Tensor, "... I"],
        eta: Float[Tensor, ...],
        alpha: Float[Tensor, ...],
        initial: Float[Tensor, "... I O"],
        first: bool,
    ) -> Float[Tensor, "... I O"]:
        """One token's ``retain(M)``."""
        ...


@dataclass(frozen=True)
class Keep:
    """``retain(M) = M``: nothing fades."""

    decays = False
    toward_initial = False

    def erases(self, first: bool) -> bool:
        """Nothing is erased."""
        return False

    def retain(self, M, k, eta, alpha, initial, first):
        """``M``."""
        return M


@dataclass(frozen=True)
class Decay:
    """``retain(M) = alpha M``: everything fades toward zero."""

    decays = True
    toward_initial = False

    def erases(self, first: bool) -> bool:
        """Nothing is erased."""
        return False

    def retain(self, M, k, eta, alpha, initial, first):
        """``alpha M``."""
        return alpha[..., None, None] * M


@dataclass(frozen=True)
class DecayToInitial:
    """``retain(M) = alpha M + (1 - alpha) M_0``: what was written fades, what was learned stays.

    ``M_0`` is the initial memory, learned by the outer loop (reading R13).
    """

    decays = True
    toward_initial = True

    def erases(self, first: bool) -> bool:
        """Nothing is erased."""
        return False

    def retain(self, M, k, eta, alpha, initial, first):
        """``alpha M + (1 - alpha) M_0``."""
        kept = alpha[..., None, None]
        return kept * M + (1 - kept) * initial


@dataclass(frozen=True)
class Delta:
    """``retain(M) = decay(M) - eta k^T (k M)``: Delta Gradient Descent (NL Eq. 56-57, 88).

    What the matrix holds under the token's own key is erased in proportion to the step size, so
    the transition ``alpha I - eta k k^T`` has an eigenvalue ``alpha - eta`` along the key: -1
    and with it state tracking is reached at ``eta = 2`` (reading R7).

    Args:
        decay: how the rest fades: ``Keep()``, ``Decay()`` or ``DecayToInitial()``.
        matrices: ``"every"`` matrix of a deep memory erases with its own input as key (reading
            R2), or the ``"first"`` only, with plain decay for the others.

    Raises:
        ValueError: if ``matrices`` is neither.

    >>> import torch
    >>> M, k = torch.eye(2), torch.tensor([1.0, 0.0])
    >>> Delta().retain(M, k, torch.tensor(0.5), torch.tensor(1.0), M, True)
    tensor([[0.5000, 0.0000],
            [0.0000, 1.0000]])
    """

    decay: Keep | Decay | DecayToInitial = Decay()
    matrices: Literal["every", "first"] = "every"

    def __post_init__(self) -> None:
        if self.matrices not in ("every", "first"):
            raise ValueError(f"matrices: expected 'every' or 'first', got {self.matrices!r}")

    @property
    def decays(self) -> bool:
        """As the inner decay."""
        return self.decay.decays

    @property
    def toward_initial(self) -> bool:
        """As the inner decay."""
        return self.decay.toward_initial

    def erases(self, first: bool) -> bool:
        """On the first matrix always, on the others unless ``matrices="first"``."""
        return first or self.matrices == "every"

    def retain(self, M, k, eta, alpha, initial, first):
        """``decay(M) - eta k^T (k M)``."""
        kept = self.decay.retain(M, k, eta, alpha, initial, first)
        if not self.erases(first):
            return kept
        held = (k[..., None, :] @ M).squeeze(-2)
        return kept - eta[..., None, None] * k[..., :, None] * held[..., None, :]


@dataclass(frozen=True)
class Momentum:
    """Heavy ball with a data-dependent factor: ``S_t = beta_t S_{t-1} - eta_t G_t``.

    ``beta`` comes with the tokens. Titans calls it eta, and calls theta what is eta here.
    """


@dataclass(frozen=True)
class NewtonSchulz:
    """Orthogonalise the chunk's accumulated step before it is written, as Muon does (NL Eq. 52).

    The step is known as a whole only at the chunk's last token T, so that is where it is written:

        S_t = beta_t S_{t-1} - eta_t G_t                       (S = 0 at the chunk's start without)
        M_t = retain(M_{t-1}) + [t ends the chunk] eta_t NewtonSchulz(S_t)

    With ``chunk_size=1`` it is Muon token by token.

    Args:
        steps: iterations, at least 1.

    Raises:
        ValueError: if ``steps`` is below 1.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")

    def __call__(self, S: Float[Tensor, "... I O"]) -> Float[Tensor, "... I O"]:
        """The nearest (semi-)orthogonal matrix, approximately."""
        return newton_schulz(S, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class LearningRule:
    """A learning rule is a value: objective x retention x momentum x output map.

    Args:
        objective: what the write minimises.
        retention: what is kept of the memory meanwhile.
        momentum: ``Momentum()`` or ``None``.
        output_map: ``NewtonSchulz()`` or ``None``, applied to the chunk's step.
        values: ``"given"``: the target is ``v``; ``"self"``: the memory generates its own target
            from it, ``v_hat = M(v)`` at the chunk's anchor (NL Eq. 86-87); ``"self_unit"``:
            ``v_hat = M(v) / |M(v)|``. Unbounded targets feed a memory with its own size.
        hidden_step: what ``eta`` is multiplied by for every matrix but a memory's last. Their
            outputs are the last one's keys: what moves them blurs what it has stored.

    Raises:
        ValueError: if ``values`` is none of these or ``hidden_step`` is negative.

    >>> LearningRule(objective=L2(), retention=Delta(), momentum=Momentum()).name
    'L2 x Delta(Decay) x Momentum'
    """

    objective: Objective = L2()
    retention: Retention = Keep()
    momentum: Momentum | None = None
    output_map: NewtonSchulz | None = None
    values: Literal["given", "self", "self_unit"] = "given"
    hidden_step: float = 1.0

    def __post_init__(self) -> None:
        if self.values not in ("given", "self", "self_unit"):
            raise ValueError(
                f"values: expected 'given', 'self' or 'self_unit', got {self.values!r}"
            )
        if not self.hidden_step >= 0:
            raise ValueError(f"hidden_step: expected 0 or more, got {self.hidden_step}")

    @property
    def has_momentum_state(self) -> bool:
        """Whether a momentum must be carried in the state."""
        return self.momentum is not None or self.output_map is not None

    def target(self, v: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """What a memory that reads by ``read`` shall answer for the value ``v``."""
        if self.values == "given":
            return v
        made = read(v)
        return unit(made) if self.values == "self_unit" else made

    @property
    def name(self) -> str:
        """The product in words, for tables."""
        retention = type(self.retention).__name__
        if isinstance(self.retention, Delta):
            retention = f"Delta({type(self.retention.decay).__name__})"
        parts = [type(self.objective).__name__, retention]
        parts += [type(part).__name__ for part in (self.momentum, self.output_map) if part]
        own = {"given": "", "self": " on own values", "self_unit": " on own unit values"}
        return " x ".join(parts) + own[self.values]

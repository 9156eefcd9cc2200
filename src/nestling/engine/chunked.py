"""The exact closed form of one chunk: the same numbers as ``recurrent.py`` in matrix products.

For one matrix with keys k_t and anchor errors e_t let ``u_t = -eta_t e_t``. With the cumulative
products A of alpha and B of beta, m the mask, and lower triangular

    D[t,s] = A_t / A_s,   Dm[t,s] = B_t / B_s   (s <= t),   c = D diag(m) Dm,   a = D diag(m) B,

the token loop unrolls to (derivation: docs/derivations/chunk.md)

    M_t = A_t M + a_t S + sum_{s<=t} k_s^T (c[t,s] u_s + D[t,s] w_s)
    S_t = B_t S + sum_{s<=t} k_s^T Dm[t,s] u_s

where w, what DGD erases, solves one unit lower triangular system (' is one row down)

    (I + diag(eta) (D' * K K^T)) w = -diag(eta) [A' (K M) + a' (K S) + (c' * K K^T) u].

Nothing of size tokens x weights is formed. Without momentum ``c = D`` and u joins w.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from nestling.engine.carry import Carry, choose, matrix, one_of
from nestling.engine.erase import erase_and_write
from nestling.engine.layout import Segment
from nestling.engine.products import Products, products
from nestling.engine.triangular import solve_unit_lower
from nestling.engine.two_layer import TwoLayerRule, two_layer_chunk
from nestling.memory.linear import Surprise
from nestling.memory.mlp import MLPMemory
from nestling.memory.rule import LearningRule
from nestling.memory.state import GatedTokens, map_tensors
from nestling.shapes import Float, Tensor


def down(x: Tensor, *, axis: int) -> Tensor:
    """The values at t - 1: shift ``axis`` down by one behind zeros."""
    head = torch.zeros_like(x.narrow(axis, 0, 1))
    return torch.cat([head, x.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)


@dataclass(frozen=True)
class Gates:
    """The coefficients that all matrices of a memory share in one chunk.

    Attributes:
        step: ``-eta``, ``(..., C, 1)``.
        decay: A and D.
        momentum: B and Dm; None without momentum.
        a: how the momentum at the start lands; None without.
        c: how a token's own step lands.
        recall: ``A'``, ``(..., C, 1)``.
        erase: ``eta D'``, ``(..., C, C)``.
        a_before: ``a'``, ``(..., C, 1)``.
        c_before: ``c'``.
    """

    step: Tensor
    decay: Products
    momentum: Products | None
    a: Tensor | None
    c: Tensor
    recall: Tensor
    erase: Tensor
    a_before: Tensor | None
    c_before: Tensor | None

    @staticmethod
    def of(rule: LearningRule, tokens: GatedTokens, scale: float = 1.0) -> Gates:
        """From a chunk's eta (times ``scale``), alpha, beta and mask."""
        decay = products(tokens.alpha)
        a, c = None, decay.between
        momentum = products(tokens.beta) if rule.has_momentum_state else None
        if momentum is not None and rule.output_map is None:
            mask = tokens.mask.to(decay.between)
            mask = mask.reshape(mask.shape[0], *[1] * (decay.between.dim() - 2), -1)
            landed = decay.between * mask
            c = landed @ momentum.between
            a = (landed @ momentum.total[..., None]).squeeze(-1)
        eta = tokens.eta[..., None] * scale if scale != 1.0 else tokens.eta[..., None]
        return Gates(
            step=-eta,
            decay=decay,
            momentum=momentum,
            a=a,
            c=c,
            recall=decay.total_before[..., None],
            erase=eta * decay.between_before,
            a_before=None if a is None else down(a, axis=-1)[..., None],
            c_before=None if a is None else down(c, axis=-2),
        )


@dataclass(frozen=True)
class Path:
    """All states M_1 .. M_C of one matrix inside a chunk, without forming any of them.

    ``M_t = A_t M + a_t S + sum_{s<=t} key_s^T (c[t,s] u_s + D[t,s] w_s)  [+ M_0]``; where ``u``
    is None everything is in ``w``. ``after`` is ``M_C`` where it is known already.
    """

    gates: Gates
    key: Tensor
    u: Tensor | None
    w: Tensor | None
    M: Tensor
    S: Tensor | None
    initial: Tensor | None
    after: Tensor | None = None

    def read(self, x: Float[Tensor, "... C I"]) -> Float[Tensor, "... C O"]:
        """Row t of ``x`` through ``M_t``."""
        overlap = x @ self.key.mT
        y = self.gates.decay.total[..., None] * (x @ self.M)
        if self.S is not None and self.gates.a is not None:
            y = y + self.gates.a[..., None] * (x @ self.S)
        if self.u is not None:
            y = y + (overlap * self.gates.c) @ self.u
        if self.w is not None:
            y = y + (overlap * self.gates.decay.between) @ self.w
        if self.initial is not None:
            y = y + x @ self.initial
        return y

    def of(self, index: int) -> Path:
        """The path of one memory of a stack; what all share has size 1 on that axis."""
        return map_tensors(lambda x: x.select(1, index if x.shape[1] > 1 else 0), self)

    def last(self) -> Float[Tensor, "... I O"]:
        """``M_C``, the state after the chunk."""
        if self.after is not None:
            return self.after
        gates = self.gates
        M, moved = self.M, None
        if self.u is not None:
            moved = gates.c[..., -1, :, None] * self.u
        if self.w is not None:
            erased = gates.decay.between[..., -1, :, None] * self.w
            moved = erased if moved is None else moved + erased
        kept = gates.decay.total[..., -1, None, None]
        M = kept * M if moved is None else torch.addcmul(self.key.mT @ moved, kept, M)
        if self.S is not None and gates.a is not None:
            M = torch.addcmul(M, gates.a[..., -1, None, None], self.S)
        return M if self.initial is None else M + self.initial


def path(
    rule: LearningRule, gates: Gates, surprise: Surprise, M: Tensor, S: Tensor | None,
    initial: Tensor | None, *, anchored: bool, first: bool,
) -> Path:  # fmt: skip
    """Solve for everything that the chunk writes into one matrix.

    Args:
        rule: the learning rule.
        gates: the chunk's coefficients.
        surprise: the matrix's keys, errors and anchor reads.
        M: the matrix when the segment starts.
        S: its momentum, or None.
        initial: the memory that decay returns to, or None for zero.
        anchored: whether M is the anchor, so that ``key @ M`` is known already.
        first: whether this is the memory's first matrix.
    """
    key, error, held = surprise
    S = S if gates.a is not None else None
    offset = M if initial is None else M - initial
    u = gates.step * error if rule.output_map is None else None
    if not rule.retention.erases(first):
        return Path(gates, key, u, None, offset, S, initial)

    held = held if anchored else key @ M
    if S is None and initial is None and u is not None:
        kept, share = gates.decay.total[..., -1, None, None], gates.decay.between[..., -1, :, None]
        w, after = erase_and_write(
            key, error, held, M,
            step=gates.step, recall=gates.recall, erase=gates.erase, share=share, kept=kept,
        )  # fmt: skip
        return Path(gates, key, None, w, M, None, None, after)
    if initial is None:
        recalled = gates.recall * held
    else:
        recalled = torch.lerp(key @ initial, held, gates.recall.expand_as(held))
    overlap = key @ key.mT
    if S is not None and u is not None:
        assert gates.a_before is not None
        assert gates.c_before is not None
        recalled = torch.addcmul(recalled, gates.a_before, key @ S)
        recalled = recalled + (gates.c_before * overlap) @ u
        right = gates.step * recalled
    elif u is not None:
        right, u = gates.step * (error + recalled), None
    else:
        right = gates.step * recalled
    w = solve_unit_lower(gates.erase * overlap, right)
    return Path(gates, key, u, w, offset, S, initial)


def chunked(
    memory,
    rule: LearningRule,
    carry: Carry,
    segment: Segment,
    tokens: GatedTokens,
    reads: str,
    reader: int | None = None,
) -> tuple[Tensor | None, Carry]:
    """Run the tokens of one segment at once."""
    if reads == "exact" and segment.opens is True:
        how = _two_layer_rule(memory, rule, carry, tokens, reader)
        if how is not None:
            return _two_layer(how, rule, carry, tokens, reader)
    surprises = memory.surprises(carry.anchor, tokens.k, tokens.v, rule)
    *hidden, last = surprises
    step_of = {**dict.fromkeys(hidden, rule.hidden_step), last: 1.0}
    gates_at = {step: Gates.of(rule, tokens, step) for step in dict.fromkeys(step_of.values())}
    gates = {name: gates_at[step] for name, step in step_of.items()}
    paths = {
        name: path(
            rule,
            gates[name],
            surprise,
            carry.weights[name],
            carry.momentum.get(name),
            carry.initial[name] if rule.retention.toward_initial else None,
            anchored=segment.opens is True,
            first=index == 0,
        )
        for index, (name, surprise) in enumerate(surprises.items())
    }
    weights = {name: item.last() for name, item in paths.items()}
    momentum = {
        name: _momentum(gates[name], surprise, carry.momentum[name])
        for name, surprise in surprises.items()
        if rule.has_momentum_state
    }
    if rule.output_map is not None:
        weights = _write_step(rule, segment, gates, weights, momentum)
    moved = carry.moved(weights, momentum)
    if tokens.q is None:
        return None, moved
    if reader is not None:
        paths = {name: item.of(reader) for name, item in paths.items()}
    y = _read(memory, rule, segment, tokens.q, paths, moved, (reads, reader))
    return y, moved


def _two_layer_rule(
    memory, rule: LearningRule, carry: Carry, tokens: GatedTokens, reader
) -> TwoLayerRule | None:
    """The rule, if the chunk is the case that ``two_layer.py`` has as one function."""
    if not isinstance(memory, MLPMemory) or memory.depth != 2:
        return None
    alone = carry.weights["w_in"].dim() == 4
    shared = alone or tokens.k.shape[1] == tokens.v.shape[1] == tokens.alpha.shape[1] == 1
    read = alone or reader is not None or tokens.q is None
    return TwoLayerRule.of(rule) if shared and read else None


def _two_layer(
    how: TwoLayerRule, rule: LearningRule, carry: Carry, tokens: GatedTokens, reader: int | None
) -> tuple[Tensor | None, Carry]:
    """The chunk of memories that stand alone or in a stack, by :func:`two_layer_chunk`."""
    k, v, eta, alpha = tokens.k, tokens.v, tokens.eta, tokens.alpha
    W, U = (carry.weights[name] for name in ("w_in", "w_out"))
    W_0, U_0 = (carry.initial[name] for name in ("w_in", "w_out"))
    alone = W.dim() == 4
    if alone:
        W, U, W_0, U_0, eta = (x[:, None] for x in (W, U, W_0, U_0, eta))
    else:
        k, v, alpha = k.squeeze(1), v.squeeze(1), alpha.squeeze(1)
    initial = (W_0, U_0) if rule.retention.toward_initial else (None, None)
    y, W, U = two_layer_chunk(
        k, v, tokens.q, eta, products(alpha).stretches, (W, U), initial, how,
        0 if reader is None else reader,
    )  # fmt: skip
    if alone:
        W, U = W[:, 0], U[:, 0]
    return y, carry.moved({"w_in": W, "w_out": U}, {})


def _momentum(gates: Gates, surprise: Surprise, S: Tensor) -> Tensor:
    """``S_C = B_C S + sum_s key_s^T Dm[C,s] u_s``."""
    assert gates.momentum is not None
    share = (gates.momentum.between[..., -1, :, None] * gates.step) * surprise.error
    return gates.momentum.total[..., -1, None, None] * S + surprise.key.mT @ share


def _write_step(
    rule, segment: Segment, gates: dict[str, Gates], weights, momentum
) -> dict[str, Tensor]:
    """The output map's step, in rows whose chunk ends here, with the last token's eta."""
    if segment.closes is False:
        return weights
    moved = {}
    for name, M in weights.items():
        eta = -gates[name].step.squeeze(-1)
        closing = segment.closing.to(eta.device)
        closing = closing.reshape(closing.shape[0], *[1] * (eta.dim() - 2), -1)
        eta = (eta * closing).sum(-1)[..., None, None]
        moved[name] = choose(segment.closes, M + eta * rule.output_map(momentum[name]), M)
    return moved


def _read(memory, rule, segment, q, paths, moved: Carry, how: tuple[str, int | None]) -> Tensor:
    reads, reader = how
    if reads == "anchor":
        return memory.read(q, partial(matrix, one_of(moved.anchor, reader)))
    y = memory.read(q, lambda name, x: paths[name].read(x))
    if rule.output_map is None or segment.closes is False:
        return y
    after = memory.read(q, partial(matrix, one_of(moved.weights, reader)))
    closing = segment.closing.to(q.device)
    return torch.where(closing.reshape(closing.shape[0], *[1] * (q.dim() - 3), -1, 1), after, y)

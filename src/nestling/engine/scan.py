"""``scan``: run a memory over tokens under a learning rule, and return its reads and new state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint

from nestling.engine.carry import Carry
from nestling.engine.chunked import chunked
from nestling.engine.layout import Layout, plan
from nestling.engine.recurrent import recurrent
from nestling.engine.validate import check, check_softmax
from nestling.memory.rule import LearningRule
from nestling.memory.softmax import SoftmaxMemory
from nestling.memory.state import GatedTokens, MemoryState, Tokens
from nestling.shapes import Tensor

ENGINES = {"chunked": chunked, "recurrent": recurrent}
Source = Callable[[Carry, int], GatedTokens]


def scan(
    memory,
    rule: LearningRule,
    state: MemoryState,
    tokens: Tokens,
    *,
    chunk_size: int,
    engine: Literal["chunked", "recurrent"] = "chunked",
    reads: Literal["exact", "anchor"] = "exact",
    recompute: int = 0,
) -> tuple[Tensor | None, MemoryState]:
    """Write every token into the memory, read its query right after (NL Eq. 86-90, R12).

        S_t = beta_t S_{t-1} - eta_t grad L(M_anchor; k_t, v_t)
        M_t = retain(M_{t-1}) + S_t,      y_t = M_t(q_t)

    The stream may be cut anywhere: a chunk that is open at the end is part of the state.

    Args:
        memory: ``LinearMemory``, ``MLPMemory`` or ``SoftmaxMemory``.
        rule: how it is written.
        state: what it knows so far, batch axis first.
        tokens: keys, values, queries, gates and mask.
        chunk_size: tokens that share one anchor for their gradients. Changes numbers.
        engine: ``"chunked"`` (matrix products) or ``"recurrent"`` (the definition).
        reads: ``"exact"`` after the token's write, or at the ``"anchor"`` (literal NL Eq. 90).
        recompute: chunks that are recomputed together in the backward pass, so that peak memory
            is one state per ``recompute`` chunks; 0 keeps all intermediate values.

    Returns:
        reads ``(B, H, T, V)`` in the dtype of ``q`` (None without queries), and the new state.

    Raises:
        ValueError: naming the argument, for shapes, dtypes or devices that do not fit.

    >>> import torch
    >>> from nestling.memory import LearningRule, LinearMemory
    >>> state = MemoryState(weights={"w": torch.zeros(1, 1, 2, 2)})
    >>> unit = torch.tensor([[[[1.0, 0.0]]]])
    >>> tokens = Tokens(k=unit, q=unit, v=torch.tensor([[[[3.0, 4.0]]]]), eta=torch.ones(1, 1, 1))
    >>> y, state = scan(LinearMemory(), LearningRule(), state, tokens, chunk_size=1)
    >>> y
    tensor([[[[3., 4.]]]])
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {sorted(ENGINES)}, got {engine!r}")
    if reads not in ("exact", "anchor"):
        raise ValueError(f"reads: expected 'exact' or 'anchor', got {reads!r}")
    if recompute < 0:
        raise ValueError(f"recompute: expected 0 or more chunks, got {recompute}")
    if not memory.parametric:
        check_softmax(rule, state, tokens, chunk_size)
        return _attend(memory, state, _without_padding(tokens), engine)
    state, fed = check(memory, rule, state, tokens, chunk_size)
    layout = plan(
        state.position, tokens.mask, batch=state.batch, length=fed.length, chunk_size=chunk_size
    )
    parts = _spread(layout, fed).split(layout.sizes)
    _, y, new = run(
        memory, rule, state, layout, lambda _, index: parts[index],
        engine=engine, reads=reads, recompute=recompute,
    )  # fmt: skip
    if y is not None and tokens.q is not None:
        y = layout.collect(y, axis=-2).to(tokens.q.dtype)
    return y, new


def run(
    memory,
    rule: LearningRule,
    state: MemoryState,
    layout: Layout,
    source: Source,
    *,
    engine: str = "chunked",
    reads: str = "exact",
    recompute: int = 0,
    reader: int | None = None,
) -> tuple[list[GatedTokens], Tensor | None, MemoryState]:
    """Drive an engine over the segments of a layout, with tokens from ``source``.

    ``source(carry, index)`` gives the tokens of segment ``index``; a memory that generates its
    own keys and values computes them from ``carry.anchor``. Their ``eta`` must be 0 and ``alpha``,
    ``beta`` 1 in columns that hold no real token.

    Where memories are stacked, ``(B, N, H, in, out)``, queries read number ``reader``.

    Returns:
        the tokens of each segment, the reads (columns of the layout) and the new state.
    """
    step = ENGINES[engine]
    initial = state.weights if state.initial is None else state.initial
    anchor = state.weights if state.anchor is None else state.anchor
    carry = Carry(state.weights, _momentum(rule, state), anchor, initial)
    groups = _groups(layout.segments, recompute)
    fed, read = [], []

    def advance(carry: Carry, group) -> tuple[list[GatedTokens], list[Tensor | None], Carry]:
        tokens, ys = [], []
        for index, segment in group:
            carry = carry.opened(segment)
            tokens.append(source(carry, index))
            y, carry = step(memory, rule, carry, segment, tokens[-1], reads, reader)
            carry = carry.closed(segment, rule)
            ys.append(y)
        return tokens, ys, carry

    # Writes are sums of many small steps: they stay in the state's precision under autocast.
    device = next(iter(state.weights.values())).device.type
    with torch.autocast(device, enabled=False):
        for group in groups:
            if recompute and torch.is_grad_enabled():
                tokens, ys, carry = checkpoint(
                    advance, carry, group, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens, ys, carry = advance(carry, group)
            fed += tokens
            read += ys
    new = MemoryState(
        weights=carry.weights,
        momentum=carry.momentum,
        anchor=carry.anchor,
        initial=initial if rule.retention.toward_initial else state.initial,
        position=layout.position,
    )
    y = None if not read or read[0] is None else torch.cat(read, dim=-2)
    return fed, y, new


def _groups(segments, recompute: int) -> list:
    numbered = list(enumerate(segments))
    size = recompute or max(1, len(numbered))
    return [numbered[i : i + size] for i in range(0, len(numbered), size)]


def _momentum(rule: LearningRule, state: MemoryState):
    if not rule.has_momentum_state:
        return {}
    return state.momentum or {name: torch.zeros_like(M) for name, M in state.weights.items()}


def _spread(layout: Layout, tokens: GatedTokens) -> GatedTokens:
    """Tokens in columns; padded columns neither step nor fade."""
    valid = tokens.mask if layout.valid is None else layout.valid
    return GatedTokens(
        k=layout.spread(tokens.k, axis=-2),
        v=layout.spread(tokens.v, axis=-2),
        q=None if tokens.q is None else layout.spread(tokens.q, axis=-2),
        eta=layout.spread(tokens.eta, axis=-1, fill=0.0),
        alpha=layout.spread(tokens.alpha, axis=-1, fill=1.0),
        beta=layout.spread(tokens.beta, axis=-1, fill=1.0),
        mask=valid.to(tokens.k.device),
    )


def _without_padding(tokens: Tokens) -> Tokens:
    """Zeros where padded: a score of minus infinity does not silence a value that is NaN."""
    if tokens.mask is None:
        return tokens
    real = tokens.mask[:, None, :, None].to(tokens.k.device)

    def blank(x: Tensor) -> Tensor:
        return torch.where(real, x, torch.zeros((), dtype=x.dtype, device=x.device))

    q = None if tokens.q is None else blank(tokens.q)
    return dataclasses.replace(tokens, k=blank(tokens.k), v=blank(tokens.v), q=q)


def _attend(
    memory: SoftmaxMemory, state: MemoryState, tokens: Tokens, engine: str
) -> tuple[Tensor | None, MemoryState]:
    if engine == "chunked":
        return memory.attend(state, tokens)
    read = []
    for t in range(tokens.length):
        token = Tokens(
            k=tokens.k[..., t : t + 1, :],
            v=tokens.v[..., t : t + 1, :],
            mask=None if tokens.mask is None else tokens.mask[:, t : t + 1],
        )
        if tokens.q is not None:
            read.append(_attend_one(memory, state, token, tokens.q[..., t, :]))
        _, state = memory.attend(state, token)
    return torch.cat(read, dim=-2) if read else None, state


def _attend_one(memory: SoftmaxMemory, state: MemoryState, token: Tokens, q: Tensor) -> Tensor:
    """One query by the definition: softmax over the pairs kept and its own."""
    pairs = state.weights or {"k": token.k[..., :0, :], "v": token.v[..., :0, :]}
    S = pairs["k"].shape[-2]
    position = state.position
    if position is None:
        position = torch.full((q.shape[0],), S)
    seen = memory.visible(position, S, token)[:, 0].to(q.device)
    k = torch.cat([pairs["k"], token.k], dim=-2)
    v = torch.cat([pairs["v"], token.v], dim=-2)
    return memory.read(k, v, q, seen[:, None])[..., None, :]

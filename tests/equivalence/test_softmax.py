"""Softmax attention is the softmax memory (NL Eq. 62-63): SDPA, windows, streams and padding."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from nestling.engine import scan
from nestling.memory import (
    Delta,
    DotProduct,
    LearningRule,
    MemoryState,
    SoftmaxMemory,
    Tokens,
    flatten,
    unflatten,
)

from .problem import ENGINES

EMPTY = MemoryState(weights={})
LENGTH = 13
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_window = pytest.mark.parametrize("window", [None, 1, 4, 13, 40])


def random_tokens(length: int = LENGTH, seed: int = 0) -> Tokens:
    """K = 3, V = 4, two rows and heads, float64, with gradients wanted."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size):
        x = torch.randn(2, 2, length, size, generator=generator, dtype=torch.float64)
        return (2 * x).requires_grad_()

    return Tokens(k=normal(3), v=normal(4), q=normal(3))


def attend(memory, tokens, engine, cuts=(), state=EMPTY):
    """Reads of the pieces between ``cuts``, and the last state."""
    reads, edges = [], [0, *cuts, tokens.length]
    for start, stop in pairwise(edges):
        part = Tokens(
            k=tokens.k[:, :, start:stop],
            v=tokens.v[:, :, start:stop],
            q=tokens.q[:, :, start:stop],
            mask=None if tokens.mask is None else tokens.mask[:, start:stop],
        )
        y, state = scan(memory, LearningRule(), state, part, chunk_size=5, engine=engine)
        reads.append(y)
    return torch.cat(reads, 2), state


def by_definition(tokens: Tokens, window: int | None) -> torch.Tensor:
    """Every row, head and query on its own: a weighted mean of the values it may see."""
    rows = []
    for b in range(2):
        there = torch.ones(tokens.length, dtype=torch.bool)
        if tokens.mask is not None:
            there = tokens.mask[b]
        for t in range(tokens.length):
            seen = [s for s in range(t + 1) if there[s]]
            seen = seen if window is None else seen[-window:]
            if not there[t]:
                rows.append(torch.zeros(2, 4, dtype=torch.float64))
                continue
            k, v, q = tokens.k[b][:, seen], tokens.v[b][:, seen], tokens.q[b, :, t]
            weight = torch.exp(torch.einsum("hsk,hk->hs", k, q) / 3**0.5)
            rows.append(torch.einsum("hs,hsv->hv", weight / weight.sum(-1, keepdim=True), v))
    return torch.stack(rows).reshape(2, tokens.length, 2, 4).transpose(1, 2)


def gradients(reads, tokens):
    """Of a fixed weighted sum, at k, v and q."""
    weight = torch.randn(
        reads.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return torch.autograd.grad((reads * weight).sum(), (tokens.k, tokens.v, tokens.q))


def close(found, expected, tolerance=1e-9):
    """Elementwise, to nine digits."""
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=1e-11)


@each_engine
def test_equals_sdpa(engine):
    """Reads and gradients of torch's causal attention."""
    tokens = random_tokens()
    reads, _ = attend(SoftmaxMemory(), tokens, engine)
    expected = F.scaled_dot_product_attention(tokens.q, tokens.k, tokens.v, is_causal=True)
    close([reads], [expected])
    close(gradients(reads, tokens), gradients(expected, tokens))


@each_engine
@each_window
def test_sees_the_last_tokens_itself_included(window, engine):
    """Global and windowed, against the sum written out."""
    tokens = random_tokens()
    reads, _ = attend(SoftmaxMemory(window=window), tokens, engine)
    expected = by_definition(tokens, window)
    close([reads], [expected])
    close(gradients(reads, tokens), gradients(expected, tokens))


@each_engine
def test_a_window_of_one_reads_the_own_value(engine):
    """With nothing else in sight the mean is the value itself."""
    tokens = random_tokens()
    reads, _ = attend(SoftmaxMemory(window=1), tokens, engine)
    close([reads], [tokens.v])


@each_engine
@each_window
def test_cut_at_any_token(window, engine):
    """A stream cut anywhere, gradients through the kept pairs included."""
    tokens, memory = random_tokens(), SoftmaxMemory(window=window)
    whole, last = attend(memory, tokens, engine)
    for cuts in [*([cut] for cut in range(1, LENGTH)), range(1, LENGTH)]:
        reads, state = attend(memory, tokens, engine, cuts)
        close([reads], [whole])
        close(flatten(state).values(), flatten(last).values())
    close(gradients(reads, tokens), gradients(whole, tokens))


def test_engines_exchange_states():
    """What one engine kept, the other reads on from."""
    tokens, memory = random_tokens(), SoftmaxMemory(window=6)
    whole, _ = attend(memory, tokens, "chunked")
    for first, second in (ENGINES, ENGINES[::-1]):
        _, state = attend(memory, _part(tokens, 0, 8), first)
        reads, _ = attend(memory, _part(tokens, 8, 13), second, state=state)
        close([reads], [whole[:, :, 8:]])


def _part(tokens: Tokens, start: int, stop: int) -> Tokens:
    return Tokens(**{n: getattr(tokens, n)[:, :, start:stop] for n in ("k", "v", "q")})


@each_engine
@each_window
@pytest.mark.parametrize("poison", [None, float("nan"), float("inf")])
def test_padding_does_not_exist(window, poison, engine):
    """Masked pairs are neither seen nor counted by a window, whatever they hold."""
    mask = torch.tensor([[m == "x" for m in row] for row in ("..xxx.x.xxxx.", "xxxxx....xxx.")])
    tokens, memory = replace(random_tokens(), mask=mask), SoftmaxMemory(window=window)
    there = mask[:, None, :, None]
    expected = by_definition(tokens, window)
    wanted = gradients(torch.where(there, expected, 0.0), tokens)
    for cuts in ([], [3], [6, 7], range(1, LENGTH)):
        given = tokens
        if poison is not None:
            fed = {n: torch.where(there, getattr(tokens, n), poison) for n in ("k", "v", "q")}
            given = replace(tokens, **fed)
        reads, _ = attend(memory, given, engine, cuts)
        reads = torch.where(there, reads, 0.0)
        close([reads], [expected])
        close(gradients(reads, tokens), wanted)


@each_engine
def test_padding_leaves_the_same_state_behind(engine):
    """A row's kept pairs are those of its real tokens; what follows is read as if compacted."""
    mask = torch.tensor([[m == "x" for m in "..xx.xx.xxxx."]] * 2)
    tokens, after = random_tokens(), random_tokens(5, seed=1)
    there = mask[0].nonzero()[:, 0]
    compact = Tokens(**{n: getattr(tokens, n)[:, :, there] for n in ("k", "v", "q")})
    for memory in (SoftmaxMemory(), SoftmaxMemory(window=4)):
        _, padded = attend(memory, replace(tokens, mask=mask), engine)
        _, clean = attend(memory, compact, engine)
        reads, _ = attend(memory, after, engine, state=padded)
        expected, _ = attend(memory, after, engine, state=clean)
        close([reads], [expected])


@each_engine
def test_a_window_bounds_the_state(engine):
    """Global attention keeps every pair, a window no more than it can still see."""

    def kept(memory, length):
        _, state = attend(memory, random_tokens(length), engine)
        return sum(x.numel() for x in state.weights.values())

    assert kept(SoftmaxMemory(), 40) == 2 * kept(SoftmaxMemory(), 20) == 2 * 2 * 40 * 7
    assert kept(SoftmaxMemory(window=6), 40) == kept(SoftmaxMemory(window=6), 20)
    assert kept(SoftmaxMemory(window=6), 40) <= 2 * 2 * 6 * 7


@each_engine
@each_window
def test_causality_and_rows(window, engine):
    """Exchanging later tokens, or another row, leaves a read as it was."""
    tokens, other, memory = random_tokens(), random_tokens(seed=2), SoftmaxMemory(window=window)
    reads, _ = attend(memory, tokens, engine)
    names = ("k", "v", "q")
    for t in (1, 6, 12):
        fed = {
            n: torch.cat([getattr(tokens, n)[:, :, :t], getattr(other, n)[:, :, t:]], 2)
            for n in names
        }
        found, _ = attend(memory, Tokens(**fed), engine)
        close([found[:, :, :t]], [reads[:, :, :t]], 1e-12)
    fed = {n: torch.cat([getattr(tokens, n)[:1], getattr(other, n)[1:]]) for n in names}
    found, _ = attend(memory, Tokens(**fed), engine)
    close([found[:1]], [reads[:1]], 1e-12)


@each_engine
def test_state_is_a_value(engine):
    """Nothing is written in place, a fork is undisturbed, and a saved state goes on."""
    tokens, memory = random_tokens(), SoftmaxMemory(window=6)
    _, state = attend(memory, _part(tokens, 0, 8), engine)
    copies = {n: x.clone() for n, x in flatten(state).items()}
    once, _ = attend(memory, _part(tokens, 8, 13), engine, state=state)
    attend(memory, _part(tokens, 0, 5), engine, state=state)
    rebuilt = unflatten(EMPTY, flatten(state))
    twice, _ = attend(memory, _part(tokens, 8, 13), engine, state=rebuilt)
    assert torch.equal(once, twice)
    for name, x in flatten(state).items():
        assert torch.equal(x, copies[name])


@each_engine
def test_other_rules_are_refused(engine):
    """It solves the L2 problem over all pairs kept, and no other."""
    for rule in (LearningRule(objective=DotProduct()), LearningRule(retention=Delta())):
        with pytest.raises(ValueError, match="rule"):
            scan(SoftmaxMemory(), rule, EMPTY, random_tokens(), chunk_size=5, engine=engine)


@pytest.mark.parametrize("window", [0, -3])
def test_window_must_be_positive(window):
    """A window that shows nothing has no mean."""
    with pytest.raises(ValueError, match="window"):
        SoftmaxMemory(window=window)

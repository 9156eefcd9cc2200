"""Where a memory ends when one pair is repeated for ever, and its eigenvalues (readings R6, R7).

With one fixed unit key k and value v, alpha = 1 and r_t = k M_t what the memory recalls, a linear
memory obeys scalar recurrences, one per objective and retention:

    L2 x Keep             r <- r - eta (r_anchor - v)               settles at v
    DotProduct x Delta    r <- (1 - eta) r + eta v                  settles at v
    L2 x Delta            r <- (1 - eta) r - eta (r_anchor - v)     settles at v / 2: decays twice
"""

from __future__ import annotations

import pytest
import torch

from nestling.engine import scan
from nestling.memory import (
    L2,
    Decay,
    Delta,
    DotProduct,
    Keep,
    LearningRule,
    LinearMemory,
    MemoryState,
    Momentum,
    Tokens,
)

from .problem import ENGINES

KEY = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
VALUE = torch.tensor([1.5, -2.0], dtype=torch.float64)
START = torch.tensor([[0.3, -1.0], [0.7, 0.2], [-0.5, 0.9]], dtype=torch.float64)

each_engine = pytest.mark.parametrize("engine", ENGINES)
each_chunk = pytest.mark.parametrize("chunk_size", [1, 4, 7])
each_delta = pytest.mark.parametrize(
    "retention", [Delta(), Delta(Keep())], ids=["Delta", "Delta(Keep)"]
)


def repeat(rule, engine: str, *, eta: float, chunk_size: int, count: int, value=VALUE, beta=0.0):
    """Write one pair ``count`` times; returns what is recalled after each write, and the matrix."""

    def per_token(x):
        return torch.full((1, 1, count), x, dtype=torch.float64)

    keys = KEY.expand(1, 1, count, 3)
    tokens = Tokens(
        k=keys,
        q=keys,
        v=value.expand(1, 1, count, 2),
        eta=per_token(eta),
        alpha=per_token(1.0),
        beta=per_token(beta),
    )
    state = MemoryState(weights={"w": START[None, None]})
    reads, state = scan(LinearMemory(), rule, state, tokens, chunk_size=chunk_size, engine=engine)
    return reads[0, 0], state.weights["w"][0, 0]


def close(found, expected, tolerance=1e-9):
    """To nine digits."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@each_engine
@each_chunk
@each_delta
def test_l2_with_delta_settles_at_half(retention, chunk_size, engine):
    """The objective's own decay and DGD's add up (R6)."""
    rule = LearningRule(objective=L2(), retention=retention)
    reads, _ = repeat(rule, engine, eta=0.2, chunk_size=chunk_size, count=350)
    close(reads[-10:], (VALUE / 2).expand(10, 2))


@each_engine
@each_chunk
@each_delta
def test_dot_product_with_delta_settles_at_the_value(retention, chunk_size, engine):
    """DGD alone is the delta rule."""
    rule = LearningRule(objective=DotProduct(), retention=retention)
    reads, _ = repeat(rule, engine, eta=0.4, chunk_size=chunk_size, count=100)
    close(reads[-1], VALUE)


@each_engine
@each_chunk
@pytest.mark.parametrize("retention", [Keep(), Decay()])
def test_l2_with_keep_settles_at_the_value(retention, chunk_size, engine):
    """The plain delta rule; several writes from one anchor stay stable below eta C = 2."""
    rule = LearningRule(objective=L2(), retention=retention)
    reads, _ = repeat(rule, engine, eta=0.2, chunk_size=chunk_size, count=150)
    close(reads[-1], VALUE)


@each_engine
def test_momentum_strengthens_the_objective_only(engine):
    """A heavy ball of factor 1/2 doubles the pull of the objective, not DGD's hold against it.

    L2 x Keep stays at v, L2 x Delta moves to 2/3 v, DotProduct x Delta to 2 v.
    """
    settings = {"chunk_size": 1, "count": 150, "beta": 0.5, "eta": 0.2}
    for retention, share in ((Keep(), 1.0), (Delta(), 2 / 3)):
        rule = LearningRule(objective=L2(), retention=retention, momentum=Momentum())
        reads, _ = repeat(rule, engine, **settings)
        close(reads[-1], share * VALUE)
    rule = LearningRule(objective=DotProduct(), retention=Delta(), momentum=Momentum())
    reads, _ = repeat(rule, engine, **settings)
    close(reads[-1], 2 * VALUE)


@each_engine
@each_chunk
def test_dot_product_transient(chunk_size, engine):
    """Every read on the way: v + (1 - eta)^t (r_0 - v), and nothing off the key moves."""
    rule = LearningRule(objective=DotProduct(), retention=Delta())
    reads, matrix = repeat(rule, engine, eta=0.3, chunk_size=chunk_size, count=20)
    left = 0.7 ** torch.arange(1, 21, dtype=torch.float64)
    close(reads, VALUE + left[:, None] * (KEY @ START - VALUE))
    off_key = torch.eye(3, dtype=torch.float64) - torch.outer(KEY, KEY)
    close(off_key @ matrix, off_key @ START)


@each_engine
@each_chunk
def test_l2_transient(chunk_size, engine):
    """Every read on the way where gradients depend on the anchor: the scalar recurrence."""
    for retention, holds in ((Keep(), 0.0), (Delta(), 1.0)):
        rule = LearningRule(objective=L2(), retention=retention)
        reads, _ = repeat(rule, engine, eta=0.15, chunk_size=chunk_size, count=20)
        r = anchor = KEY @ START
        for t in range(20):
            anchor = r if t % chunk_size == 0 else anchor
            r = (1 - holds * 0.15) * r - 0.15 * (anchor - VALUE)
            close(reads[t], r)


@each_engine
@each_chunk
@each_delta
def test_eigenvalue_of_minus_one(retention, chunk_size, engine):
    """eta = 2 with a value of zero flips what is held, token by token, without loss (R7)."""
    rule = LearningRule(objective=DotProduct(), retention=retention)
    zero = torch.zeros_like(VALUE)
    reads, _ = repeat(rule, engine, eta=2.0, chunk_size=chunk_size, count=51, value=zero)
    signs = (-1.0) ** torch.arange(1, 52, dtype=torch.float64)
    close(reads, signs[:, None] * (KEY @ START))


@each_engine
def test_l2_with_delta_reaches_it_at_half_the_step(engine):
    """There the decay doubles: eta = 1 has the eigenvalue -1 already."""
    rule = LearningRule(objective=L2(), retention=Delta())
    zero = torch.zeros_like(VALUE)
    reads, _ = repeat(rule, engine, eta=1.0, chunk_size=1, count=50, value=zero)
    signs = (-1.0) ** torch.arange(1, 51, dtype=torch.float64)
    close(reads, signs[:, None] * (KEY @ START))


@each_engine
@pytest.mark.parametrize("retention", [Keep(), Decay(), Delta()], ids=["Keep", "Decay", "Delta"])
def test_chunk_size_is_invisible_without_an_anchor(retention, engine):
    """The dot product's gradient is -v wherever it is taken: any chunk size, the same numbers."""
    rule = LearningRule(objective=DotProduct(), retention=retention)
    expected, matrix = repeat(rule, engine, eta=0.3, chunk_size=1, count=23)
    for chunk_size in (2, 5, 23, 100):
        reads, found = repeat(rule, engine, eta=0.3, chunk_size=chunk_size, count=23)
        close(reads, expected, 1e-12)
        close(found, matrix, 1e-12)


def test_parity_needs_the_negative_eigenvalue():
    """One bit of state, flipped by every 1 and left by every 0: the sign is the parity."""
    bits = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1], dtype=torch.float64)
    count = len(bits)
    keys = KEY.expand(1, 1, count, 3)
    ones = torch.ones(1, 1, count, dtype=torch.float64)
    tokens = Tokens(
        k=keys, q=keys, v=torch.zeros(1, 1, count, 2, dtype=torch.float64),
        eta=2 * bits.reshape(1, 1, -1), alpha=ones,
    )  # fmt: skip
    state = MemoryState(weights={"w": torch.outer(KEY, torch.ones_like(VALUE))[None, None]})
    rule = LearningRule(objective=DotProduct(), retention=Delta())
    reads, _ = scan(LinearMemory(), rule, state, tokens, chunk_size=4)
    parity = bits.cumsum(0) % 2
    close(reads[0, 0, :, 0], 1 - 2 * parity)

"""A masked token does not exist: it neither writes nor moves a clock, whatever it holds (R14)."""

from __future__ import annotations

from dataclasses import replace

import torch

from . import problem as problems
from .problem import (
    TOKENS,
    assert_same,
    engine_answers,
    engine_state,
    value_and_gradients,
)
from .rules import (
    each_case,
    each_engine,
    each_memory,
    judge,
    padded,
)


@each_case
def test_padding_does_not_exist(memory, rule):
    """Rows with padding anywhere equal the reference, which drops the masked tokens."""
    pairs = [("left", "right"), ("middle", "chunk_edges"), ("almost_all", "all")]
    for first, second in pairs:
        judge(padded(memory, rule, first, second), what=f"{first}/{second}")


@each_engine
@each_memory
def test_padding_equals_compacted(memory, engine):
    """The engine against itself on the tokens that are there, clock included."""
    for kind in ("left", "right", "middle", "chunk_edges"):
        problem = padded(memory, "dgd", kind, kind)
        there = problem.mask[0].nonzero()[:, 0]
        compact = replace(
            problem.map(lambda n, x, there=there: x[:, :, there] if n in TOKENS else x), mask=None
        )
        reads, state = engine_state(problem, engine)
        expected, clean = engine_state(compact, engine)
        torch.testing.assert_close(reads[:, :, there], expected, rtol=1e-10, atol=1e-12)
        assert_same(
            problems.answers(None, state, problem.rule), problems.answers(None, clean, compact.rule)
        )
        assert state.position.tolist() == clean.position.tolist() == [len(there) % 5] * 2


@each_engine
@each_memory
def test_clock_counts_written_tokens(memory, engine):
    """Per row: tokens already in the open chunk."""
    _, state = engine_state(padded(memory, "dgd", "middle", "none"), engine)
    assert state.position.tolist() == [10 % 5, 13 % 5]
    _, state = engine_state(padded(memory, "dgd", "almost_all", "all"), engine)
    assert state.position.tolist() == [1, 0]


@each_engine
@each_case
def test_padded_stream_cut_at_any_token(memory, rule, engine):
    """Rows whose chunks are open at different places go on as if never cut."""
    problem = padded(memory, rule, "middle", "chunk_edges")
    whole = engine_answers(problem, engine)
    for cuts in ([4], [6], [9], range(1, problem.length)):
        assert_same(engine_answers(problem, engine, cuts), whole, what=f"cut {list(cuts)}")
    gradients = value_and_gradients(problem, lambda p: engine_answers(p, engine))[1]
    cut = value_and_gradients(problem, lambda p: engine_answers(p, engine, [4, 9]))[1]
    assert_same(cut, gradients, what="gradient at")


@each_engine
@each_case
def test_poison_in_padding_stays_there(memory, rule, engine):
    """NaN and infinity in every masked entry: same answers, same gradients, none for the poison."""
    problem = padded(memory, rule, "middle", "left")
    for poison in (float("nan"), float("inf")):

        def poisoned(name, x, poison=poison):
            if name not in TOKENS:
                return x
            mask = problem.mask[:, None, :, None] if x.dim() == 4 else problem.mask[:, None]
            return torch.where(mask, x, poison)

        clean = value_and_gradients(problem, lambda p: engine_answers(p, engine))
        found = value_and_gradients(problem.map(poisoned), lambda p: engine_answers(p, engine))
        for mine, right, kind in zip(found, clean, ("value of", "gradient at"), strict=True):
            assert_same(mine, right, what=f"{poison}: {kind}")

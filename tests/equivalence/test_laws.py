"""Laws that no engine may break, whatever the memory and the rule.

A stream may be cut at any token (R15), a token knows nothing of later ones, a row nothing of other
rows, a state is a value, and every input reaches the reads through the writes (R8).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nestling.engine import scan
from nestling.memory import (
    L2,
    Delta,
    LearningRule,
    MemoryState,
    Tokens,
    flatten,
    unflatten,
)

from . import problem as problems
from .problem import (
    TOKENS,
    Problem,
    assert_same,
    engine_answers,
    engine_state,
    memory_named,
    value_and_gradients,
)
from .rules import (
    each_case,
    each_engine,
    each_memory,
    each_rule,
    padded,
    problem_of,
)

# ---------------------------------------------------------------- cutting a stream


@each_engine
@each_case
def test_cut_at_any_token(memory, rule, engine):
    """Every single cut, and one token at a time."""
    problem = problem_of(memory, rule)
    whole = engine_answers(problem, engine)
    for cuts in [*([cut] for cut in range(1, problem.length)), range(1, problem.length)]:
        assert_same(engine_answers(problem, engine, cuts), whole, what=f"cut {list(cuts)}")


@each_engine
@each_case
def test_gradient_crosses_a_cut(memory, rule, engine):
    """At a chunk's edge, and several times inside of chunks."""
    problem = problem_of(memory, rule)
    whole = value_and_gradients(problem, lambda p: engine_answers(p, engine))
    for cuts in ([5], [1, 2, 4, 11]):
        pieces = value_and_gradients(problem, lambda p, cuts=cuts: engine_answers(p, engine, cuts))
        for found, expected in zip(pieces, whole, strict=True):
            assert_same(found, expected, what=f"cut {cuts}")


@each_case
def test_engines_exchange_states(memory, rule):
    """What one engine leaves in the middle of a chunk, the other goes on with."""
    problem = problem_of(memory, rule)
    whole = value_and_gradients(problem, lambda p: engine_answers(p, "recurrent"))
    for engines in (("recurrent", "chunked", "recurrent"), ("chunked", "recurrent", "chunked")):
        mixed = value_and_gradients(
            problem, lambda p, engines=engines: engine_answers(p, engines, [4, 8])
        )
        for found, expected in zip(mixed, whole, strict=True):
            assert_same(found, expected, what=f"{engines}")


@each_engine
@each_rule
def test_state_survives_flatten(rule, engine):
    """A state saved by path and rebuilt, in the middle of a chunk, changes nothing."""
    problem, memory = problem_of("mlp", rule), memory_named("mlp")
    whole = engine_answers(problem, engine)
    settings = {"chunk_size": problem.chunk_size, "engine": engine}
    first, state = scan(
        memory, problem.rule, problem.state(), problem.tokens(slice(0, 8)), **settings
    )
    state = unflatten(problem.state(), flatten(state))
    second, state = scan(memory, problem.rule, state, problem.tokens(slice(8, None)), **settings)
    found = problems.answers(torch.cat([first, second], 2), state, problem.rule)
    assert_same(found, whole)


# ---------------------------------------------------------------- who may know of whom


@each_engine
@each_case
def test_causality(memory, rule, engine):
    """Exchanging the tokens from t on leaves every read before t as it was."""
    problem = problem_of(memory, rule)
    before = engine_answers(problem, engine)["reads"]
    other = problem.map(lambda _, x: x.flip(0, 1) if x.dim() > 2 else x.flip(0))
    for t in (1, 4, 5, 9, 12):
        mixed = problem.where(
            **{
                n: torch.cat([problem.tensors[n][:, :, :t], other.tensors[n][:, :, t:]], 2)
                for n in TOKENS
            }
        )
        after = engine_answers(mixed, engine)["reads"]
        assert (after[:, :, t:] - before[:, :, t:]).abs().max() > 1e-3
        torch.testing.assert_close(after[:, :, :t], before[:, :, :t], rtol=1e-12, atol=1e-13)


@each_engine
@each_case
def test_rows_and_heads_are_independent(memory, rule, engine):
    """Each row and each head alone gives what it gives in company."""
    problem = problem_of(memory, rule, batch=3)
    together = engine_answers(problem, engine)
    for row in range(3):
        alone = engine_answers(problem.map(lambda _, x, row=row: x[row : row + 1]), engine)
        expected = {n: x[row : row + 1] for n, x in together.items()}
        assert_same(alone, expected, rtol=1e-11, what=f"row {row}")
    alone = engine_answers(problem.map(lambda _, x: x[:, 1:]), engine)
    assert_same(alone, {n: x[:, 1:] for n, x in together.items()}, rtol=1e-11, what="head 1")


# ---------------------------------------------------------------- a state is a value


@each_engine
@each_case
def test_nothing_is_written_in_place(memory, rule, engine):
    """Inputs keep their numbers and their version, and so does a state in mid-chunk."""
    problem = padded(memory, rule, "middle", "right")
    settings = {"chunk_size": problem.chunk_size, "engine": engine}
    state, tokens, held = problem.state(), problem.tokens(), memory_named(memory)
    for part in (slice(0, 7), slice(7, 13)):
        given = {**flatten(state), **problem.tokens(part).__dict__}
        given = {n: x for n, x in given.items() if x is not None}
        copies = {n: x.clone() for n, x in given.items()}
        versions = {n: x._version for n, x in given.items()}
        seen = Tokens(**{n: given.get(n) for n in (*TOKENS, "mask")})
        _, after = scan(held, problem.rule, state, seen, **settings)
        for name, copy in copies.items():
            torch.testing.assert_close(given[name], copy, rtol=0, atol=0)
            assert given[name]._version == versions[name], name
        state = after
    assert tokens.length == 13


@each_engine
@each_memory
def test_a_fork_does_not_disturb_its_sibling(memory, engine):
    """Going on twice from one kept state gives the same numbers twice."""
    problem, held = problem_of(memory, "dgd"), memory_named(memory)
    settings = {"chunk_size": problem.chunk_size, "engine": engine}
    _, kept = scan(held, problem.rule, problem.state(), problem.tokens(slice(0, 7)), **settings)
    once, _ = scan(held, problem.rule, kept, problem.tokens(slice(7, 13)), **settings)
    scan(held, problem.rule, kept, problem.tokens(slice(0, 6)), **settings)
    twice, _ = scan(held, problem.rule, kept, problem.tokens(slice(7, 13)), **settings)
    assert torch.equal(once, twice)


@each_engine
@each_memory
def test_every_input_matters(memory, engine):
    """No tensor without gradient: writes are differentiated, not only reads (R8)."""
    problem = problem_of(memory, "dgd", chunk_size=3)
    leaves = problem.map(lambda _, x: x.clone().requires_grad_())
    reads, _ = engine_state(leaves, engine)
    reads[:, :, -1].square().sum().backward()  # the last read alone depends on all there was
    for name, leaf in leaves.tensors.items():
        if name == "q":
            continue
        per_row = leaf.grad.flatten(2).norm(dim=-1)
        assert bool((per_row > 1e-9).all()), f"{name}: {per_row}"
        if name in ("k", "v", "eta", "alpha"):
            per_token = leaf.grad.reshape(2, 2, 13, -1).norm(dim=-1)
            assert bool((per_token > 0).all()), f"{name}: {per_token}"


@pytest.mark.parametrize("memory", ["linear", "mlp"])
@pytest.mark.parametrize("rule", ["dgd", "mapped"])
@each_engine
def test_recomputation_is_invisible(memory, rule, engine):
    """Recomputing one or two chunks at a time in the backward pass changes no gradient."""
    problem = padded(memory, rule, "middle", "none")
    held = memory_named(memory)
    settings = {"chunk_size": 3, "engine": engine}

    def run(p: Problem, recompute: int):
        reads, state = scan(held, p.rule, p.state(), p.tokens(), **settings, recompute=recompute)
        reads = torch.where(p.mask[:, None, :, None], reads, 0.0)
        return problems.answers(reads, state, p.rule)

    expected = value_and_gradients(problem, lambda p: run(p, 0))
    for recompute in (1, 2):
        found = value_and_gradients(problem, lambda p, n=recompute: run(p, n))
        for mine, right in zip(found, expected, strict=True):
            assert_same(mine, right, rtol=1e-11, what=f"recompute={recompute}")


@each_engine
@each_case
def test_reads_at_the_anchor(memory, rule, engine):
    """The literal NL Eq. 90: every query of a chunk reads the weights at the chunk's start."""
    problem, held = problem_of(memory, rule), memory_named(memory)
    settings = {"chunk_size": 5, "engine": engine, "reads": "anchor"}
    whole, state = scan(held, problem.rule, problem.state(), problem.tokens(), **settings)
    exact = engine_answers(problem, engine)
    del exact["reads"]
    assert_same(problems.answers(None, state, problem.rule), exact)
    anchor = problem.state()
    for start in (0, 5, 10):
        part = problem.tokens(slice(start, start + 5))
        W = {n: M[:, :, None] for n, M in anchor.weights.items()}
        _, expected = problems.port.forward(list(W.values()), part.q, residual="w" not in W)
        torch.testing.assert_close(whole[:, :, start : start + 5], expected, rtol=1e-9, atol=1e-12)
        _, anchor = scan(held, problem.rule, anchor, part, chunk_size=5, engine=engine)


def test_default_engine_is_chunked():
    """Leaving ``engine`` out gives the closed form's very bits."""
    problem = problem_of("mlp", "dgd")
    held, tokens = memory_named("mlp"), problem.tokens()
    default, _ = scan(held, problem.rule, problem.state(), tokens, chunk_size=5)
    chunked, _ = scan(held, problem.rule, problem.state(), tokens, chunk_size=5, engine="chunked")
    assert torch.equal(default, chunked)


@each_engine
def test_a_state_may_be_written_by_another_rule(engine):
    """Momentum left by one rule does not leak into a rule without momentum."""
    problem = problem_of("linear", "dgd", length=10)
    _, state = engine_state(problem, engine)
    plain = LearningRule(objective=L2(), retention=Delta())
    settings = {"chunk_size": 5, "engine": engine}
    reads, _ = scan(memory_named("linear"), plain, state, problem.tokens(), **settings)
    fresh = MemoryState(weights=state.weights)
    expected, _ = scan(memory_named("linear"), plain, fresh, problem.tokens(), **settings)
    torch.testing.assert_close(reads, expected, rtol=1e-12, atol=1e-14)


@each_engine
@each_memory
def test_absent_state_is_zero(memory, engine):
    """No momentum given is a momentum of zero, no alpha given keeps everything."""
    problem = problem_of(memory, "dgd")
    zero = problem.map(lambda n, x: torch.zeros_like(x) if n.startswith("momentum") else x)
    zero = zero.where(alpha=torch.ones_like(problem.tensors["alpha"]))
    absent = replace(
        zero,
        tensors={n: x for n, x in zero.tensors.items() if n != "alpha" and "momentum" not in n},
    )
    assert_same(engine_answers(absent, engine), engine_answers(zero, engine), rtol=1e-12)


@each_engine
@each_case
def test_writing_without_reading(memory, rule, engine):
    """No queries: no reads, and the same state."""
    problem = problem_of(memory, rule)
    settings = {"chunk_size": problem.chunk_size, "engine": engine}
    tokens = replace(problem.tokens(), q=None)
    reads, state = scan(memory_named(memory), problem.rule, problem.state(), tokens, **settings)
    assert reads is None
    expected = engine_answers(problem, engine)
    del expected["reads"]
    assert_same(problems.answers(None, state, problem.rule), expected)

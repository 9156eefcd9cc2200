"""Laws that no engine may break, whatever the memory and the rule.

A stream may be cut at any token (R15), a masked token does not exist (R14), a token knows nothing
of later ones, a row nothing of other rows, and numbers stay right where closed forms are fragile:
factors of zero, eigenvalues of -1, float32, bfloat16.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nestling.engine import scan
from nestling.memory import (
    L2,
    Decay,
    DecayToInitial,
    Delta,
    DotProduct,
    Huber,
    Keep,
    LearningRule,
    MemoryState,
    Momentum,
    NewtonSchulz,
    Tokens,
    flatten,
    unflatten,
)

from . import problem as problems
from .problem import (
    ENGINES,
    TOKENS,
    Problem,
    assert_same,
    engine_answers,
    engine_state,
    memory_named,
    random_problem,
    value_and_gradients,
)

RULES = {
    "dgd": LearningRule(objective=L2(), retention=Delta(), momentum=Momentum()),
    "to_initial": LearningRule(objective=Huber(0.4), retention=Delta(DecayToInitial())),
    "decay": LearningRule(objective=DotProduct(), retention=Decay(), momentum=Momentum()),
    "keep": LearningRule(objective=L2(), retention=Keep()),
    "mapped": LearningRule(
        objective=L2(), retention=Delta(), momentum=Momentum(), output_map=NewtonSchulz()
    ),
    "mapped_sum": LearningRule(
        objective=L2(), retention=DecayToInitial(), output_map=NewtonSchulz()
    ),
    "own_values": LearningRule(objective=L2(), retention=Delta(), values="self"),
}
MEMORIES = ("linear", "mlp", "deep_mlp")

each_engine = pytest.mark.parametrize("engine", ENGINES)
each_rule = pytest.mark.parametrize("rule", RULES)
each_memory = pytest.mark.parametrize("memory", MEMORIES)


def problem_of(memory: str, rule: str, **shape) -> Problem:
    """A random problem; self-made values need a square linear memory."""
    square = memory == "linear" and RULES[rule].values == "self"
    return random_problem("square" if square else memory, RULES[rule], **shape)


def judge(problem: Problem, engine: str, *, what: str = "") -> None:
    """Answers and gradients of the engine are those of the autograd reference, and finite."""
    found = value_and_gradients(problem, lambda p: engine_answers(p, engine))
    expected = value_and_gradients(problem, problems.port_answers)
    for mine, right, kind in zip(found, expected, ("value of", "gradient at"), strict=True):
        assert all(bool(x.isfinite().all()) for x in mine.values()), f"{what} {kind}: not finite"
        assert_same(mine, right, what=f"{what} {kind}")


# ---------------------------------------------------------------- cutting a stream


@each_engine
@each_rule
@each_memory
def test_cut_at_any_token(memory, rule, engine):
    """Every single cut, ends included, and one token at a time."""
    problem = problem_of(memory, rule)
    whole = engine_answers(problem, engine)
    for cuts in [*([cut] for cut in range(problem.length + 1)), range(1, problem.length)]:
        assert_same(engine_answers(problem, engine, cuts), whole, what=f"cut {list(cuts)}")


@each_engine
@each_rule
@each_memory
def test_gradient_crosses_a_cut(memory, rule, engine):
    """Inside a chunk, at its edge, twice inside one chunk, across several."""
    problem = problem_of(memory, rule)
    whole = value_and_gradients(problem, lambda p: engine_answers(p, engine))
    for cuts in ([3], [5], [1, 2, 4, 11]):
        pieces = value_and_gradients(
            problem, lambda p, cuts=cuts: engine_answers(p, engine, cuts)
        )
        for found, expected in zip(pieces, whole, strict=True):
            assert_same(found, expected, what=f"cut {cuts}")


@each_rule
@each_memory
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
@each_rule
@each_memory
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
@each_rule
@each_memory
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


# ---------------------------------------------------------------- padding


PADDING = {
    "left": "...xxxxxxxxxx",
    "right": "xxxxxxxxxx...",
    "middle": "xxx..xx.xxxxx",
    "chunk_edges": "xxxx.x.xxxx..",
    "almost_all": "......x......",
    "all": ".............",
    "none": "xxxxxxxxxxxxx",
}


def padded(memory: str, rule: str, first: str, second: str = "none") -> Problem:
    """Two rows with different masks; masked entries hold ordinary numbers."""
    mask = torch.tensor([[mark == "x" for mark in PADDING[kind]] for kind in (first, second)])
    return replace(problem_of(memory, rule), mask=mask)


@each_engine
@each_rule
@each_memory
def test_padding_does_not_exist(memory, rule, engine):
    """Rows with padding anywhere equal the reference, which drops the masked tokens."""
    names = list(PADDING)
    for first, second in zip(names, names[1:] + names[:1], strict=True):
        judge(padded(memory, rule, first, second), engine, what=f"{first}/{second}")


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
@each_rule
@each_memory
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
@each_rule
@each_memory
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


# ---------------------------------------------------------------- fragile numbers


@each_engine
@each_memory
@pytest.mark.parametrize("objective", [L2(), DotProduct()], ids=["L2", "DotProduct"])
def test_reflections(memory, objective, engine):
    """eta = 2 on unit keys: eigenvalue -1, nothing shrinks, the triangular system is worst."""
    for momentum in (None, Momentum()):
        rule = LearningRule(objective=objective, retention=Delta(), momentum=momentum)
        problem = random_problem(memory, rule)
        unit = problem.tensors["k"] / problem.tensors["k"].norm(dim=-1, keepdim=True)
        step = torch.full_like(problem.tensors["eta"], 2.0)
        judge(problem.where(k=unit, eta=step), engine)


EXTREMES = {
    "forget_now_and_then": {"alpha": [0, 1, 0, 0.9, 1, 1, 0, 0, 0.5, 1, 1, 1, 0.7]},
    "forget_always": {"alpha": [0] * 13},
    "keep_always": {"alpha": [1] * 13},
    "stop_now_and_then": {"beta": [0, 1, 0, 0.9, 1, 1, 0, 0, 0.5, 1, 1, 1, 0.7]},
    "stop_always": {"beta": [0] * 13},
    "roll_always": {"beta": [1] * 13},
    "write_now_and_then": {"eta": [0, 0.5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0.3, 0]},
    "write_never": {"eta": [0] * 13},
    "all_at_once": {"alpha": [0, 1] * 6 + [0], "beta": [1, 0] * 6 + [1], "eta": [1, 0, 0] * 4 + [1]},
    "nearly_zero": {"alpha": [1e-300, 1e-30, 1e-3] * 4 + [1e-9], "beta": [1e-200, 1e-9] * 6 + [0]},
}


@each_engine
@pytest.mark.parametrize("extreme", EXTREMES)
@each_memory
def test_factors_at_their_ends(memory, extreme, engine):
    """alpha, beta and eta at 0 and 1: right values and right gradients, where logs are infinite."""
    for rule in ("dgd", "to_initial", "decay", "mapped"):
        problem = problem_of(memory, rule)
        given = {
            name: torch.tensor(value, dtype=torch.float64).expand(2, 2, -1).contiguous()
            for name, value in EXTREMES[extreme].items()
        }
        judge(problem.where(**given), engine, what=rule)


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
@each_rule
@each_memory
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


@each_memory
@each_rule
def test_float32(memory, rule):
    """Both engines in float32 stay near the float64 loop over several chunks."""
    problem = problem_of(memory, rule, length=70, chunk_size=16)
    calm = problem.where(eta=0.2 * problem.tensors["eta"])
    exact = value_and_gradients(calm, lambda p: engine_answers(p, "recurrent"))
    for engine in ENGINES:
        found = value_and_gradients(
            calm.map(lambda _, x: x.float()), lambda p, engine=engine: engine_answers(p, engine)
        )
        for mine, right in zip(found, exact, strict=True):
            for name, value in right.items():
                assert mine[name].dtype == torch.float32
                error = (mine[name] - value).norm() / value.norm().clamp(min=1e-6)
                assert error < 2e-5, f"{engine} {name}: {error:.1e}"


@each_memory
def test_float32_fast_forgetting(memory):
    """A long chunk of strong decay: products of alpha underflow and their ratios overflow."""
    rule = LearningRule(objective=L2(), retention=Delta(), momentum=Momentum())
    problem = random_problem(memory, rule, length=80, chunk_size=80)
    fading = {n: 0.05 * problem.tensors[n] for n in ("alpha", "beta")}
    problem = problem.where(**fading)
    exact = value_and_gradients(problem, lambda p: engine_answers(p, "recurrent"))
    found = value_and_gradients(
        problem.map(lambda _, x: x.float()), lambda p: engine_answers(p, "chunked")
    )
    for mine, right in zip(found, exact, strict=True):
        for name, value in right.items():
            error = (mine[name] - value).norm() / value.norm().clamp(min=1e-6)
            assert error < 2e-5, f"{name}: {error:.1e}"


@each_engine
@pytest.mark.parametrize("tokens_dtype", [torch.float32, torch.bfloat16])
@each_memory
def test_autocast_keeps_the_state_in_float32(memory, tokens_dtype, engine):
    """bfloat16 outside, float32 inside: the state is no more than rounding of the inputs away."""
    problem = problem_of(memory, "dgd", length=20, chunk_size=8)
    rounded = problem.map(lambda n, x: x.bfloat16().float() if n in TOKENS else x.float())
    expected = engine_answers(rounded, "recurrent")
    given = rounded.map(lambda n, x: x.to(tokens_dtype) if n in ("k", "v", "q") else x)
    given = given.map(lambda _, x: x.requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = engine_answers(given, engine)
        total = sum(x.float().square().sum() for x in found.values())
    for name, right in expected.items():
        if name != "reads":
            assert found[name].dtype == torch.float32
        error = (found[name].float() - right).norm() / right.norm()
        assert error < 3e-2, f"{name}: {error:.1e}"
    total.backward()
    assert all(bool(x.grad.isfinite().all()) for x in given.tensors.values())


# ---------------------------------------------------------------- a state is a value


@each_engine
@each_rule
@each_memory
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

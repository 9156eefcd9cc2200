"""Numbers stay right where closed forms are fragile.

Factors of exactly zero and one, eigenvalues of -1, strong decay, float32 and bfloat16.
"""

from __future__ import annotations

import pytest
import torch

from nestling.memory import (
    L2,
    Delta,
    DotProduct,
    LearningRule,
    Momentum,
)

from .problem import (
    ENGINES,
    TOKENS,
    Problem,
    engine_answers,
    random_problem,
    value_and_gradients,
)
from .rules import (
    each_case,
    each_engine,
    each_memory,
    judge,
    problem_of,
)


@each_memory
@pytest.mark.parametrize("objective", [L2(), DotProduct()], ids=["L2", "DotProduct"])
def test_reflections(memory, objective):
    """eta = 2 on unit keys: eigenvalue -1, nothing shrinks, the triangular system is worst."""
    for momentum in (None, Momentum()):
        rule = LearningRule(objective=objective, retention=Delta(), momentum=momentum)
        problem = random_problem(memory, rule)
        unit = problem.tensors["k"] / problem.tensors["k"].norm(dim=-1, keepdim=True)
        step = torch.full_like(problem.tensors["eta"], 2.0)
        judge(problem.where(k=unit, eta=step))


@pytest.mark.parametrize("memory", ["mlp", "deep_mlp"])
@pytest.mark.parametrize("scale", [1e-5, 1e-8])
def test_small_weights(memory, scale):
    """A hidden vector far shorter than 1e-6 is normalised like any other."""
    problem = problem_of(memory, "to_initial")
    inner = [name for name in problem.tensors if name in ("weights.w_in", "weights.w_hidden_1")]
    small = {name: scale * problem.tensors[name] for name in inner}
    judge(problem.where(**small, eta=scale * problem.tensors["eta"]))


EXTREMES = {
    "forget_now_and_then": {"alpha": [0, 1, 0, 0.9, 1, 1, 0, 0, 0.5, 1, 1, 1, 0.7]},
    "forget_always": {"alpha": [0] * 13},
    "keep_always": {"alpha": [1] * 13},
    "stop_now_and_then": {"beta": [0, 1, 0, 0.9, 1, 1, 0, 0, 0.5, 1, 1, 1, 0.7]},
    "stop_always": {"beta": [0] * 13},
    "roll_always": {"beta": [1] * 13},
    "write_now_and_then": {"eta": [0, 0.5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0.3, 0]},
    "write_never": {"eta": [0] * 13},
    "all_at_once": {
        "alpha": [0, 1] * 6 + [0],
        "beta": [1, 0] * 6 + [1],
        "eta": [1, 0, 0, 1, 0.5] * 2 + [1, 0, 0],
    },
    "nearly_zero": {"alpha": [1e-300, 1e-30, 1e-3] * 4 + [1e-9], "beta": [1e-200, 1e-9] * 6 + [0]},
}


@pytest.mark.parametrize("chunk_size", [31, 64])
@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_long_chunks(memory, chunk_size):
    """A triangular system of many blocks, its rows nearly parallel: keys that repeat, eta = 2."""
    rule = LearningRule(objective=DotProduct(), retention=Delta(), momentum=Momentum())
    problem = random_problem(memory, rule, length=70, chunk_size=chunk_size)
    period = problem.tensors["k"][:, :, :2] + 0.1 * problem.tensors["k"][:, :, 2:4]
    keys = period.repeat(1, 1, 35, 1)
    keys = keys / keys.norm(dim=-1, keepdim=True)
    step = torch.full_like(problem.tensors["eta"], 2.0)
    hard = problem.where(k=keys, eta=step, alpha=torch.ones_like(step))
    judge(hard)
    loop, closed = worst_float32_errors(hard)
    assert loop < 1e-4
    assert closed < 5e-4


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_factors_at_their_ends(memory, extreme):
    """alpha, beta and eta at 0 and 1: right values and right gradients, where logs are infinite."""
    rules = ["dgd", "to_initial", "mapped"]
    if extreme == "nearly_zero":
        rules.pop()  # an MLP of weights near zero divides by the norm of its hidden vector
    for rule in rules:
        problem = problem_of(memory, rule)
        given = {
            name: torch.tensor(value, dtype=torch.float64).expand(2, 2, -1).contiguous()
            for name, value in EXTREMES[extreme].items()
        }
        judge(problem.where(**given), what=rule)


def worst_float32_errors(problem: Problem) -> list[float]:
    """Per engine the largest relative error, in norm, over all answers and gradients in float32."""
    exact = value_and_gradients(problem, lambda p: engine_answers(p, "recurrent"))
    single = problem.map(lambda _, x: x.float())
    worst = []
    for engine in ENGINES:
        found = value_and_gradients(single, lambda p, engine=engine: engine_answers(p, engine))
        errors = []
        for mine, right in zip(found, exact, strict=True):
            assert set(mine) == set(right)
            for name, value in right.items():
                assert mine[name].dtype == torch.float32
                errors.append(float((mine[name] - value).norm() / value.norm().clamp(min=1e-6)))
        worst.append(max(errors))
    return worst


@each_case
def test_float32(memory, rule):
    """Over several chunks the closed form rounds no worse than the token loop does."""
    problem = problem_of(memory, rule, length=50, chunk_size=16)
    calm = problem.where(eta=0.1 * problem.tensors["eta"])
    loop, closed = worst_float32_errors(calm)
    assert loop < 1e-2  # the deep memory's gradients over 50 tokens are ill-conditioned
    assert closed < 10 * loop + 1e-5


@each_memory
def test_float32_fast_forgetting(memory):
    """A long chunk of strong decay: products of alpha underflow and their ratios overflow."""
    rule = LearningRule(objective=L2(), retention=Delta(), momentum=Momentum())
    problem = random_problem(memory, rule, length=80, chunk_size=80)
    fading = {n: 0.05 * problem.tensors[n] for n in ("alpha", "beta")}
    loop, closed = worst_float32_errors(problem.where(**fading))
    assert loop < 1e-4
    assert closed < 3 * loop + 1e-6


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

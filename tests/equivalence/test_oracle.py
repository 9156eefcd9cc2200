"""Every memory x objective x retention x momentum x engine against the references.

The NumPy loop judges reads and states, the autograd port judges every gradient, and the port is
itself judged by the loop: its forward, and its gradients by the loop's complex step.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from nestling.memory import (
    L2,
    Decay,
    DecayToInitial,
    Delta,
    DotProduct,
    Huber,
    Keep,
    LearningRule,
    Lp,
    Momentum,
    NewtonSchulz,
)

from . import problem as problems
from .problem import ENGINES, Problem, assert_same, random_problem

MEMORIES = ("linear", "mlp", "deep_mlp")
OBJECTIVES = (DotProduct(), L2(), Lp(3.0), Huber(0.4))
DECAYS = (Keep(), Decay(), DecayToInitial())
RETENTIONS = (*DECAYS, *(Delta(decay) for decay in DECAYS))
FIRST_ONLY = tuple(Delta(decay, matrices="first") for decay in DECAYS)
MOMENTA = (None, Momentum())
RAGGED = {"length": 13, "chunk_size": 5}
SHORT = {"length": 7, "chunk_size": 16}
TOKENWISE = {"length": 13, "chunk_size": 1}
EXACT = {"length": 12, "chunk_size": 4}


def every_case() -> dict[str, Problem]:
    """The whole product at one shape, and covering subsets for everything beside it."""
    cases: dict[str, Problem] = {}

    def add(memory: str, objective, retention, momentum, shape=RAGGED, **more) -> None:
        explicit, batch = more.pop("explicit_initial", False), more.pop("batch", 2)
        rule = LearningRule(objective=objective, retention=retention, momentum=momentum, **more)
        where = f"T{shape['length']}C{shape['chunk_size']}{'-initial' if explicit else ''}"
        first = "-first" if getattr(retention, "matrices", "") == "first" else ""
        slow = f"-hidden{rule.hidden_step}" if rule.hidden_step != 1 else ""
        name = f"{memory}-{rule.name.replace(' ', '')}{first}{slow}-{where}"
        assert name not in cases, name
        cases[name] = random_problem(memory, rule, **shape, batch=batch, explicit_initial=explicit)

    for memory, objective, retention, momentum in product(
        MEMORIES, OBJECTIVES, RETENTIONS, MOMENTA
    ):
        add(memory, objective, retention, momentum, batch=2 if objective == L2() else 1)
    for memory, retention, momentum in product(MEMORIES[1:], FIRST_ONLY, MOMENTA):
        add(memory, L2(), retention, momentum)
    shapes = (SHORT, TOKENWISE, EXACT)
    for n, (memory, retention, momentum) in enumerate(product(MEMORIES, RETENTIONS, MOMENTA)):
        add(memory, L2(), retention, momentum, shapes[n % 3])
        add(memory, DotProduct(), retention, momentum, shapes[(n + 1) % 3])
    for memory, retention, momentum in product(
        MEMORIES, (DecayToInitial(), Delta(DecayToInitial())), MOMENTA
    ):
        add(memory, L2(), retention, momentum, explicit_initial=True)
    for memory, objective, momentum in product(("square", "mlp", "deep_mlp"), OBJECTIVES, MOMENTA):
        add(memory, objective, Delta(), momentum, values="self")
        add(memory, objective, Delta(DecayToInitial()), momentum, values="self_unit")
    for memory, retention, momentum in product(MEMORIES[1:], RETENTIONS[1:], MOMENTA):
        add(memory, L2(), retention, momentum, hidden_step=0.3)
        add(memory, DotProduct(), retention, momentum, SHORT, hidden_step=0.0)
        add(memory, L2(), retention, momentum, EXACT, hidden_step=0.3, output_map=NewtonSchulz(2))
    mapped = (Keep(), Delta(), Delta(DecayToInitial()))
    for memory, retention, momentum in product(MEMORIES, mapped, MOMENTA):
        add(memory, L2(), retention, momentum, output_map=NewtonSchulz())
    for memory, shape, momentum in product(MEMORIES, shapes, MOMENTA):
        add(memory, DotProduct(), Decay(), momentum, shape, output_map=NewtonSchulz(3))
    return cases


CASES = every_case()


@cache
def judged(name: str):
    """The answers and gradients that an engine must return."""
    answers, gradients = problems.value_and_gradients(CASES[name], problems.port_answers)
    return problems.oracle_answers(CASES[name]), answers, gradients


@pytest.mark.parametrize("name", CASES)
def test_references_agree(name):
    """Loop and port share no formula for a gradient; the complex step ties the outer ones."""
    problem = CASES[name]
    loop, port, gradients = judged(name)
    assert_same(port, loop, rtol=1e-11)

    generator = torch.Generator().manual_seed(3)
    direction = problem.map(
        lambda _, x: torch.randn(x.shape, generator=generator, dtype=torch.float64)
    )
    moved, weights = problems.oracle_derivative(problem, direction), problems.cotangents(problem)
    by_loop = sum((moved[n] * weights[n]).sum() for n in moved)
    parts = [(gradients[n] * direction.tensors[n]).sum() for n in gradients]
    size = sum(part.abs() for part in parts)
    assert abs(by_loop - sum(parts)) < 1e-11 * size


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_engine_is_the_definition(name, engine):
    """Reads, final weights, final momentum, and the gradient of everything."""
    loop, _, gradients = judged(name)
    found, found_gradients = problems.value_and_gradients(
        CASES[name], lambda problem: problems.engine_answers(problem, engine)
    )
    assert_same(found, loop, what="value of")
    assert_same(found_gradients, gradients, what="gradient at")


@pytest.mark.parametrize("memory", ["square", *MEMORIES[1:]])
def test_every_ingredient_shows(memory):
    """Exchanging any one part of a rule moves the reads far more than the tolerance.

    Otherwise agreement would say nothing about that part.
    """
    full = LearningRule(objective=L2(), retention=Delta(DecayToInitial()), momentum=Momentum())
    problem = random_problem(memory, full, **RAGGED, explicit_initial=True)

    def reads(chunk_size: int = RAGGED["chunk_size"], **parts) -> torch.Tensor:
        changed = replace(problem, rule=replace(full, **parts), chunk_size=chunk_size)
        return problems.oracle_answers(changed)["reads"]

    others = [objective for objective in OBJECTIVES if objective != L2()]
    changes: list[dict] = [{"objective": objective} for objective in others]
    changes += [{"retention": retention} for retention in RETENTIONS[:-1]]
    changes += [{"retention": Delta(DecayToInitial(), matrices="first")}] * (memory != "square")
    changes += [{"momentum": None}, {"output_map": NewtonSchulz()}]
    changes += [{"values": "self"}, {"values": "self_unit"}]
    changes += [{"hidden_step": 0.5}] * (memory != "square")
    changes += [{"chunk_size": 1}, {"chunk_size": 4}, {"chunk_size": 13}]
    plain = reads()
    for change in changes:
        moved = (reads(**change) - plain).abs().max() / plain.abs().max()
        assert moved > 1e-2, f"{change}: {moved:.1e}"

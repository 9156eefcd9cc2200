"""Toy problems: their definitions by hand and by autograd, their rows, and the page of them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nestling.optim import GeneralizedMomentum, delta_momentum
from nestling.reproduce.driver import Request, reproduce
from nestling.reproduce.measured import read
from nestling.reproduce.optimizers import landscapes, memory, orthogonal_tasks
from nestling.reproduce.optimizers.toys import MOMENTUM, Family, families, plain, walk
from nestling.reproduce.page import insert

ROOT = Path(__file__).parents[2]
MODULES = (landscapes, orthogonal_tasks, memory)


def numbers(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_landscape_by_hand_and_its_slope_by_autograd():
    x = torch.tensor([[-3.5, 2.0], [0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    k, a, w = numbers(5.0, 0.5, 10.0)
    heights = landscapes.psi(x, k, a, w)
    assert heights[0].item() == pytest.approx(
        3.5**2 + 5 * (-3.5 - 2.0 + 0.5 * math.sin(-35.0)) ** 2
    )
    [slope] = torch.autograd.grad(heights.sum(), x)
    assert torch.allclose(landscapes.slope(x.detach(), k, a, w), slope)


def test_many_runs_at_once_are_those_of_the_optimizer():
    rule, steps = delta_momentum(delta=0.3), 20
    k, a, w = numbers(2.0, 0.5, 3.0)
    start, lr = torch.tensor([[[-3.5, 2.0]]] * 2, dtype=torch.float64), numbers(1e-3, 3e-2)
    runs = [*walk(rule, start, lambda t, x: landscapes.slope(x, k, a, w), torch.stack(lr), steps)]
    for index, step_size in enumerate(lr):
        x = torch.nn.Parameter(torch.tensor([-3.5, 2.0], dtype=torch.float64))
        optimizer = GeneralizedMomentum([x], rule, lr=step_size.item())
        for _ in range(steps):
            optimizer.zero_grad()
            landscapes.psi(x, k, a, w).backward()
            optimizer.step()
        assert torch.allclose(runs[-1][index, 0], x.detach(), rtol=1e-12)


def test_arrivals_count_steps():
    # Along th alone, with a = 0, gradient descent with lr halves the way if 1 - 2 k lr = 1/2.
    grid = landscapes.Grid(k=(1.0,), a=(0.0,), w=(1.0,), step_sizes=(0.05, 2.0), most=400)
    family = Family(name="gradient descent", rules={0.0: plain(0.0)})
    stays, first = landscapes.arrivals(family, grid, lambda text: None)
    x, steps = np.array([-3.5, 2.0]), 0
    hessian = np.array([[4.0, -2.0], [-2.0, 2.0]])
    while x @ hessian @ x / 2 >= 1e-6:
        x, steps = x - 0.05 * hessian @ x, steps + 1
    assert stays[0, 0].tolist() == first[0, 0].tolist() == [steps, math.inf]


def test_to_arrive_is_to_stay():
    # Momentum flies through the goal and out of it again.
    grid = landscapes.Grid(k=(1.0,), a=(0.5,), w=(3.0,), most=1000)
    stays, first = landscapes.arrivals(families()[MOMENTUM], grid, lambda text: None)
    assert (first <= stays).all()
    assert ((first < stays) & stays.isfinite()).any()
    # What counts does not depend on how long one looks.
    longer = dataclasses.replace(grid, most=1500)
    again, _ = landscapes.arrivals(families()[MOMENTUM], longer, lambda text: None)
    assert torch.equal(again[stays.isfinite()], stays[stays.isfinite()])


def test_gradient_of_a_task_by_autograd():
    one = orthogonal_tasks.stream(3, cosine=0.3, steps=2)
    W = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    s = one.scales[4, 1][:, None]
    x, y = s * one.directions[4], s * one.targets[4]
    [gradient] = torch.autograd.grad((x @ W.mT - y).square().sum(dim=-1).mean(), W)
    assert torch.allclose(one.gradient(4, 1, W.detach()), gradient)
    expected = (W @ one.directions[4] - one.targets[4]).square().sum()
    assert torch.allclose(one.losses(W)[4], expected)


@pytest.mark.parametrize("cosine", [0.0, 0.9])
def test_directions(cosine):
    one = orthogonal_tasks.stream(1, cosine=cosine, steps=1)
    places = torch.arange(8)
    expected = cosine ** (places[:, None] - places).abs()
    overlap = one.directions @ one.directions.mT
    assert torch.allclose(overlap, expected.to(overlap.dtype), atol=1e-12)
    # All tasks can be solved at once.
    solution = torch.linalg.solve(one.directions, one.targets).mT
    assert one.losses(solution).max() < 1e-18


def test_gradient_descent_forgets_nothing_on_orthogonal_tasks_and_momentum_does():
    one = orthogonal_tasks.stream(0, cosine=0.0, steps=5)
    lr = torch.tensor([0.05], dtype=torch.float64)
    forgotten = {}
    for keep in (0.0, 0.9):
        R = one.losses(orthogonal_tasks.by_rule(plain(keep), one, lr, 5))[:, 0]
        forgotten[keep] = (R[-1] - R.diagonal())[:-1]
    assert forgotten[0.0].abs().max() < 1e-12
    assert forgotten[0.9].mean() > 1


def test_dgd_on_a_layer_solves_its_own_problem():
    """One task, many steps: DGD decays toward zero as well, so it ends at two thirds."""
    one = orthogonal_tasks.stream(0, cosine=0.0, steps=40)
    W = orthogonal_tasks.by_layer(one, torch.tensor([0.3], dtype=torch.float64), 40)[0, 0]
    assert torch.allclose(W @ one.directions[0], one.targets[0] * 2 / 3, atol=1e-9)


@pytest.mark.parametrize("kept", memory.memories("smoke"), ids=lambda kept: kept.name)
def test_mass_is_that_of_the_closed_form(kept):
    shares = memory.mass(kept)
    [keep] = {one.keep for one in kept.rule.memories if kept.entry.startswith(one.name)}
    ages = np.arange(len(shares)) - kept.later  # gradients since the last write
    expected = np.where(ages >= 0, (1 - keep) / kept.period * keep ** (ages // kept.period), 0.0)
    assert np.allclose(shares, expected, atol=1e-8)


def test_what_the_paper_says_of_momentum():
    """6 and 43 are what is between whole numbers, rounded: 6.58 and 43.7."""
    [row] = [kept for kept in memory.memories("smoke") if kept.name == "momentum 0.9"]
    carried = memory.mass(row).cumsum()
    assert carried[5] < 0.5 < carried[6]
    assert carried[42] < 0.99 < carried[43]
    assert carried[5] == pytest.approx(1 - 0.9**6, abs=1e-8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    tasks = tuple(module.TASK for module in MODULES)
    request = Request(target="optimizers", data=folder, rows=folder / "rows", work=folder / "work",
                      page=folder / "page.md", size="smoke", tasks=tasks)  # fmt: skip
    reproduce(request, lambda text: None)
    return request


def test_rows_and_page(made):
    rows = read(made.rows / "optimizers-smoke.jsonl")
    page = made.page.read_text()
    for module in MODULES:
        own = [row for row in rows if row["task"] == module.TASK]
        expected = module.measurements(made.data, "smoke", [])
        assert len(own) == len(expected)
        [place] = module.PLACES
        assert place.table(own) in page
    for name in ("landscapes-paths", "landscapes-ratio", "orthogonal-tasks", "memory-mass"):
        assert (made.page.parent / f"{name}.png").stat().st_size > 10_000


def test_what_is_there_is_not_made_again(made):
    said = []
    reproduce(made, said.append)
    assert not [text for text in said if "rows to make" in text]


def test_landscape_table_by_hand():
    def row(name, *steps):
        found = [
            {"k": k, "a": 0.5, "w": 3, "steps": s, "first": s, "step size": 0.1, "number": 0.9,
             "converge": 0.25}
            for k, s in zip((1, 2, 5), steps, strict=True)
        ]  # fmt: skip
        return {"key": {"optimizer": name, "most steps": 2000}, "result": {"landscapes": found}}

    text = landscapes.table([row(MOMENTUM, 100, 200, None), row("other", 50, None, None)])
    lines = text.splitlines()
    assert lines[2:4] == [
        f"| {MOMENTUM} | 2 of 3 | 1 | 1.00 | 0 | 0 | 25 % |",
        # Half of the steps in one, and never there in the other: no median.
        "| other | 1 of 3 | 1 | - | 1 | 1 | 25 % |",
    ]
    assert lines[-3:] == [
        "| 1 | 0.5 | 3 | 100 | **50** |", "| 2 | 0.5 | 3 | **200** | - |",
        "| 5 | 0.5 | 3 | - | - |",
    ]  # fmt: skip


def test_page_in_the_repository_is_that_of_its_rows():
    page = text = (ROOT / "docs" / "optimizers.md").read_text()
    rows = read(ROOT / "benchmarks" / "results" / "optimizers.jsonl")
    for module in MODULES:
        [place] = module.PLACES
        text = insert(text, place.task, place.table([r for r in rows if r["task"] == place.task]))
    assert text == page

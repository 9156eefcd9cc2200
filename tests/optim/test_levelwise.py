from __future__ import annotations

import json

import pytest
import torch
from torch.nn import Parameter

from nestling.levels import Level
from nestling.optim import LevelwiseOptimizer, NonFiniteError, adamw


def named(seed: int, shape=(3, 4)) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {f"w{seed}": Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))}


def set_grad(parameters: dict[str, Parameter], step: int) -> None:
    """Adds a gradient, as backpropagation does."""
    for index, parameter in enumerate(parameters.values()):
        generator = torch.Generator().manual_seed(1000 * index + step)
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def test_one_level_is_the_plain_optimizer_bit_for_bit():
    ours, plain = named(0), named(0)
    levelwise = LevelwiseOptimizer([(Level(1), ours)], adamw, clip=1.0)
    reference = adamw(plain)
    for step in range(5):
        for parameters in (ours, plain):
            set_grad(parameters, step)
        levelwise.step(tokens=7)
        torch.nn.utils.clip_grad_norm_(plain.values(), 1.0)
        reference.step()
        reference.zero_grad()
    # clip_grad_norm_ adds 1e-6 to the norm before dividing
    torch.testing.assert_close(ours["w0"], plain["w0"], rtol=1e-5, atol=1e-7)
    unclipped, again = named(0), named(0)
    levelwise = LevelwiseOptimizer([(Level(1), unclipped)], adamw, clip=None)
    reference = adamw(again)
    for step in range(5):
        for parameters in (unclipped, again):
            set_grad(parameters, step)
        levelwise.step(tokens=7)
        reference.step()
        reference.zero_grad()
    assert torch.equal(unclipped["w0"], again["w0"])


def test_slow_level_is_held_and_then_moved_by_the_mean_gradient():
    fast, slow, twin = named(0), named(1), named(1)
    levelwise = LevelwiseOptimizer([(Level(30), slow), (Level(1), fast)], adamw, clip=None)
    reference = adamw(twin)
    start = slow["w1"].detach().clone()
    moved_at = []
    for step in range(9):
        set_grad(fast, step)
        set_grad(slow, step)
        set_grad(twin, step)
        moved = levelwise.step(tokens=10)
        if Level(30) in moved.levels:
            moved_at.append(step)
            twin["w1"].grad /= 3
            reference.step()
            reference.zero_grad()
        if step < 2:
            assert torch.equal(slow["w1"], start)
        torch.testing.assert_close(slow["w1"], twin["w1"], rtol=1e-13, atol=0)
    assert moved_at == [2, 5, 8]
    assert slow["w1"].grad is None


def test_clock_counts_tokens_and_moves_at_multiples_of_the_period():
    slow = named(1)
    levelwise = LevelwiseOptimizer([(Level(25), slow)], adamw, clip=None)
    moved = []
    for step in range(10):
        set_grad(slow, step)
        moved.append(bool(levelwise.step(tokens=10).levels))
    # after 10, 20, ... 100 tokens; 25, 50, 75, 100 are passed at 30, 50, 80, 100
    assert moved == [False, False, True, False, True, False, False, True, False, True]
    assert levelwise.tokens == 100


def test_clip_is_over_the_levels_that_move_together():
    fast, slow = named(0, (4,)), named(1, (4,))
    before = {name: p.detach().clone() for name, p in {**fast, **slow}.items()}
    levelwise = LevelwiseOptimizer(
        [(Level(1), fast), (Level(2), slow)],
        lambda parameters: torch.optim.SGD(parameters.values(), lr=1.0),
        clip=1.0,
    )
    fast["w0"].grad = torch.tensor([3.0, 0, 0, 0]).double()
    slow["w1"].grad = torch.tensor([0, 100.0, 0, 0]).double()
    moved = levelwise.step(tokens=1)
    assert moved.levels == (Level(1),)
    assert moved.norm == 3.0
    assert moved.norms == {Level(1): 3.0, Level(2): 100.0}
    assert (before["w0"] - fast["w0"]).tolist() == [1.0, 0, 0, 0]
    fast["w0"].grad = torch.tensor([3.0, 0, 0, 0]).double()
    slow["w1"].grad += torch.tensor([0, -92.0, 0, 0]).double()
    moved = levelwise.step(tokens=1)
    # the slow level's mean is 8 / 2; |(3, 4)| = 5
    assert moved.norm == 5.0
    torch.testing.assert_close(
        (before["w1"] - slow["w1"]).detach(), torch.tensor([0, 0.8, 0, 0]).double()
    )
    torch.testing.assert_close(
        (before["w0"] - fast["w0"]).detach(), torch.tensor([1.6, 0, 0, 0]).double()
    )


def test_level_without_period_is_never_moved():
    still = named(0)
    start = still["w0"].detach().clone()
    levelwise = LevelwiseOptimizer([(Level(None), still)], adamw)
    for step in range(3):
        set_grad(still, step)
        assert levelwise.step(tokens=1_000_000).levels == ()
    assert torch.equal(still["w0"], start)
    assert still["w0"].grad is None


def build() -> tuple[dict[str, Parameter], dict[str, Parameter], LevelwiseOptimizer]:
    fast, slow = {**named(0), "bias": Parameter(torch.zeros(3).double())}, named(1)
    return fast, slow, LevelwiseOptimizer([(Level(1), fast), (Level(4), slow)], adamw)


def run(parts, steps) -> None:
    fast, slow, levelwise = parts
    for step in steps:
        set_grad(fast, step)
        set_grad(slow, step)
        levelwise.scale_lr(1 / (1 + step))
        levelwise.step(tokens=1)


def test_resume_in_the_middle_of_a_period_is_bit_exact():
    whole = build()
    run(whole, range(11))
    first = build()
    run(first, range(6))
    tensors, plain = {}, []

    def strip(value, path=""):
        """What a checkpoint does: tensors to one place, the rest through JSON."""
        if isinstance(value, torch.Tensor):
            tensors[path] = value.clone()
            return {"tensor": path}
        if isinstance(value, dict):
            return {key: strip(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [strip(item, f"{path}.{i}") for i, item in enumerate(value)]
        return value

    def restore(value):
        if isinstance(value, dict):
            if set(value) == {"tensor"}:
                return tensors[value["tensor"]]
            return {key: restore(item) for key, item in value.items()}
        return [restore(item) for item in value] if isinstance(value, list) else value

    plain = json.loads(json.dumps(strip(first[2].state_dict())))
    assert any("gradients.w1" in path for path in tensors)
    second = build()
    for mine, theirs in zip(second[:2], first[:2], strict=True):
        for name in mine:
            mine[name].data.copy_(theirs[name].data)
    second[2].load_state_dict(restore(plain))
    assert second[2].tokens == 6
    run(second, range(6, 11))
    for mine, theirs in zip(second[:2], whole[:2], strict=True):
        for name in mine:
            assert torch.equal(mine[name], theirs[name])


def test_state_of_another_model_is_refused():
    state = build()[2].state_dict()
    other = LevelwiseOptimizer([(Level(1), named(0))], adamw)
    with pytest.raises(ValueError, match=r"levels of periods \[1\], got \[1, 4\]"):
        other.load_state_dict(state)
    parts = build()
    run(parts, range(1))
    state = parts[2].state_dict()
    other = LevelwiseOptimizer([(Level(1), named(0)), (Level(4), named(1))], adamw)
    with pytest.raises(ValueError, match="level of period 1: the model has no parameter 'bias'"):
        other.load_state_dict(state)
    fast = {**named(0, (4, 4)), "bias": Parameter(torch.zeros(3).double())}
    other = LevelwiseOptimizer([(Level(1), fast), (Level(4), named(1))], adamw)
    with pytest.raises(
        ValueError, match=r"exp_avg of w0 has shape \(3, 4\), the parameter \(4, 4\)"
    ):
        other.load_state_dict(state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradient_moves_nothing(bad):
    fast, slow, levelwise = build()
    run((fast, slow, levelwise), range(2))
    before = {name: p.detach().clone() for name, p in {**fast, **slow}.items()}
    set_grad(fast, 3)
    set_grad(slow, 3)
    slow["w1"].grad[1, 1] = bad
    with pytest.raises(NonFiniteError, match=r"gradient of w1 \(1 in all\) is not finite"):
        levelwise.step(tokens=1)
    assert levelwise.tokens == 2
    assert all(torch.equal(p, before[name]) for name, p in {**fast, **slow}.items())


def test_minimises_a_quadratic_at_every_level():
    target = torch.tensor([1.0, -2.0, 3.0])
    fast, slow = (Parameter(torch.zeros(3)) for _ in range(2))
    levelwise = LevelwiseOptimizer(
        [(Level(1), {"fast": fast}), (Level(16), {"slow": slow})],
        lambda parameters: adamw(parameters, lr=0.1, weight_decay=0.0),
    )
    for step in range(800):
        ((fast - target).square().sum() + (slow - target).square().sum()).backward()
        levelwise.scale_lr(1 - step / 800)
        levelwise.step(tokens=4)
    torch.testing.assert_close(fast.detach(), target, rtol=0, atol=1e-3)
    torch.testing.assert_close(slow.detach(), target, rtol=0, atol=1e-3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"clip: expected a positive number or None, got 0\.0"):
        LevelwiseOptimizer([(Level(1), named(0))], adamw, clip=0.0)
    with pytest.raises(ValueError, match="parameter w0 comes twice"):
        LevelwiseOptimizer([(Level(1), named(0)), (Level(2), named(0))], adamw)
    with pytest.raises(ValueError, match=r"level Level\(period=1\) comes twice"):
        LevelwiseOptimizer([(Level(1), named(0)), (Level(1), named(1))], adamw)
    with pytest.raises(ValueError, match="tokens: expected a whole number >= 1, got 0"):
        build()[2].step(tokens=0)

"""States: saved in the middle of a period and gone on with to the last bit; numbers of few bits."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from optimizer_cases import CASES, MASTER, PLAIN, backward, batch, drawn, same, small, train
from torch.nn import Parameter

from nestling.levels import Level
from nestling.memory import LinearMemory, MLPMemory
from nestling.optim import DGD, DMGD, M3, LevelwiseOptimizer, NonFiniteError, adamw
from nestling.storage import Checkpoint, read, write

every = pytest.mark.parametrize("name", CASES)
plain = pytest.mark.parametrize("name", PLAIN)


def through_a_file(state):
    """What ``torch.save`` writes, read by what runs no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("how", [through_a_file, copy.deepcopy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every
def test_going_on_in_the_middle_of_a_period(name, dtype, how):
    """Steps 8 to 13 of a period of 5 are those of a run that was never cut."""
    case, whole, first, second = CASES[name], small(dtype), small(dtype), small(dtype, seed=1)
    words = {"lr": 0.02, "weight_decay": 0.1}
    train(whole, case.make(whole, **words), range(13))
    cut = case.make(first, **words)
    train(first, cut, range(7))
    state = how(cut.state_dict())
    second.load_state_dict(first.state_dict())
    resumed = case.make(second, **words)
    resumed.load_state_dict(state)
    dtypes = {v.dtype for held in resumed.state.values() for v in held.values()}
    assert dtypes == {torch.float32}
    train(second, resumed, range(7, 13))
    assert same(second, whole)
    assert not same(second, first)


@pytest.mark.parametrize("name", ["m3", "dmgd", "adam"])
def test_master_weights_are_part_of_the_state(name):
    whole, first, second = (small(torch.bfloat16) for _ in range(3))
    words = {"lr": 1e-3, "handling": MASTER}
    train(whole, CASES[name].make(whole, **words), range(13))
    cut = CASES[name].make(first, **words)
    train(first, cut, range(7))
    second.load_state_dict(first.state_dict())
    resumed = CASES[name].make(second, **words)
    resumed.load_state_dict(through_a_file(cut.state_dict()))
    train(second, resumed, range(7, 13))
    assert same(second, whole)


@every
def test_going_on_between_two_halves_of_a_batch(name):
    """What waits in a layer's listener, and in the gradients, is not lost."""
    case, whole, first, second = CASES[name], small(), small(), small()

    def half(model, optimizer, step):
        if step % 2 == 0:
            optimizer.zero_grad()
        backward(model, step)
        if step % 2:
            optimizer.step()

    made = [case.make(model, lr=0.02) for model in (whole, first)]
    for step in range(8):
        half(whole, made[0], step)
    for step in range(5):
        half(first, made[1], step)
    resumed = case.make(second, lr=0.02)
    second.load_state_dict(first.state_dict())
    for ours, other in zip(second.parameters(), first.parameters(), strict=True):
        ours.grad = other.grad.clone()
    resumed.load_state_dict(through_a_file(made[1].state_dict()))
    for step in range(5, 8):
        half(second, resumed, step)
    assert same(second, whole)


@every
def test_the_state_of_another_rule_is_refused(name):
    case, model = CASES[name], small()
    optimizer = case.make(model)
    train(model, optimizer, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    for other in ("m3", "dmgd", "adam", "delta"):
        if CASES[other].rule == case.rule:
            continue
        twin = small()
        strange = CASES[other].make(twin)
        train(twin, strange, range(2))
        with pytest.raises(ValueError, match="state_dict"):
            optimizer.load_state_dict(strange.state_dict())
    twin = small()
    strange = torch.optim.AdamW(twin.parameters())
    train(twin, strange, range(2))
    with pytest.raises(ValueError, match=f"state_dict: expected a state of '{case.rule[:3]}"):
        optimizer.load_state_dict(strange.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, held in before["state"].items():
        assert all(torch.equal(after["state"][key][n], v) for n, v in held.items())


def test_the_state_of_a_rule_of_one_name_but_other_memories_is_refused():
    """Deep momentum of another size, or of the linear memory."""
    model = small()
    optimizer = DMGD(model, MLPMemory(hidden=6))
    train(model, optimizer, range(2))
    for memory in (LinearMemory(), MLPMemory(hidden=7), MLPMemory(hidden=6, depth=3)):
        other = DMGD(small(), memory)
        with pytest.raises(ValueError, match="state_dict: "):
            other.load_state_dict(optimizer.state_dict())


def levelwise(name: str, model) -> LevelwiseOptimizer:
    """Two levels, the second moved every fourth step."""
    named = dict(model.named_parameters())
    slow = {n: p for n, p in named.items() if n.startswith(("second", "heads", "norm"))}
    fast = {n: p for n, p in named.items() if n not in slow}
    make = PLAIN[name].make
    return LevelwiseOptimizer(
        [(Level(1), fast), (Level(4), slow)], lambda held: make(held.items(), lr=0.02)
    )


def run(model, optimizer: LevelwiseOptimizer, steps: range) -> None:
    for step in steps:
        backward(model, step)
        optimizer.scale_lr(1 / (1 + 0.1 * step))
        optimizer.step(tokens=1)


@plain
def test_levels_go_on_from_a_checkpoint(name, tmp_path: Path):
    """Tensors in one file and everything else as JSON, at step 7: in the middle of both periods."""
    whole, first, second = small(), small(), small(seed=1)
    run(whole, levelwise(name, whole), range(26))
    cut = levelwise(name, first)
    run(first, cut, range(7))
    write(
        tmp_path,
        Checkpoint(step=7, tokens=7, config={}, model=first.state_dict(),
                   optimizer=cut.state_dict(), state=None),
        keep=1,
    )  # fmt: skip
    found = read(tmp_path)
    second.load_state_dict(found.model)
    resumed = levelwise(name, second)
    resumed.load_state_dict(found.optimizer)
    run(second, resumed, range(7, 26))
    assert same(second, whole)


def test_levels_refuse_the_state_of_another_rule():
    model = small()
    other = levelwise("adamuon", model)
    run(model, other, range(5))
    with pytest.raises(ValueError, match="expected a state of 'M3', got 'AdaMuon'"):
        levelwise("m3", small()).load_state_dict(other.state_dict())
    model = small()
    named = dict(model.named_parameters())
    torchs = LevelwiseOptimizer([(Level(1), named)], adamw)
    run(model, torchs, range(3))
    ours = LevelwiseOptimizer([(Level(1), dict(small().named_parameters()))],
                              lambda held: M3(held.items()))  # fmt: skip
    with pytest.raises(ValueError, match="expected a state of 'M3'"):
        ours.load_state_dict(torchs.state_dict())


@every
def test_state_is_float32_beside_fewer_bits_and_float64_beside_more(name):
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        model = small(dtype)
        optimizer = CASES[name].make(model, lr=0.01)
        train(model, optimizer, range(6))
        assert {p.dtype for p in model.parameters()} == {dtype}
        kept = {v.dtype for held in optimizer.state.values() for n, v in held.items() if v.ndim}
        assert kept == {wide}


@plain
def test_small_steps_add_up_in_master_weights(name):
    """A hundred steps of a fraction of bfloat16's last bit."""
    make, start, moved = PLAIN[name].make, torch.full((4, 6), 256.0), {}
    for kind, dtype, words in (
        ("float32", torch.float32, {}),
        ("master", torch.bfloat16, {"handling": MASTER}),
        ("lost", torch.bfloat16, {}),
    ):
        W = Parameter(start.clone().to(dtype))
        optimizer = make([W], lr=1e-2, weight_decay=0.0, **words)
        for step in range(100):
            gradient = 0.2 * (1 + step % 2) * drawn((4, 6), 1)
            W.grad = gradient.to(torch.bfloat16).to(dtype)
            optimizer.step()
        moved[kind] = optimizer.state[W].get("master", W).detach().float() - start
        assert W.dtype == dtype
        if kind == "master":
            assert torch.equal(W.detach(), optimizer.state[W]["master"].to(torch.bfloat16))
    assert moved["float32"].abs().max() > 0.1
    torch.testing.assert_close(moved["master"], moved["float32"], rtol=1e-4, atol=1e-3)
    assert torch.equal(moved["lost"], torch.zeros(4, 6))


@pytest.mark.parametrize("set_to_none", [True, False])
@every
def test_scaled_gradients(name, set_to_none):
    """A gradient that overflowed makes no step; all others make the step they would have made."""
    case, models = CASES[name], (small(), small())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    ours, other = (case.make(model, lr=0.02) for model in models)
    for step in range(7):
        ours.zero_grad(set_to_none=set_to_none)
        loss = scaled_backward(models[0], step, scaler)
        if step == 3:
            models[0].second.weight.grad[0, 0] = float("inf")
        scaler.step(ours)
        scaler.update()
        if step != 3:
            torch.testing.assert_close(loss, train(models[1], other, range(step, step + 1)))
    assert scaler.get_scale() == 2.0**9
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def scaled_backward(model, step: int, scaler) -> torch.Tensor:
    """The loss of one step, after its scaled gradients were added."""
    x, y = batch(step)
    loss = (model(x) - y).square().mean()
    scaler.scale(loss).backward()
    return loss.detach()


@every
def test_a_gradient_that_is_no_number_moves_nothing(name):
    model = small()
    optimizer = CASES[name].make(model, lr=0.02, weight_decay=0.1)
    train(model, optimizer, range(3))
    held, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict()["state"])
    for bad in (float("nan"), float("inf")):
        optimizer.zero_grad()
        backward(model, 3)
        model.out.weight.grad[1, 1] = bad
        with pytest.raises(NonFiniteError, match=r"gradient of out\.weight \(1 in all\) is not"):
            optimizer.step()
        assert same(model, held)
        optimizer.zero_grad()
        for key, kept in optimizer.state_dict()["state"].items():
            assert all(torch.equal(v, state[key][n]) for n, v in kept.items())
    train(model, optimizer, range(3, 5))
    train(held, resumed := CASES[name].make(held, lr=0.02, weight_decay=0.1), range(0))
    resumed.load_state_dict({**optimizer.state_dict(), "state": state})
    train(held, resumed, range(3, 5))
    assert same(model, held), "it goes on as if nothing had happened"


def test_what_was_heard_of_a_skipped_step_is_forgotten():
    model = small()
    optimizer = DGD(model)
    backward(model, 0)
    assert "answers" in optimizer.state[model.first.weight]
    optimizer.zero_grad()
    assert not any("answers" in held for held in optimizer.state.values())

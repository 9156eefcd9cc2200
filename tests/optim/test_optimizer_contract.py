"""What every torch optimizer can do: each of ours can, in the middle of its periods too."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from optimizer_cases import CAPTURABLE, CASES, PLAIN, backward, drawn, grads, same, small, train
from torch import nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from nestling.optim import DGD, M3, GeneralizedMomentum, adam, m3

every = pytest.mark.parametrize("name", CASES)
plain = pytest.mark.parametrize("name", PLAIN)


def test_the_names_of_the_rules():
    for name, case in CASES.items():
        optimizer = case.make(small())
        assert {group["rule"] for group in optimizer.param_groups} <= {case.rule, "Adam"}, name
        assert case.rule in repr(optimizer)


@every
def test_a_closure_is_called_once_with_gradients_and_its_loss_is_returned(name):
    case, calls = CASES[name], []
    ours, other = small(), small()
    optimizer, reference = case.make(ours, lr=0.01), case.make(other, lr=0.01)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        return backward(ours, 0)

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    torch.testing.assert_close(loss, train(other, reference, range(1)))
    assert same(ours, other)


@every
def test_a_gradient_of_zero_moves_only_what_decays(name):
    model = small()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = CASES[name].make(model, lr=0.5, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for n, p in model.named_parameters():
        fades = (n.endswith("weight") and "norm" not in n) or n == "heads"
        torch.testing.assert_close(p.detach(), before[n] * (0.95 if fades else 1.0), msg=n)


@every
def test_gradients_are_read_only(name):
    model = small()
    optimizer = CASES[name].make(model, lr=0.01)
    for step in range(6):
        grads(list(model.parameters()), step)
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@every
def test_what_has_no_gradient_or_is_frozen_stays(name):
    model = small()
    model.third.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = CASES[name].make(model, lr=0.1, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        model.second.weight.grad = model.out.bias.grad = None
        optimizer.step()
    for n in ("second.weight", "third.weight", "out.bias"):
        assert torch.equal(model.state_dict()[n], before[n])
    assert not torch.equal(model.first.weight, before["first.weight"])
    assert "step" not in optimizer.state[model.second.weight]
    assert model.third.weight not in optimizer.state


@every
def test_a_parameter_that_comes_later_has_a_clock_of_its_own(name):
    """It moves as if its optimizer had begun with it."""
    case, models = CASES[name], (small(), small())
    late = [model.second.weight for model in models]
    first, second = (case.make(model, lr=0.01) for model in models)
    for step in range(3):
        grads([p for p in models[0].parameters() if p is not late[0]], step)
        late[0].grad = None
        first.step()
    for step in range(7):
        for model, optimizer in zip(models, (first, second), strict=True):
            grads(list(model.parameters()), 50 + step)
            optimizer.step()
    assert torch.equal(*late)
    assert int(first.state[late[0]]["step"]) == 7


@plain
def test_groups_have_their_own_rate_and_decay(name):
    make, shapes = PLAIN[name].make, ((4, 6), (4, 6), (4, 6), (3, 3))
    W = [Parameter(drawn(shape, 3)) for shape in shapes]
    alone = [Parameter(p.detach().clone()) for p in W]
    words = [{"lr": 0.0}, {"lr": 0.1}, {"weight_decay": 0.5}, {}]
    optimizer = make([{"params": [p], **word} for p, word in zip(W, words, strict=True)],
                     lr=0.02, weight_decay=0.0)  # fmt: skip
    singles = [make([p], **{"lr": 0.02, "weight_decay": 0.0, **word})
               for p, word in zip(alone, words, strict=True)]  # fmt: skip
    for step in range(6):
        for parameters in (W, alone):
            grads(parameters, step)
        optimizer.step()
        for single in singles:
            single.step()
    assert torch.equal(W[0].detach(), drawn(shapes[0], 3))
    for ours, other in zip(W, alone, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-14)


@plain
def test_groups_are_added(name):
    make = PLAIN[name].make
    W, late, bias = (Parameter(drawn(shape, 3)) for shape in ((4, 6), (6, 2), (5,)))
    optimizer = make([W], lr=0.02, weight_decay=0.0)
    grads([W], 0)
    optimizer.step()
    optimizer.add_param_group({"params": [late, bias], "lr": 0.5})
    assert {float(group["lr"]) for group in optimizer.param_groups} == {0.02, 0.5}
    grads([W, late, bias], 1)
    optimizer.step()
    assert int(optimizer.state[W]["step"]) == 2
    assert int(optimizer.state[late]["step"]) == int(optimizer.state[bias]["step"]) == 1
    assert not torch.equal(late.detach(), drawn((6, 2), 3))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [late]})


@every
def test_schedulers(name):
    """A schedule is what setting the rate by hand is."""
    case, models = CASES[name], (small(), small())
    ours, other = (case.make(model, lr=0.02) for model in models)
    scheduler = LambdaLR(ours, lambda step: 1 / (1 + step))
    for step in range(6):
        train(models[0], ours, range(step, step + 1))
        scheduler.step()
        for group in other.param_groups:
            group["lr"] = 0.02 / (1 + step)
        train(models[1], other, range(step, step + 1))
    assert same(*models)
    cycle = OneCycleLR(ours, max_lr=0.1, total_steps=8, cycle_momentum=False)
    rates = []
    for step in range(7):
        train(models[0], ours, range(step, step + 1))
        cycle.step()
        rates.append(ours.param_groups[0]["lr"])
    assert max(rates) > 5 * min(rates)
    assert all(bool(p.isfinite().all()) for p in models[0].parameters())


@every
def test_the_rate_as_a_tensor(name):
    case, models = CASES[name], (small(torch.float64), small(torch.float64))
    rate = torch.tensor(0.01, dtype=torch.float64)
    ours, other = case.make(models[0], lr=rate), case.make(models[1], lr=0.01)
    scheduled = [LambdaLR(optimizer, lambda step: 1 / (1 + step)) for optimizer in (ours, other)]
    for step in range(6):
        train(models[0], ours, range(step, step + 1))
        train(models[1], other, range(step, step + 1))
        for scheduler in scheduled:
            scheduler.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every
def test_two_runs_are_equal_to_the_last_bit(name):
    models = []
    for _ in range(2):
        models.append(small())
        train(models[-1], CASES[name].make(models[-1], lr=0.02), range(7))
    assert same(*models)


@every
def test_many_matrices_are_moved_as_each_would_be_alone(name):
    if CASES[name].layers:
        pytest.skip("moves every layer by what it has heard of it")
    shapes = [(4, 6), (6, 4), (4, 6), (2, 4, 6), (5, 5), (4, 6), (2, 4, 6), (3, 2)]
    together = [Parameter(drawn(shape, 7 + i)) for i, shape in enumerate(shapes)]
    alone = [Parameter(p.detach().clone()) for p in together]
    make = CASES[name].make
    optimizer = make(together, lr=0.02)
    singles = [make([p], lr=0.02) for p in alone]
    for step in range(11):
        for parameters in (together, alone):
            for index, parameter in enumerate(parameters):
                grads([parameter], 100 * index + step)
        optimizer.step()
        for single in singles:
            single.step()
    for ours, other in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-11)
    for index in (3, 6):
        rows = [Parameter(p) for p in drawn(shapes[index], 7 + index)]
        by_itself = make(rows, lr=0.02)
        for step in range(11):
            stack = Parameter(torch.zeros(shapes[index], dtype=torch.float64))
            grads([stack], 100 * index + step)
            for row, gradient in zip(rows, stack.grad, strict=True):
                row.grad = gradient.clone()
            by_itself.step()
        torch.testing.assert_close(together[index].detach(), torch.stack([*rows]).detach())


@plain
def test_a_batch_is_moved_in_pieces(name, monkeypatch):
    """What a step needs beside its state is bounded, and where it is cut changes nothing."""
    W = [[Parameter(drawn((4, 6), seed)) for seed in range(5)] for _ in range(2)]
    for parameters, most in zip(W, (1 << 24, 50), strict=True):
        monkeypatch.setattr("nestling.optim.generalized.BATCH", most)
        optimizer = PLAIN[name].make(parameters, lr=0.02)
        for step in range(6):
            grads(parameters, step)
            optimizer.step()
    for ours, other in zip(*W, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@every
def test_copies_go_their_own_way(name):
    model = small()
    optimizer = CASES[name].make(model, lr=0.02)
    train(model, optimizer, range(7))
    other, twin = copy.deepcopy((model, optimizer))
    assert repr(twin) == repr(optimizer)
    kept = copy.deepcopy(model)
    train(other, twin, range(7, 13))
    assert same(model, kept), "the copy moves its own model"
    train(model, optimizer, range(7, 13))
    assert same(model, other)
    assert not same(model, kept)


def test_it_tells_its_groups():
    model = small()
    text = repr(M3(model, lr=0.25, weight_decay=0.5))
    assert text.splitlines() == [
        "M3 (",
        "  M3: 5 parameters, 224 numbers, lr 0.25, weight decay 0.5",
        "  Adam: 5 parameters, 35 numbers, lr 0.25, weight decay 0",
        ")",
    ]
    assert repr(DGD(model)).count("DGD: ") == 2


def test_a_model_names_and_parameters_make_the_same_groups():
    model = small()
    made = [
        M3(model),
        M3(model.named_parameters()),
        M3([{"params": model.named_parameters()}]),
        M3(model.parameters()),
    ]
    kinds = [
        {id(p): group["by"] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in made
    ]
    assert kinds[0] == kinds[1] == kinds[2]
    # without names a head cannot be told from a matrix, here there is none
    assert kinds[0] == kinds[3]


@plain
def test_hooks_around_a_step(name):
    model, calls = small(), []
    optimizer = PLAIN[name].make(model, lr=0.02)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(model, optimizer, range(1))
    assert calls == ["before", "after"]


class Escape(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses to give the host a number."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise AssertionError("a step asked the device for a number")
        return func(*args, **(kwargs or {}))


@every
def test_a_clock_on_the_device_changes_no_number_and_is_never_asked_for(name):
    case, models = CASES[name], (small(torch.float64), small(torch.float64))
    ours = case.make(models[0], lr=0.02, handling=CAPTURABLE)
    other = case.make(models[1], lr=0.02)
    for step in range(12):
        train(models[1], other, range(step, step + 1))
        ours.zero_grad()
        backward(models[0], step)
        with Escape():
            ours.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        # the clock has 24 bits, and what it corrects has gone through the model since
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    for parameter in models[0].parameters():
        assert ours.state[parameter]["step"].device == parameter.device
    with pytest.raises(AssertionError, match="asked the device"), Escape():
        other.step()


@pytest.mark.parametrize("rule", [m3(frequency=3), adam((0.9, 0.999))], ids=["m3", "adam"])
def test_clocks_on_the_device_may_differ(rule):
    """Parameters of one shape at different places of their periods."""
    handling = CAPTURABLE
    W = [[Parameter(drawn((4, 6), seed, torch.float32)) for seed in (1, 2)] for _ in range(2)]
    ours = GeneralizedMomentum(W[0], rule, lr=0.02, handling=handling)
    other = GeneralizedMomentum(W[1], rule, lr=0.02)
    for step, late in itertools.product(range(4), (False, True)):
        for parameters, optimizer in zip(W, (ours, other), strict=True):
            grads(parameters, 10 * step + late)
            if not late:
                parameters[1].grad = None
            optimizer.step()
    for a, b in zip(*W, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_model_and_its_optimizer_leave_no_hook_behind():
    layer = nn.Linear(3, 2)
    optimizer = DGD(layer)
    assert len(layer._forward_hooks) == 1
    optimizer.close()
    assert len(layer._forward_hooks) == 0
    assert optimizer.handles == []

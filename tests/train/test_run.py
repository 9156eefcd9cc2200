from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import PERIODS, config, model, new_run, numbers, same_weights, stream, text

from nestling.data import TextStream
from nestling.memory import flatten
from nestling.optim import NonFiniteError, adamw
from nestling.train import CheckpointError, Run, TrainConfig, evaluate, read, write
from nestling.train.schedule import warmup_cosine

VARIANTS = {
    "hope": ("hope", {}),
    "hope, carried state": ("hope", {"carry_state": True}),
    "hope, accumulated and carried": ("hope", {"accumulate": 2, "carry_state": True}),
    "hope, bfloat16": ("hope", {"precision": "bfloat16"}),
    "titans with momentum, carried state": ("titans", {"carry_state": True}),
    "transformer": ("transformer", {"accumulate": 2}),
    "hope attention, carried state": ("hope_attention", {"carry_state": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bit_exact(variant, tmp_path):
    preset, changes = VARIANTS[variant]
    settings = config(steps=8, **changes)
    whole = new_run(settings, preset)
    history = [whole.step() for _ in range(8)]

    first = new_run(settings, preset)
    for _ in range(5):
        first.step()
    write(tmp_path, first.checkpoint({}))

    torch.manual_seed(99)  # the weights and the generator of the resumed process are others
    second = Run(model(preset, seed=99), stream(settings), settings)
    second.restore(read(tmp_path))
    rest = [second.step() for _ in range(3)]
    assert numbers(rest) == numbers(history[5:])
    assert [step.moved for step in rest] == [step.moved for step in history[5:]]
    assert [step.lr for step in rest] == [step.lr for step in history[5:]]
    assert same_weights(second.model, whole.model)
    assert second.optimizer.tokens == whole.optimizer.tokens
    if settings.carry_state:
        one, other = flatten(second.inner), flatten(whole.inner)
        # a tensor out of a file is contiguous; another layout may add up in another order
        assert all(tensor.is_contiguous() for tensor in other.values())
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_random_numbers_go_on_where_they_stopped(tmp_path):
    import random

    import numpy as np

    def draw() -> list[float]:
        return [torch.rand(()).item(), random.random(), float(np.random.rand())]

    run = new_run(config())
    draw()
    write(tmp_path, run.checkpoint({}))
    expected = [draw(), draw()]
    other = new_run(config())
    other.restore(read(tmp_path))
    assert [draw(), draw()] == expected


def test_step_is_adamw_on_the_mean_loss():
    """Against a loop written out with nothing of ours but the model."""
    settings = config(steps=4, accumulate=2, clip=None)
    run = Run(model("transformer"), stream(settings), settings)
    reference, batches = model("transformer"), stream(settings)
    levels = reference.parameter_levels()
    named = dict(reference.named_parameters())
    assert {level.period for level in levels.values()} == set(PERIODS)
    fast = adamw({n: p for n, p in named.items() if levels[n].period == 1}, lr=settings.lr)
    slow = adamw({n: p for n, p in named.items() if levels[n].period == 100}, lr=settings.lr)
    held = named["blocks.0.continuum.levels.2.mlp.down.weight"].detach().clone()
    for step in range(4):
        record = run.step()
        losses = []
        for _ in range(2):
            inputs, targets = batches.next()
            logits, _ = reference(inputs)
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        torch.stack(losses).mean().backward()
        factor = warmup_cosine(step, steps=4, warmup=3)
        for optimizer in (fast, slow):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * factor
        fast.step()
        fast.zero_grad()
        if step >= 1:  # 96 tokens a step: 100 is passed at 192, 200 at 288, 300 at 384
            since = 2 if step == 1 else 1
            for group in slow.param_groups:
                for parameter in group["params"]:
                    parameter.grad /= since
            slow.step()
            slow.zero_grad()
        assert record.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
        assert record.bits_per_byte == pytest.approx(record.loss / math.log(2), rel=1e-12)
        assert record.tokens == 96 * (step + 1)
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(named["blocks.0.continuum.levels.2.mlp.down.weight"], held)


def test_carried_state_is_one_long_text():
    """With a step size of zero, pieces with carried state have the loss of the whole text."""
    settings = config(steps=3, carry_state=True, lr=0.0, batch=1)
    ids = text()[:100]
    run = Run(model(), stream(settings, ids), settings)
    losses = [run.step().loss for _ in range(3)]
    logits, _ = model()(ids[None, :72].long())
    whole = F.cross_entropy(logits.flatten(0, 1), ids[1:73].long(), reduction="none")
    for index, loss in enumerate(losses):
        expected = whole[24 * index : 24 * index + 24].mean().item()
        assert loss == pytest.approx(expected, rel=1e-5)


def test_evaluation_is_the_mean_over_all_tokens():
    ids, net = text()[:101], model()
    logits, _ = net(ids[None, :100].long())
    expected = F.cross_entropy(logits[0], ids[1:].long()).item()
    whole = evaluate(net, ids, batch=1, length=100)
    assert whole == pytest.approx(expected, rel=1e-6)
    carried = evaluate(net, ids, batch=1, length=24, carry_state=True)
    assert carried == pytest.approx(expected, rel=1e-5)
    separate = evaluate(net, ids, batch=1, length=24)
    pieces = [net(ids[None, s : min(s + 24, 100)].long())[0][0] for s in range(0, 100, 24)]
    by_hand = F.cross_entropy(torch.cat(pieces), ids[1:].long()).item()
    assert separate == pytest.approx(by_hand, rel=1e-5)
    assert abs(separate - carried) > 1e-6
    with pytest.raises(ValueError, match="at least 2 tokens to measure on, got 1"):
        evaluate(net, ids[:1], batch=1, length=8)


def test_evaluation_changes_nothing():
    settings = config(carry_state=True)
    one, other = new_run(settings), new_run(settings)
    history = []
    for _ in range(4):
        history.append(one.step())
        one.evaluate(text(seed=3)[:200])
        one.check()
    assert numbers(history) == numbers([other.step() for _ in range(4)])


def test_bfloat16_is_close_to_float32():
    losses = {}
    for precision in ("float32", "bfloat16"):
        run = new_run(config(precision=precision, lr=1e-3))
        losses[precision] = [run.step().loss for _ in range(4)]
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)


def test_nan_in_a_weight_is_found_and_nothing_moves():
    run = new_run(config())
    run.step()
    name = "blocks.0.continuum.levels.1.mlp.down.weight"
    with torch.no_grad():
        run.model.get_parameter(name)[2, 3] = float("nan")
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    with pytest.raises(NonFiniteError) as caught:
        run.step()
    message = str(caught.value)
    assert message.startswith(
        f"step 2 (batch 2 of the text): the loss is nan, parameter {name} is not finite. Try"
    )
    assert "smaller lr (now 0.01), a longer warmup (3 steps) or a smaller clip (1.0)" in message
    for n, p in run.model.named_parameters():
        assert torch.equal(p.nan_to_num(7.0), before[n].nan_to_num(7.0))
    assert run.steps == 1


def test_overflow_is_found_where_it_happens():
    run = new_run(config(), "transformer")
    with torch.no_grad():
        run.model.get_parameter("blocks.0.continuum.levels.1.mlp.gate_up.weight").fill_(1e30)
    with pytest.raises(NonFiniteError, match=r"first in the output of blocks\.0\.continuum\.lev"):
        run.step()


def test_nan_gradient_with_a_finite_loss_is_found():
    run = new_run(config())
    weight = run.model.get_parameter("blocks.0.mixer.out.weight")
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 1 .*gradient of blocks\.0\.mixer\.out\.weight"):
        run.step()


def test_check_refuses_weights_that_no_longer_predict():
    run = new_run(config())
    run.check()
    run.step()
    run.check()
    with torch.no_grad():
        run.model.get_parameter("norm.weight").fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 1 .*after it the loss is nan, parameter norm"):
        run.check()


def test_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    run = new_run(config())
    run.step()
    write(tmp_path, run.checkpoint({}))
    saved = read(tmp_path)
    with pytest.raises(CheckpointError, match=r"other values \(lr: 0\.5, not 0\.01\)"):
        new_run(config(lr=0.5)).restore(saved)
    with pytest.raises(CheckpointError, match="the text is not the one that the position"):
        Run(model(), stream(config(), text(seed=1)), config()).restore(saved)
    with pytest.raises(CheckpointError, match="resume: weights: the checkpoint misses"):
        new_run(config(), "titans").restore(saved)
    longer = new_run(config(steps=20, save_every=1))
    longer.restore(saved)
    assert longer.steps == 1


def test_stream_must_be_the_one_of_the_config():
    ids = text()
    with pytest.raises(ValueError, match="stream: expected length 24, got 23"):
        Run(model(), TextStream(ids, batch=2, length=23), config())
    with pytest.raises(ValueError, match="carry_state needs order='contiguous', got 'random'"):
        Run(model(), TextStream(ids, batch=2, length=24), config(carry_state=True))


def test_config_is_stored_so_that_the_model_can_be_rebuilt(tmp_path):
    from nestling.models import LanguageModel, ModelConfig
    from nestling.storage.weights import load_weights

    run = new_run(config())
    run.step()
    write(tmp_path, run.checkpoint({"note": "x"}))
    saved = read(tmp_path)
    assert saved.config["note"] == "x"
    assert TrainConfig.from_dict(saved.config["train"]) == config()
    rebuilt = LanguageModel(ModelConfig.from_dict(saved.config["model"]))
    load_weights(rebuilt, saved.model)
    assert same_weights(rebuilt, run.model)

"""The trainer with the optimizers of this library: resumed to the bit, and kept across phases."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nestling.data import TextStream
from nestling.models import build
from nestling.optim import OPTIMIZERS
from nestling.train import Output, TrainConfig, nested_system, train
from nestling.train.optimizer import optimizer_of

QUIET = Output(quiet=True)
SHAPE = {"width": 16, "heads": 2, "layers": 1, "hidden": 16}
TEXT = torch.randint(0, 200, (8_000,), generator=torch.Generator().manual_seed(0))


def config(**more) -> TrainConfig:
    # A constant learning rate, so that two phases can be one run.
    return TrainConfig(steps=6, batch=2, length=16, warmup=0, floor=1.0, lr=1e-3, **more)


def stream() -> TextStream:
    return TextStream(TEXT, batch=2, length=16)


def model(preset="hope"):
    torch.manual_seed(0)
    return build(preset, **SHAPE)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumes_to_the_bit(optimizer, tmp_path):
    whole = config(optimizer=optimizer, save_every=3)
    unbroken = train(whole, model(), stream(), output=QUIET)
    first = Output(directory=tmp_path, quiet=True)
    # 4 steps end inside a period of M3's slow momentum
    train(dataclasses.replace(whole, steps=4), model(), stream(), output=first)
    again = dataclasses.replace(first, resume=True)
    resumed = train(whole, model(), stream(), output=again)
    assert [step.loss for step in resumed.history] == [step.loss for step in unbroken.history[4:]]


@pytest.mark.parametrize("optimizer", ["adamw", "m3", "delta_momentum"])
def test_with_the_memory_of_the_phase_before_two_phases_are_one_run(optimizer):
    whole, half = config(optimizer=optimizer), config(optimizer=optimizer)
    half = dataclasses.replace(half, steps=3)
    one = train(whole, model(), stream(), output=QUIET)

    def two(*, keep: bool):
        shared, text = model(), stream()
        before = train(half, shared, text, output=QUIET).run
        after = train(half, shared, text, output=QUIET, memory_of=before if keep else None)
        assert after.run.optimizer.tokens == 3 * 32, "the clock of levels begins anew"
        return [step.loss for step in after.history]

    kept = two(keep=True)
    assert kept == [step.loss for step in one.history[3:]]
    dropped = two(keep=False)
    assert dropped[0] == kept[0], "the weights are the same"
    assert dropped[2] != kept[2]


def test_memory_of_another_model_is_refused():
    before = train(config(), model("transformer"), stream(), output=QUIET).run
    with pytest.raises(ValueError, match="optimizer state"):
        train(config(), model(), stream(), output=QUIET, memory_of=before)


def test_other_optimizer_and_unknown_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"optimizer: expected one of .*got 'm4'"):
        config(optimizer="m4")
    out = Output(directory=tmp_path, quiet=True)
    train(config(), model(), stream(), output=out)
    with pytest.raises(ValueError, match="optimizer: m3, not adamw"):
        train(config(optimizer="m3"), model(), stream(),
              output=dataclasses.replace(out, resume=True))  # fmt: skip


def test_loss_falls_with_every_optimizer():
    sizes = {"momentum": 0.1, "delta_momentum": 0.5}
    for optimizer in OPTIMIZERS:
        chosen = TrainConfig(
            steps=25, batch=4, length=32, lr=sizes.get(optimizer, 1e-2), optimizer=optimizer
        )
        text = TextStream(torch.arange(256).repeat(8), batch=4, length=32)
        history = train(chosen, model("transformer"), text, output=QUIET).history
        assert history[-1].loss < history[0].loss - 0.3, optimizer


def test_the_level_table_tells_the_momenta_of_m3():
    """Before a step, as `nestling inspect` shows it: each level's slow momentum is slower yet."""
    chosen = config(optimizer="m3")
    owner = model()
    system = nested_system(owner, optimizer_of(owner, chosen), tokens_per_step=32)
    found = {part.name: part for level in system.levels for part in level}
    fast = found["optimizer.period_32.fast"]
    slow = found["optimizer.period_32.slow"]
    assert (fast.level.period, slow.level.period) == (32, 32 * 16)
    assert fast.rule == "DotProduct x Decay(0.95) x NewtonSchulz"
    assert found["blocks.0.mixer.weights"].rule == "M3"

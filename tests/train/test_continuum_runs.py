"""Training with levels in context: logged, resumed to the last bit, dead levels named."""

import io
import json
import os
import signal

import pytest
import torch
from rich.console import Console
from small_runs import config, numbers, same_weights, stream, text

from nestling.models import build
from nestling.train import Output, train
from nestling.train.measure import evaluate


def model(seed=0, **overrides):
    torch.manual_seed(seed)
    values = {"width": 16, "heads": 2, "layers": 2, "hidden": 16, "periods": (4, 11),
              "regime": "in_context", **overrides}  # fmt: skip
    return build("transformer", window=16, **values)


def go(settings, directory, *, resume=False, console=None, on_step=None, **overrides):
    output = Output(directory=directory, resume=resume, console=console, quiet=console is None)
    used = config(**settings)
    return train(used, model(**overrides), stream(used), held_out=text(seed=1)[:150],
                 output=output, on_step=on_step)  # fmt: skip


@pytest.mark.parametrize("source", ["local", "backprop"])
@pytest.mark.parametrize("carry_state", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, source, carry_state):
    """With a carried state the chunk of the loss stays open over the end of a batch (24 tokens)."""
    settings = {"steps": 8, "carry_state": carry_state, "save_every": 4, "eval_every": 4}
    overrides = {"source": source, "variant": "nested", "periods": (5, 13)}
    whole = go(settings, tmp_path / "whole", **overrides)

    def stop(step):
        if step.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    first = go(settings, tmp_path / "cut", on_step=stop, **overrides)
    assert first.stopped == "SIGTERM"
    if carry_state and source == "backprop":
        open_tokens = first.run.inner.observed.chunk.count
        assert bool((open_tokens > 0).all())
    rest = go(settings, tmp_path / "cut", resume=True, **{**overrides, "seed": 5})
    assert numbers(first) + numbers(rest) == numbers(whole)
    assert first.held_out | rest.held_out == whole.held_out
    assert same_weights(rest.run.model, whole.run.model)


def test_metrics_say_what_every_level_did(tmp_path):
    go({"steps": 2}, tmp_path / "run", periods=(4, 11, 30))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    levels = next(row for row in rows if row["kind"] == "train")["levels"]
    assert set(levels) == {f"blocks.{b}.continuum.levels.{i}" for b in (0, 1) for i in (0, 1, 2)}
    for block in (0, 1):
        fast, slow, dead = (levels[f"blocks.{block}.continuum.levels.{i}"] for i in range(3))
        assert (fast["writes"], fast["contributed"]) == (6, 1.0)
        assert (slow["writes"], slow["contributed"]) == (2, pytest.approx(22 / 24))
        assert (dead["writes"], dead["contributed"], dead["moved"]) == (0, 0, 0)
        assert 1e-4 < slow["moved"] < 10
        assert 1e-4 < fast["moved"] < 10


def test_a_dead_level_is_named_once(tmp_path):
    out = io.StringIO()
    go({"steps": 3}, tmp_path / "run", periods=(4, 30), console=Console(file=out, width=200))
    told = "dead, nothing was written: blocks.0.continuum.levels.1, blocks.1.continuum.levels.1"
    assert out.getvalue().count(told) == 1


def test_levels_of_the_loss_are_written_while_measuring():
    net = model(source="backprop", step_size=0.5)
    found = evaluate(net, text(seed=1)[:400], batch=2, length=50, carry_state=True)
    with torch.no_grad():
        for block in net.blocks:
            for level in block.continuum.levels:
                level.step_scale.fill_(-50.0)  # steps of nothing
    still = evaluate(net, text(seed=1)[:400], batch=2, length=50, carry_state=True)
    assert abs(found - still) > 1e-3


def test_weights_are_trained_through_the_writes(tmp_path):
    one = go({"steps": 5}, tmp_path / "one", source="backprop")
    other = go({"steps": 5}, tmp_path / "other", source="backprop")
    assert same_weights(one.run.model, other.run.model)
    scale = one.run.model.blocks[0].continuum.levels[0].step_scale
    assert float(scale.detach()) != 0.0

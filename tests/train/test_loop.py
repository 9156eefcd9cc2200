from __future__ import annotations

import io
import json
import math
import os
import signal

import pytest
import torch
from rich.console import Console
from small_runs import config, model, numbers, same_weights, stream, text

from nestling.optim import NonFiniteError
from nestling.train import CheckpointError, Output, latest, read, read_metrics, train


def go(settings, directory=None, *, preset="transformer", resume=False, quiet=True, **arguments):
    output = Output(directory=directory, resume=resume, quiet=quiet)
    net = arguments.pop("model", None) or model(preset)
    return train(settings, net, stream(settings), output=output, **arguments)


def losses(directory) -> list[float]:
    return [row["loss"] for row in read_metrics(directory / "metrics.jsonl") if "lr" in row]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path, name):
    settings = config(steps=12, carry_state=True, save_every=5, eval_every=4)
    held = text(seed=1)[:150]
    whole = go(settings, tmp_path / "whole", preset="hope", held_out=held)

    def stop(step):
        if step.step == 7:
            os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    first = go(settings, tmp_path / "cut", preset="hope", held_out=held, on_step=stop)
    assert first.stopped == name
    assert first.checkpoint == tmp_path / "cut" / "step-00000007"
    assert signal.getsignal(getattr(signal, name)) == before
    second = go(settings, tmp_path / "cut", model=model("hope", seed=5), held_out=held, resume=True)
    assert second.stopped is None
    assert numbers(first) + numbers(second) == numbers(whole)
    assert first.held_out | second.held_out == whole.held_out
    assert same_weights(second.run.model, whole.run.model)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 12


def test_second_signal_acts_at_once_and_handlers_are_put_back(tmp_path):
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    go(config(steps=1), tmp_path / "undisturbed")
    assert {name: signal.getsignal(name) for name in before} == before

    def stop(step):
        if step.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go(config(steps=9, save_every=1), tmp_path / "impatient", on_step=stop)
    assert latest(tmp_path / "impatient") == tmp_path / "impatient" / "step-00000001"
    assert {name: signal.getsignal(name) for name in before} == before


def test_crash_loses_only_what_came_after_the_checkpoint(tmp_path):
    settings = config(steps=12, save_every=4)
    whole = go(settings, tmp_path / "whole")

    def crash(step):
        if step.step == 7:
            raise RuntimeError("as if the power had gone")

    with pytest.raises(RuntimeError, match="power"):
        go(settings, tmp_path / "cut", on_step=crash)
    assert len(losses(tmp_path / "cut")) == 7
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # a row that the crash cut short
    second = go(settings, tmp_path / "cut", model=model("transformer", seed=5), resume=True)
    assert [step.step for step in second.history] == list(range(5, 13))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") == [n[0] for n in numbers(whole)]


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    settings = config(steps=12, save_every=3)
    net = model("transformer")

    def poison(step):
        if step.step == 7:
            with torch.no_grad():
                net.get_parameter("blocks.0.mixer.out.weight")[0, 0] = math.nan

    with pytest.raises(NonFiniteError) as caught:
        go(settings, tmp_path, model=net, on_step=poison)
    message = str(caught.value)
    assert message.startswith("stopped at step 8 (batch 8 of the text): the loss is nan")
    assert message.endswith(f"the last good checkpoint is {tmp_path / 'step-00000006'}")
    assert all(bool(t.isfinite().all()) for t in read(tmp_path).model.values())
    assert [path.name for path in sorted(tmp_path.glob("step-*"))][-1] == "step-00000006"
    resumed = go(settings, tmp_path, resume=True)
    assert resumed.history[-1].step == 12


def test_weights_blown_up_by_the_last_step_are_not_saved(tmp_path):
    """The NaN would come one step later, from a checkpoint that looks like a good one."""
    settings = config(steps=12, save_every=3)
    net = model("transformer")

    def blow_up(step):
        if step.step == 6:
            with torch.no_grad():
                net.get_parameter("blocks.0.continuum.levels.0.mlp.gate_up.weight").fill_(1e30)

    with pytest.raises(NonFiniteError, match=r"stopped at step 6 .*after it the loss is nan") as e:
        go(settings, tmp_path, model=net, on_step=blow_up)
    assert str(e.value).endswith("step-00000003")
    assert latest(tmp_path) == tmp_path / "step-00000003"


def test_huge_learning_rate_is_reported_with_what_to_try(tmp_path):
    settings = config(steps=12, lr=1e30, warmup=0)
    with pytest.raises(NonFiniteError, match=r"smaller lr \(now 1e\+30\), a longer warmup \(0 st"):
        go(settings, tmp_path)
    assert latest(tmp_path) is None


def test_directory_of_another_run_is_not_touched(tmp_path):
    settings = config(steps=2)
    go(settings, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds a run at step-00000002; resume it, or choose"):
        go(settings, tmp_path)
    with pytest.raises(CheckpointError, match=r"other values \(lr: 0\.5, not 0\.01\)"):
        go(config(steps=2, lr=0.5), tmp_path, resume=True)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {n: t for n, t in after.items() if n != ".lock"} == {
        n: t for n, t in before.items() if n != ".lock"
    }


def test_truncated_checkpoint_is_named_and_the_one_before_goes_on(tmp_path):
    settings = config(steps=6, save_every=3)
    whole = go(settings, tmp_path)
    os.truncate(tmp_path / "step-00000006" / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"truncated: 1000 bytes.*remove step-00000006"):
        go(settings, tmp_path, resume=True)
    import shutil

    shutil.rmtree(tmp_path / "step-00000006")
    rest = go(settings, tmp_path, resume=True)
    assert numbers(rest) == numbers(whole)[3:]


def test_resume_of_nothing_says_so_and_finished_runs_do_nothing(tmp_path):
    said = io.StringIO()
    settings = config(steps=2)
    output = Output(directory=tmp_path, resume=True, console=Console(file=said, width=200))
    train(settings, model("transformer"), stream(settings), output=output)
    assert f"nothing to resume in {tmp_path}: starting at step 0" in said.getvalue()
    again = train(settings, model("transformer"), stream(settings), output=output)
    assert again.history == []
    assert "resumed at step 2 of 2" in said.getvalue()
    assert "nothing left to do" in said.getvalue()
    longer = config(steps=4)
    more = train(longer, model("transformer"), stream(longer), output=output)
    assert [step.step for step in more.history] == [3, 4]
    assert "the run was to end at step 2" in said.getvalue()


def test_lines_and_metrics(tmp_path):
    said = io.StringIO()
    settings = config(steps=6, log_every=2, eval_every=3, save_every=4)
    held = text(seed=1)[:100]
    output = Output(directory=tmp_path, console=Console(file=said, width=40))
    result = train(settings, model("hope"), stream(settings), held_out=held, output=output)
    lines = said.getvalue().splitlines()
    assert [line[:8] for line in lines] == [
        "step 2/6",
        "step 3: ",
        "step 4/6",
        "step 6/6",
        "step 6: ",
    ]
    assert "\x1b" not in said.getvalue()
    last = result.history[-1]
    for part in (f"loss {last.loss:.4f}", f"{last.bits_per_byte:.3f} bits/byte", "0:00 left"):
        assert part in lines[3]
    assert f"grad {last.grad_norm:.3f}" in lines[3]
    assert "tok/s" in lines[3]
    assert "MiB" in lines[3]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [
        *[("train", step) for step in (1, 2, 3)],
        ("held_out", 3),
        *[("train", step) for step in (4, 5, 6)],
        ("held_out", 6),
    ]
    assert rows[0]["loss"] == result.history[0].loss
    assert rows[3]["bits_per_byte"] == result.held_out[3]
    assert rows[3]["loss"] / math.log(2) == pytest.approx(result.held_out[3], rel=1e-12)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [
        "step-00000004",
        "step-00000006",
    ]


@pytest.mark.parametrize(
    ("preset", "grows"), [("hope", False), ("transformer", True), ("window", False)]
)
def test_carried_state_that_grows_without_end_is_said(preset, grows):
    from nestling.models import build

    said = io.StringIO()
    settings = config(steps=4, carry_state=True)
    net = build("transformer", width=16, heads=2, layers=1, window=10)
    net = net if preset == "window" else model(preset)
    output = Output(console=Console(file=said, width=200))
    train(settings, net, stream(settings), output=output)
    # two rows of 24 keys and values of 16 numbers
    assert ("grows by 1,536 numbers a step" in said.getvalue()) == grows


def test_terminal_gets_a_bar_with_the_remaining_time():
    said = io.StringIO()
    console = Console(file=said, width=100, force_terminal=True)
    settings = config(steps=3)
    train(settings, model("transformer"), stream(settings), output=Output(console=console))
    assert "3/3" in said.getvalue()
    assert "left" in said.getvalue()
    assert said.getvalue().count("bits/byte") == 3


def test_learns(tmp_path):
    """Three of 64 symbols may follow: log2(3) = 1.585 bits per byte is the best there is."""
    settings = config(steps=60, batch=8, length=32, lr=2e-2)
    result = go(settings, preset="hope", held_out=text(seed=1)[:600])
    assert result.history[0].bits_per_byte > 7.9
    assert 1.5 < result.held_out[60] < 3.0


def test_tokenizer_is_kept_with_the_checkpoint_and_counts_bytes(tmp_path):
    from nestling.data import ByteTokenizer

    class Halves(ByteTokenizer):
        name = "halves"

        def count_bytes(self, ids):
            return 2 * ids.numel()

        def to_json(self):
            return json.dumps({"a": 1})

    result = go(config(steps=1), tmp_path, tokenizer=Halves(), held_out=text()[:60])
    step = result.history[0]
    assert step.bits_per_byte == pytest.approx(step.loss / math.log(2) / 2, rel=1e-12)
    saved = read(tmp_path)
    assert saved.attachments == {"tokenizer.json": '{"a": 1}'}
    assert saved.config["tokenizer"] == "halves"


def test_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path, monkeypatch):
    import errno

    from nestling.storage import checkpoint

    settings = config(steps=12, save_every=3)

    def fill(step):
        if step.step == 5:

            def full(*arguments, **options):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(checkpoint, "save_file", full)

    told = "step 6 could not be saved: the disk is full; step-00000003 is intact"
    with pytest.raises(CheckpointError, match=told):
        go(settings, tmp_path, on_step=fill)
    monkeypatch.undo()
    assert go(settings, tmp_path, resume=True).history[0].step == 4


def test_metrics_that_cannot_be_written_are_one_clear_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: cannot be written: "):
        go(config(steps=1), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made a run directory: "):
        go(config(steps=1), tmp_path / "file")

"""Real processes, killed and stopped from outside, end where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nestling
from nestling.cli import main

SOURCE = str(Path(__file__).parents[2] / "src")
OPTIONS = [
    *("--set", "width=16", "--set", "heads=2", "--set", "layers=1", "--set", "hidden=16"),
    *("--set", "periods=[1,100,500]", "--batch", "2", "--length", "24", "--steps", "40"),
    *("--save-every", "3", "--eval-every", "10", "--carry-state", "--device", "cpu"),
    *("--threads", "1"),
]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""
    threads = torch.get_num_threads()

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nestling", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


PAUSED = """
import os, signal, sys
import nestling
from nestling.cli import main
from nestling.train import Run

before, step = int(sys.argv.pop(1)), Run.step

def paused(run):
    if run.steps + 1 == before:
        os.kill(os.getpid(), signal.SIGSTOP)
    return step(run)

Run.step = paused
main()
"""


@pytest.fixture
def paused_before():
    """Starts a process that comes to a halt before a step, holding its directory."""
    running: list[subprocess.Popen[str]] = []

    def start(step: int, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PAUSED, str(step), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": SOURCE},
            text=True,
        )
        running.append(process)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it ended instead"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def lines_until(process: subprocess.Popen[str], step: int) -> str:
    """What it has said so far: lines have to come while the process is running."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.split()[:2] == ["step", f"{step}/40"]:
            return said
    raise AssertionError(f"step {step} never came: {said}")


def rows(directory: Path) -> list[tuple]:
    """Everything in metrics.jsonl that is not a time or a size."""
    names = ("kind", "step", "tokens", "loss", "bits_per_byte", "grad_norm", "lr", "moved")
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [tuple(str(row.get(name)) for name in names) for row in found]


def test_killed_stopped_and_resumed_run_is_the_undisturbed_one(tmp_path, cli, paused_before):
    book, cut, whole = tmp_path / "book.txt", tmp_path / "cut", tmp_path / "whole"
    book.write_text("the cat sat on the mat, and the hen sat on the cat. " * 40)

    first = paused_before(9, "train", book, "--out", cut, *OPTIONS)
    assert lines_until(first, 8).count("bits/byte") == 8
    code, _, told = cli("train", "--out", cut, "--resume", "--threads", "1")
    assert code == 2
    assert told.count("\n") == 1
    assert f"another process is writing this run (process {first.pid} on" in told
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL

    second = paused_before(21, "train", "--out", cut, "--resume", "--threads", "1")
    assert "resumed at step 6 of 40" in lines_until(second, 20)
    second.send_signal(signal.SIGTERM)
    second.send_signal(signal.SIGCONT)
    out, err = second.communicate(timeout=100)
    assert (second.returncode, err) == (0, "")
    assert "SIGTERM: saved and stopped at step 21\n" in out
    assert f"to go on: nestling train --out {cut} --resume" in out

    code, out, _ = cli("train", "--out", cut, "--resume", "--threads", "1")
    assert code == 0
    assert "resumed at step 21 of 40" in out

    assert cli("train", book, "--out", whole, *OPTIONS)[0] == 0
    assert rows(cut) == rows(whole)
    assert len(rows(whole)) == 44
    for name in ("model.safetensors", "optimizer.safetensors"):
        last = [run / "step-00000040" / name for run in (cut, whole)]
        assert last[0].read_bytes() == last[1].read_bytes()


def test_module_runs_from_a_source_tree():
    done = subprocess.run(
        [sys.executable, "-m", "nestling", "--version"],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"nestling {nestling.__version__}\n"

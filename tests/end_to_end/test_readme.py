"""The tour of the README works: its Python from top to bottom, its commands as printed."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nestling.cli import app

README = (Path(__file__).parents[2] / "README.md").read_text()
TOUR = README.split("## Ten lines")[1].split("## What is inside")[0]
PYTHON = re.findall(r"```python\n(.*?)```", TOUR, flags=re.DOTALL)
[COMMANDS] = re.findall(r"```bash\n(.*?)```", TOUR, flags=re.DOTALL)


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_tour_runs(somewhere, capsys):
    scope: dict = {}
    torch.manual_seed(0)
    said = []
    for block in PYTHON:
        exec(block, scope)
        said.append(capsys.readouterr().out)
    everything = "".join(said)
    assert "blocks.0.mixer.memory" in said[0]
    moved = re.findall(r"levels\.\d: moved ([\d.]+) in (\d+) writes", everything)
    assert len(moved) == 6
    assert all(float(share) > 0 and int(writes) > 0 for share, writes in moved)
    # The fastest level of the first block was reset, no other one.
    model, state = scope["model"], scope["loss"]
    assert torch.isfinite(state)
    assert (somewhere / "sessions" / "alice" / "journal.json").exists()
    assert re.search(r"^76 ", everything, flags=re.MULTILINE)
    assert "optimizer.exp_avg" in everything
    told = re.search(r"([\d.]+) nats per byte without what it has read, ([\d.]+) with", everything)
    assert told is not None
    assert float(told[2]) < float(told[1]) - 0.3
    assert scope["reads"].shape == (2, 4, 100, 16)
    assert model.config.continuum.chain[0].regime.kept == 0.9


def test_the_commands_of_the_tour_run(somewhere):
    notes = somewhere / "my-notes"
    notes.mkdir()
    text = "What was written first, and what came after it, on another day. " * 300
    (notes / "one.txt").write_text(text)
    (somewhere / "diary.txt").write_text(text[:3000])
    lines = [line.split("#")[0].strip() for line in COMMANDS.strip().splitlines()]
    assert {line.split()[1] for line in lines} == {
        "train", "generate", "inspect", "session", "learn",
    }  # fmt: skip
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "nestling"
        if words[1] == "train":  # shorter, otherwise as printed
            steps = words.index("--steps") + 1
            words[steps] = str(int(words[steps]) // 250)
            if "--resume" not in words:
                words += ["--batch", "1", "--length", "128"]
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    assert (somewhere / "levels.svg").read_text().startswith("<")
    assert (somewhere / "sessions" / "me" / "journal.json").exists()
    assert (somewhere / "learned" / "record.json").exists()

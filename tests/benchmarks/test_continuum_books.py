from __future__ import annotations

import doctest
import json
import math
import random

import pytest
import torch

from benchmarks import continuum_books as benchmark
from benchmarks.language_modelling import Job
from nestling.models import build, observe
from nestling.optim import NonFiniteError
from nestling.train import TrainConfig

TINY = ["--width", "16", "--heads", "2", "--layers", "1", "--steps", "2", "--batch", "2",
        "--length", "300", "--windows", "2", "--held", "1500", "--window", "32"]  # fmt: skip
MODELS = ["mlp", "sequential-1-local", "independent-2-loss"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = random.Random(0).choices(["reading", "is", "writing", "every", "memory"], k=3000)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(words))
    return path


def test_rows_table_and_a_second_call(text, tmp_path, capsys):
    command = ["--text", str(text), "--out", str(tmp_path), "--seeds", "0", "1", "--models",
               *MODELS, *TINY]  # fmt: skip
    rows = benchmark.main(command)
    assert [(row["model"], row["seed"]) for row in rows] == [(m, s) for s in (0, 1) for m in MODELS]
    assert all(set(row["bits_per_byte"]) == {"0-256", "256-1024", "1024-2048"} for row in rows)
    assert all(5 < bits < 9 for row in rows for bits in row["bits_per_byte"].values())
    sizes = [row["parameters"] for row in rows]
    assert max(sizes) / min(sizes) < 1.02
    levels = {row["model"]: row["levels"] for row in rows}
    assert levels["mlp"] == {}
    assert levels["sequential-1-local"]["blocks.0.continuum.levels.0"]["writes"] == 1501 // 256
    fast, slow = (levels["independent-2-loss"][f"blocks.0.continuum.levels.{i}"] for i in (0, 1))
    assert (fast["writes"], slow["writes"]) == (1500 // 64, 1500 // 512)
    before = (tmp_path / "results.jsonl").read_bytes()
    capsys.readouterr()
    assert benchmark.main(command) == rows
    assert (tmp_path / "results.jsonl").read_bytes() == before
    out = capsys.readouterr().out
    assert "run " not in out
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")][2:] == [
        f"| {name}" for name in MODELS
    ]


@pytest.mark.parametrize("source", ["local", "backprop"])
def test_positions_are_those_of_the_whole_window(source):
    """Against one call for the whole window, byte by byte."""
    torch.manual_seed(0)
    model = build("transformer", width=16, heads=2, layers=1, window=32, periods=(64, 300),
                  regime="in_context", source=source, step_size=0.5).double()  # fmt: skip
    windows = torch.randint(256, (2, 1301))
    found = benchmark.by_position(model, windows)
    with torch.no_grad():
        nats = observe(model, windows).nats[:, 1:].mean(0) / math.log(2)
    assert set(found) == {"0-256", "256-1024", "1024-2048"}
    for place, value in found.items():
        start, stop = map(int, place.split("-"))
        assert value == pytest.approx(float(nats[start:stop].mean()), rel=1e-9)


def test_a_run_that_diverges_is_a_row(tmp_path, monkeypatch):
    def fails(config, model, stream, *, output):
        output.directory.mkdir(parents=True)
        (output.directory / "metrics.jsonl").write_text("")
        raise NonFiniteError("stopped at step 1")

    monkeypatch.setattr(benchmark, "train", fails)
    config = build("transformer", width=16, heads=2, layers=1).config
    job = Job("sequential-1-local", config, TrainConfig(steps=2, batch=1, length=8), {})
    row = benchmark.run(job, torch.arange(100), torch.zeros(1, 20).long(), tmp_path)
    assert row["diverged"] == "stopped at step 1"
    assert json.loads(json.dumps(row)) == row
    assert "0 (diverged)" in benchmark.table([row])


def test_too_little_text(text, tmp_path):
    with pytest.raises(ValueError, match="too few, at least 65,540"):
        benchmark.main(["--text", str(text), "--out", str(tmp_path), *TINY[:-4], "--window", "32"])


def test_examples():
    assert doctest.testmod(benchmark).failed == 0

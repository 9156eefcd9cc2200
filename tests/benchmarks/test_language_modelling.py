from __future__ import annotations

import doctest
import json
import os
import random
import signal
import statistics

import pytest
import torch

from benchmarks import language_modelling as benchmark
from nestling.models import LanguageModel, build
from nestling.train import latest, read

PLACES = ["0-128", "128-512", "512-1024", "1024-2048"]
SHAPE = ["--width", "32", "--heads", "2", "--layers", "1"]
TINY = [*SHAPE, "--steps", "4", "--batch", "2", "--length", "32", "--windows", "2"]
MODELS = ["hope", "transformer+conv"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = random.Random(0).choices(["reading", "is", "writing", "every", "memory"], k=3000)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(words))
    return path


@pytest.fixture(scope="module")
def out(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    benchmark.main(command(text, folder))
    return folder


def command(text, out, *more):
    models = ["--models", *MODELS, "--seeds", "0", "1"]
    return ["--text", str(text), "--out", str(out), *models, *TINY, *more]


def rows_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_table_is_the_mean_and_range_of_the_rows(text, out, capsys):
    rows = rows_of(out)
    assert [(row["model"], row["seed"]) for row in rows] == [
        (model, seed) for seed in (0, 1) for model in MODELS
    ]
    benchmark.main(command(text, out))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert cells[0] == ["model", "parameters", "seeds", *PLACES, "tokens/s"]
    assert [line[0] for line in cells[2:]] == MODELS
    for line in cells[2:]:
        own = [row for row in rows if row["model"] == line[0]]
        for cell, place in zip(line[3:7], PLACES, strict=True):
            values = [row["bits_per_byte"][place] for row in own]
            mean, low, high = (float(n.strip("[],")) for n in cell.split())
            assert mean == pytest.approx(statistics.mean(values), abs=6e-4)
            assert (low, high) == pytest.approx((min(values), max(values)), abs=6e-4)
        assert all(4 < value < 10 for row in own for value in row["bits_per_byte"].values())


def test_second_call_trains_nothing_and_other_settings_do(text, out, capsys):
    before = (out / "results.jsonl").read_bytes()
    benchmark.main(command(text, out))
    assert "run " not in capsys.readouterr().out
    assert (out / "results.jsonl").read_bytes() == before
    other = ["--models", "transformer+conv", "--seeds", "1", "--steps", "5"]
    benchmark.main(command(text, out, *other))
    assert (out / "results.jsonl").read_bytes().startswith(before)
    assert [row["steps"] for row in rows_of(out)] == [4, 4, 4, 4, 5]
    (out / "results.jsonl").write_bytes(before)


def test_seeds_differ_and_models_have_equal_size(out):
    rows = rows_of(out)
    for model in MODELS:
        one, other = (row["bits_per_byte"] for row in rows if row["model"] == model)
        assert all(one[place] != other[place] for place in PLACES)
    sizes = [row["parameters"] for row in rows]
    assert max(sizes) / min(sizes) < 1.02


def test_a_run_without_its_row_is_measured_from_its_checkpoint(text, out):
    path = out / "results.jsonl"
    before, rows = path.read_bytes(), rows_of(out)
    checkpoints = {p: latest(p) for p in (out / "runs").iterdir()}
    path.write_text(json.dumps(rows[0]) + "\n")
    benchmark.main(command(text, out))
    again = rows_of(out)
    assert [row["bits_per_byte"] for row in again] == [row["bits_per_byte"] for row in rows]
    assert {p: latest(p) for p in (out / "runs").iterdir()} == checkpoints
    path.write_bytes(before)


def test_interrupted_run_goes_on_to_the_same_numbers(text, out, tmp_path, monkeypatch):
    """Half of the run is done and saved, as a signal does it; the rest follows."""
    whole = next(row for row in rows_of(out) if (row["model"], row["seed"]) == ("hope", 1))
    real = benchmark.train

    def stopping(config, model, stream, *, output):
        def at_two(step):
            if step.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        return real(config, model, stream, output=output, on_step=at_two)

    arguments = command(text, tmp_path, "--models", "hope", "--seeds", "1")
    monkeypatch.setattr(benchmark, "train", stopping)
    with pytest.raises(benchmark.StoppedError, match=r"SIGTERM: hope, seed 1 is saved at step 2"):
        benchmark.main(arguments)
    assert not (tmp_path / "results.jsonl").exists()
    folder = next((tmp_path / "runs").iterdir())
    assert read(folder).step == 2
    monkeypatch.setattr(benchmark, "train", real)
    (row,) = benchmark.main(arguments)
    assert row["bits_per_byte"] == whole["bits_per_byte"]
    assert row["train_bits_per_byte"] == whole["train_bits_per_byte"]


def test_by_position_is_the_mean_of_each_part():
    """Against a loop over single windows and bytes."""
    torch.manual_seed(0)
    model: LanguageModel = build("transformer", width=16, heads=2, layers=1)
    windows = torch.randint(256, (3, benchmark.WINDOW + 1))
    found = benchmark.by_position(model, windows)
    bits = []
    for window in windows:
        with torch.no_grad():
            logits, _ = model(window[None, :-1])
        chosen = logits[0].double().log_softmax(-1).gather(1, window[1:, None])[:, 0]
        bits.append((-chosen / torch.log(torch.tensor(2.0, dtype=torch.float64))).tolist())
    for place in PLACES:
        start, stop = map(int, place.split("-"))
        expected = statistics.mean(b for row in bits for b in row[start:stop])
        assert found[place] == pytest.approx(expected, rel=1e-6)


def test_held_out_text_is_not_trained_on():
    ids = torch.arange(30_000)
    kept, held = benchmark.split(ids, windows=5, length=512)
    assert held.shape == (5, 2049)
    assert torch.equal(torch.cat([kept, held.flatten()]).sort().values, ids)
    assert bool((held.diff(dim=1) == 1).all())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "words.txt: no such file or folder"),
        ("a" * 8_195, "text: 8,195 bytes are too few for 2 held-out windows of 2,049 bytes"),
    ],
)
def test_bad_text(content, told, tmp_path):
    if content is not None:
        (tmp_path / "words.txt").write_text(content)
    with pytest.raises(ValueError, match=told):
        benchmark.main(command(tmp_path / "words.txt", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_broken_row_is_named(text, tmp_path):
    (tmp_path / "results.jsonl").write_text('{"model": "hope"}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 1: not a row of results"):
        benchmark.main(command(text, tmp_path))


def test_examples():
    assert doctest.testmod(benchmark).failed == 0

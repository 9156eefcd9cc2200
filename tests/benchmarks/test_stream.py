"""A stream without end: the same rows and the same state wherever it was interrupted."""

import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import stream as benchmark
from nestling.data import TextStream
from nestling.models import build
from nestling.train import Output, TrainConfig, train

OWN = ("cpu_us_per_token", "resident_mb")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    torch.manual_seed(0)
    model = build("deltanet", width=16, heads=2, layers=1, periods=(4, 64), regime="in_context")
    ids = torch.randint(97, 123, (4000,))
    config = TrainConfig(steps=1, batch=1, length=64)
    train(config, model, TextStream(ids, batch=1, length=64), output=Output(directory=folder / "r"))
    text = folder / "text.txt"
    text.write_bytes(bytes(ids.tolist()))
    return folder / "r", text


def read(run, out, *more):
    checkpoint, text = run
    words = [str(checkpoint), "--text", str(text), "--out", str(out), "--every", "1500"]
    return benchmark.main([*words, "--piece", "500", *map(str, more)])


def numbers(out):
    rows = [json.loads(line) for line in (out / benchmark.ROWS).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in OWN} for row in rows]


def test_an_interrupted_stream_goes_on_to_the_same_bits(run, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rows = read(run, whole, "--tokens", 6000)  # longer than the text, which begins again
    read(run, parts, "--tokens", 3000)
    read(run, parts, "--tokens", 6000)
    assert numbers(whole) == numbers(parts)
    one, two = (load_file(out / benchmark.STATE) for out in (whole, parts))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [row["tokens"] for row in rows] == [1500, 3000, 4500, 6000]
    assert len({row["state_bytes"] for row in rows}) == 1
    assert all(6 < row["bits_per_byte"] < 9 for row in rows)
    levels = [row["memories"]["blocks.0.continuum.levels.1"] for row in rows]
    assert all(norm > 0 and far > 0 for norm, far in levels)
    assert (whole / benchmark.PICTURE).stat().st_size > 10_000


def test_a_reset_stream_starts_anew(run, tmp_path):
    rows = read(run, tmp_path, "--tokens", 3000, "--reset", 1500)
    again = read(run, tmp_path / "kept", "--tokens", 3000)
    assert rows[0]["memories"] == again[0]["memories"]
    assert rows[1]["memories"] != again[1]["memories"]


@pytest.mark.parametrize(("word", "value"), [("--tokens", 0), ("--piece", 0), ("--reset", 700)])
def test_bad_options_are_named(run, tmp_path, word, value):
    with pytest.raises(ValueError, match=word[2:]):
        read(run, tmp_path, word, value)

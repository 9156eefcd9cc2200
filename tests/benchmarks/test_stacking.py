from __future__ import annotations

import doctest
import json
import random

import pytest
import torch

from benchmarks import stacking as benchmark

SMALL = ["--width", "16", "--hidden", "24", "--heads", "2", "--layers", "3", "--length", "64",
         "--threads", "1"]  # fmt: skip
EFFECT = [*SMALL, "--steps", "3", "--batch", "2", "--bytes", "1100", "--streams", "2",
          "--windows", "4", "--levels", "1", "2", "--step-sizes", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for seed, name in enumerate(("books", "python", "german")):
        words = random.Random(seed).choices(["reading", "is", "writing", "every", name], k=6000)
        (folder / name).write_text(" ".join(words))
    return [part for name in ("books", "python", "german")
            for part in (f"--{name}", str(folder / name))]  # fmt: skip


def test_rows_and_a_second_call(texts, tmp_path):
    command = ["--suite", "effect", "--out", str(tmp_path), *texts, *EFFECT]
    rows = benchmark.main(command)
    assert [(row["levels"], row["domain"]) for row in rows] == [
        (levels, domain)
        for levels in ([256], [256, 1024])
        for domain in ("python", "german", "books")
    ]
    for row in rows:
        assert 6 < row["without"] < 9
        assert row["with"] != row["without"]
        assert row["books_after"] != row["books_before"]
        assert len(row["moved"]) == 3
        assert all(value > 0 for value in row["moved"].values())
    # Without writes nothing depends on the levels.
    assert rows[0]["without"] == rows[3]["without"]
    assert {row["books_before"] for row in rows} == {rows[0]["books_before"]}
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert benchmark.main(command) == rows
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6


def test_what_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "TOKENS", 1100)
    monkeypatch.setattr(benchmark, "COSTS", {
        "one": {"periods": (512,)}, "last": {"periods": (512,), "last": 3, "rank": 2},
    })  # fmt: skip
    rows = benchmark.main(["--suite", "overhead", "--out", str(tmp_path), "--vocab", "64",
                           "--pairs", "1", *SMALL])  # fmt: skip
    assert [row["name"] for row in rows] == ["one", "last"]
    assert [row["state_mb"] for row in rows] == [
        pytest.approx(3 * 2 * 4 * 24 * 16 / 1e6, abs=0.01),
        pytest.approx(2 * 4 * 2 * (24 + 16) / 1e6, abs=0.01),
    ]
    assert all(row["times"] > 0 and row["writes"] == {"0": 2.0} for row in rows)


def test_online_bits_are_those_of_the_model():
    torch.manual_seed(0)
    options = benchmark.options_of(["--suite", "overhead", *SMALL])
    model = benchmark.llama(options, 256, 256)
    rows = torch.randint(256, (2, 60))
    net = benchmark.stacked(model, (100,), step_size=0.0)
    bits, _ = benchmark.online(net, rows)
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    expected = -logits.gather(-1, rows[:, 1:, None])[..., 0] / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(bits[:, 1:], expected, rtol=1e-4, atol=1e-4)
    assert benchmark.mean(bits) == pytest.approx(float(expected.mean()), abs=1e-3)


def test_books_are_needed_for_the_effect():
    with pytest.raises(SystemExit):
        benchmark.options_of(["--suite", "effect"])


def test_doctests():
    assert doctest.testmod(benchmark).failed == 0

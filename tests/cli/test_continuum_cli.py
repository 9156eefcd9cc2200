"""Levels in context from the command line, by their plain words: train, inspect, feed, show."""

import re
from pathlib import Path

import pytest

WORDS = ["periods=[8,20]", "regime=in_context", "variant=nested", "step_size=0.5"]
SMALL = ["width=16", "heads=2", "layers=1", "hidden=16", *WORDS]
TEXT = "the cat sat on the mat, and the hen sat on the cat.\n" * 30


@pytest.fixture(autouse=True)
def _place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT)


@pytest.mark.parametrize("source", ["local", "backprop"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_train_inspect_feed_and_show(cli, source, precision):
    options = [part for word in [*SMALL, f"source={source}"] for part in ("--set", word)]
    code, out, err = cli("train", "book.txt", "--preset", "hope_attention", "--steps", 3, "--batch",
                         2, "--length", 48, "--carry-state", "--device", "cpu", "--precision",
                         precision, "--out", "run", *options)  # fmt: skip
    assert (code, err) == (0, "")
    assert "dead" not in out
    code, out, _ = cli("inspect", "run")
    assert code == 0
    told = "next-token loss" if source == "backprop" else "local L2"
    for level, period in ((0, 8), (1, 20)):
        assert re.search(rf"\b{period} +blocks\.0\.continuum\.levels\.{level} .*{told}", out)
    assert "dead" not in out
    assert cli("session", "feed", "s", "book.txt", "--checkpoint", "run")[0] == 0
    code, out, _ = cli("session", "diff", "s@1", "s@2")
    assert code == 0
    moved = dict(re.findall(r"^ (blocks\S+) +(\S+) *$", out, flags=re.MULTILINE))
    levels = {f"blocks.0.continuum.levels.{i}" for i in (0, 1)}
    assert levels <= set(moved)
    assert all(float(moved[name]) > 0 for name in levels)
    assert cli("session", "generate", "s", "--bytes", 20)[0] == 0
    assert cli("generate", "run", "--prompt", "the cat", "--bytes", 20)[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["source=backwards", "regime=in_context"], "source: expected one of"),
        (["variant=parallel"], "variant: expected one of"),
        (["error_rule=adam"], "error_rule: no level is in context"),
        (["regime=sometimes"], "regime: expected one of"),
        (["source=backprop_second_order", "regime=in_context"], "order=2"),
    ],
)
def test_words_that_mean_nothing_are_named(cli, words, told):
    options = [part for word in words for part in ("--set", word)]
    code, _, err = cli("inspect", "hope", *options)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1

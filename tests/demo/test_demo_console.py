"""What ``nestling demo`` says, also when it is interrupted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nestling import demo
from nestling.demo import console as module
from nestling.report import read_results

from .test_demo_run import BUDGET, TEXTS


@pytest.fixture(name="small")
def _small(monkeypatch):
    monkeypatch.setattr(module, "SHORT", BUDGET)
    monkeypatch.setattr(module, "MINUTES", {BUDGET: "no time"})


@pytest.fixture(name="files")
def _files(tmp_path):
    for name, text in TEXTS:
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return [tmp_path / f"{name}.txt" for name, _ in TEXTS]


def test_the_users_texts_are_learned_in_their_order(small, files, tmp_path):
    printed = io.StringIO()
    results = demo.main(
        files[::-1],
        out=tmp_path / "out",
        seed=3,
        short=True,
        console=Console(file=printed, width=200),
    )
    assert results.domains == ["ticks", "counting"]
    assert {row.seed for row in results.rows} == {3}
    said = printed.getvalue()
    assert "learn 2 texts, one after the other: ticks, counting." in said
    assert "768 bytes each, in 12 steps" in said
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in said


def test_an_interrupted_run_says_where_its_report_is(small, files, tmp_path, monkeypatch):
    printed = io.StringIO()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nestling.demo.runner._Run._read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.main(files, out=tmp_path / "out", short=True, console=Console(file=printed, width=200))
    assert "Stopped. What was measured until now:" in printed.getvalue()
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert not results.finished
    assert results.phases_done() == 2
    assert (tmp_path / "out" / "report.html").exists()

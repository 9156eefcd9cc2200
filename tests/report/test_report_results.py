"""Results files: what is written is read, also after a kill; damage is named."""

from __future__ import annotations

import json
import math

import pytest

from nestling.report import Measurement, ResultsWriter, read_results
from nestling.report.results import TableRow

RUN = {"domains": [], "models": []}


def row(value: float, **more) -> Measurement:
    return Measurement(
        model="m", metric="x", value=value, phase=1, step=2, tokens=64, **more
    )  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    part = TableRow(
        model="m", number=1, period=None, name="n", memory="M", rule="r", context_flow="c",
        parameters=7,
    )  # fmt: skip
    with ResultsWriter(path, RUN) as writer:
        writer.add(part)
        writer.add(row(0.1, domain="é", part="p", error=0.5, seed=4))
        # Before the writer is closed everything is there for others to read.
        assert read_results(path).rows == (row(0.1, domain="é", part="p", error=0.5, seed=4),)
        assert not read_results(path).finished
        writer.finish(1.25)
    results = read_results(path)
    assert results.table == (part,)
    assert (results.finished, results.run["seconds"]) == (True, 1.2)


def test_a_matrix_is_filled_where_it_was_measured(write):
    results = read_results(write())
    assert results.matrix("transformer") == [[8.0, 8.0], [2.0, 7.0], [4.0, 2.0]]
    assert results.phases_done() == 2
    # run, two components, phase 0 (2 models x 4 lines), phase 1 of Hope only.
    results = read_results(write(keep=3 + 8 + 7))
    table = results.matrix("hope")
    assert table[1] == [2.5, 6.0]
    assert all(map(math.isnan, table[2]))
    assert results.phases_done() == 0
    assert read_results(write(keep=1)).phases_done() == 0


def test_a_line_cut_by_a_kill_is_left_out(write):
    path = write()
    whole = path.read_bytes()
    for cut in (len(whole) - 2, len(whole) - 20, whole.index(b"\n") + 5):
        path.write_bytes(whole[:cut])
        results = read_results(path)
        assert len(results.rows) == max(whole[:cut].count(b"\n") - 3, 0)
        assert not results.finished


def test_damage_elsewhere_is_named(write):
    path = write()
    whole = path.read_text(encoding="utf-8").split("\n")
    whole[4] = whole[4][:-3]
    path.write_text("\n".join(whole), encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 5 is damaged"):
        read_results(path)


def test_what_is_no_results_file_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match=r"cannot read .*No such file"):
        read_results(path)
    for text in ("", json.dumps({"kind": "run", "format": 99, **RUN}) + "\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="not a results file of format 1"):
            read_results(path)
    path.write_text('{"kind": "surprise"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is damaged: unknown kind 'surprise'"):
        read_results(path)


def test_an_older_file_is_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    for value in (1.0, 2.0, 3.0):
        with ResultsWriter(path, RUN) as writer:
            writer.add(row(value))
    values = {
        name: read_results(tmp_path / name).rows[0].value
        for name in ("results.jsonl", "results.1.jsonl", "results.2.jsonl")
    }
    assert values == {"results.jsonl": 3.0, "results.1.jsonl": 1.0, "results.2.jsonl": 2.0}


def test_a_number_that_is_none_is_never_written(tmp_path):
    with ResultsWriter(tmp_path / "r.jsonl", RUN) as writer:
        writer.add(row(1.0))
        with pytest.raises(ValueError, match=r"cannot write .*nan"):
            writer.add(row(math.nan))
    assert [r.value for r in read_results(tmp_path / "r.jsonl").rows] == [1.0]

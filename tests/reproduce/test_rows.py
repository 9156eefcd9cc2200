"""Rows of stream benchmarks: written whole, read back, skipped when they are there."""

from __future__ import annotations

import json
import math

import pytest
import torch

from nestling.continual.protocol import Batch, Cost, Experience
from nestling.continual.record import Probe, Record
from nestling.continual.run import run
from nestling.continual.scoring import error_rate
from nestling.continual.strategies import Sequential
from nestling.continual.stream import Stream
from nestling.reproduce.rows import BITS, append, done, read, row_of

KEY = {"task": "toy", "strategy": "sequential", "model": "linear", "seed": 1, "settings": {"lr": 1}}


def finished(**more) -> Record:
    values = {
        "names": ("a", "b"),
        "phases": ("a", "b"),
        "R": ((8.0, 8.0), (2.0, 7.0), (3.0, 2.0)),
        "seen": (0, 10, 20),
        "online": ((math.log(2) * 4, 10), (math.log(2) * 2, 10)),
        "online_unit": "nats",
        "costs": (Cost(), Cost(1, 2, 2), Cost(7, 40, 20)),
        "seconds": 1.5,
        "finished": True,
    }
    return Record(**{**values, **more})


def test_a_row_comes_back(tmp_path):
    file = tmp_path / "rows" / "toy.jsonl"
    row = row_of(finished(), **KEY, unit=BITS)
    assert row["online"] == pytest.approx(3.0)
    assert row["cost"] == {"stored_bytes": 7, "forward": 40, "backward": 20}
    assert "curve" not in row
    append(row, file)
    append({**row, "seed": 2}, file)
    rows = read(file)
    assert rows == [row, {**row, "seed": 2}] == read(tmp_path / "rows")
    assert done(rows, **KEY)
    assert not done(rows, **{**KEY, "seed": 3})
    assert not done(rows, **{**KEY, "settings": {"lr": 2}})
    assert not done(rows, **{**KEY, "strategy": "replay"})


def test_tuples_in_settings_are_the_lists_they_become(tmp_path):
    key = {**KEY, "settings": {"periods": (1, 8)}}
    file = append(row_of(finished(), **key, unit=BITS), tmp_path / "toy.jsonl")
    assert done(read(file), **key)


def test_online_is_given_only_in_the_unit_of_the_matrix():
    assert row_of(finished(), **KEY)["online"] is None  # nats beside an error rate
    assert row_of(finished(online_unit="error rate"), **KEY)["online"] == pytest.approx(
        3 * math.log(2)
    )
    assert row_of(finished(online_unit="bits"), **KEY, unit=BITS)["online"] == pytest.approx(
        3 * math.log(2)
    )


def test_the_row_of_a_real_run(tmp_path):
    items = Batch(torch.eye(4), torch.arange(4) % 2)
    parts = [Experience("a", items), Experience("b", items)]
    record = run(
        Sequential(torch.nn.Linear(4, 2)), Stream(parts, batch=2), parts, online=error_rate
    )
    (row,) = read(append(row_of(record, **KEY), tmp_path / "toy.jsonl"))
    assert row["R"] == [list(line) for line in record.R]
    assert row["cost"]["forward"] == 8
    assert row["online"] == record.metrics()["online_average"]


def test_curves_are_kept_where_there_are_more_points_than_rows():
    probes = tuple(Probe(seen, (1.0, 2.0)) for seen in (0, 5, 10, 20))
    curve = row_of(finished(probes=probes, seen=(0, 10, 20)), **KEY, unit=BITS)["curve"]
    assert curve == {"seen": [0, 5, 10, 20], "losses": [[1.0, 2.0]] * 4, "ends": [0, 10, 20]}


def test_a_line_that_a_kill_cut_off_is_left_out_and_stays_alone(tmp_path):
    row = row_of(finished(), **KEY, unit=BITS)
    file = append(row, tmp_path / "toy.jsonl")
    file.write_text(file.read_text() + json.dumps(row)[:40])
    assert read(file) == [row]
    append(row, file)
    assert read(file) == [row, row]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": None}, "'task' is a NoneType"),
        ({"names": ["a"]}, "'R' has not 1 columns"),
        ({"R": [[1.0, 2.0]]}, "'R' has 1 rows for 2 phases"),
        ({"phases": ["a"], "R": [[1.0, 2.0]]}, "1 phases and 2 experiences"),
        ({"R": [[1.0, 2.0], [1.0, math.inf]]}, "not finite"),
        ({"cost": {"forward": 1, "backward": 1}}, "'cost' has no 'stored_bytes'"),
    ],
)
def test_bad_rows_are_refused_and_named(tmp_path, change, named):
    row = row_of(finished(), **KEY, unit=BITS)
    with pytest.raises(ValueError, match=named):
        append({**row, **change}, tmp_path / "toy.jsonl")
    assert not (tmp_path / "toy.jsonl").exists()
    (tmp_path / "bad.jsonl").write_text(json.dumps({**row, **change}) + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: "):
        read(tmp_path / "bad.jsonl")


def test_unfinished_runs_and_other_units_are_refused():
    with pytest.raises(ValueError, match="finished"):
        row_of(finished(finished=False), **KEY)
    with pytest.raises(ValueError, match="unit: expected"):
        row_of(finished(), **KEY, unit="nats")

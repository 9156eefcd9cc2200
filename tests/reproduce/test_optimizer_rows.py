"""Rows about optimizers: chosen, made, shown, and the page that they give."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from small_digits import patterns
from torch import nn

from nestling.reproduce import measured
from nestling.reproduce.driver import TARGETS, Request, reproduce
from nestling.reproduce.measured import Measured, Measurement, Place, Where, measure, read
from nestling.reproduce.optimizers import cost, digits, methods, training, training_page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "optimizers.md"
EVERY = TARGETS["optimizers"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return patterns(tmp_path_factory.mktemp("data"))


def quiet(text: str) -> None:
    pass


def small(**more) -> training.Problem:
    """Two features decide between two classes."""

    def examples(data, part):
        draw = torch.Generator().manual_seed({"train": 0, "validation": 1, "test": 2}[part])
        x = torch.randn(400, 8, generator=draw)
        return x, (x[:, 0] > x[:, 1]).long()

    def model():
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    values = {"name": "toy", "model": model, "data": examples, "batch": 16, "steps": 40,
              "unit": "nats"}  # fmt: skip
    return training.Problem(**{**values, **more})


class TestTraining:
    @pytest.mark.parametrize("name", methods.METHODS)
    def test_every_method_learns_and_the_seed_decides(self, name):
        method = methods.METHODS[name]
        lr = 0.3 if method.grid is methods.PLAIN else 0.03

        def run(seed):
            return training.run(small(), method, Path(), lr=lr, seed=seed, part="test", say=quiet)

        first, again, other = run(0), run(0), run(1)
        assert first["curve"] == again["curve"] != other["curve"]
        assert [step for step, _, _ in first["curve"]] == list(range(4, 41, 4))
        # DGD as printed erases what it has learned (docs/optimizers.md)
        assert first["held_out"] < (0.7 if name == "DGD" else 0.55)
        assert first["held_out"] == first["curve"][-1][2]

    def test_what_diverges_says_when(self):
        found = training.run(
            small(), methods.METHODS["momentum"], Path(), lr=1e30, seed=0, part="test", say=quiet
        )
        assert 0 < found["diverged"] <= 40
        assert "held_out" not in found

    def test_bits_are_nats_over_the_logarithm_of_two(self):
        method = methods.METHODS["AdamW"]
        nats, bits = (
            training.run(small(unit=unit), method, Path(), lr=0.01, seed=0, part="test", say=quiet)
            for unit in ("nats", "bits")
        )
        assert bits["held_out"] == pytest.approx(nats["held_out"] / math.log(2), rel=1e-12)

    def test_step_sizes_come_first_and_the_best_of_them_is_taken(self):
        first = training.measurements(Path(), "cpu", [])
        assert {one.task for one in first} == {f"tune-{name}" for name in training.PROBLEMS}

        def row(lr, loss, task="tune-vit"):
            key = {"optimizer": "AdamW", "lr": lr, "seed": methods.TUNING}
            return {"task": task, "key": key, "result": {"held_out": loss}}

        rows = [row(1e-3, 3.0), row(2e-3, 2.0), row(4e-3, 2.5)]
        rows.append({**row(8e-3, 0.0), "result": {"diverged": 3}})
        chosen = [one.key for one in training.measurements(Path(), "cpu", rows)
                  if one.task == "learn-vit"]  # fmt: skip
        assert chosen == [{"optimizer": "AdamW", "lr": 2e-3, "seed": seed} for seed in (0, 1, 2)]

    def test_ablations_wait_for_the_step_size(self):
        assert training.ablations(Path(), "cpu", []) == []
        rows = [
            {"task": "tune-vit", "key": {"optimizer": "M3", "lr": lr, "seed": 100},
             "result": {"held_out": abs(lr - 2e-3)}}
            for lr in (1e-3, 2e-3, 4e-3)
        ]  # fmt: skip
        found = training.ablations(Path(), "cpu", rows)
        assert {one.key["lr"] for one in found} == {2e-3}
        assert len(found) == 3 * len(methods.ABLATIONS)

    def test_a_vision_transformer_learns_patterns(self, data):
        problem = training.of_size("vit", "smoke")
        found = training.run(
            problem, methods.METHODS["M3"], data, lr=4e-3, seed=0, part="test", say=quiet
        )
        assert found["held_out"] < math.log(10)


def test_learning_on_with_kept_and_with_dropped_momenta(data):
    kept, dropped = (
        digits.learn("split", "momentum", data, lr=0.1, seed=0, keep=keep, size="smoke")
        for keep in (True, False)
    )
    assert kept != dropped
    assert all(0 <= found["right"] <= 1 for found in (kept, dropped))
    lost = digits.learn("split", "momentum", data, lr=1e30, seed=0, keep=True, size="smoke")
    assert "not finite" in lost["diverged"]
    plan = digits.measurements(data, "cpu", [])
    assert {one.task for one in plan} == {"tune-split", "tune-permuted"}


def test_cost_is_measured_side_by_side():
    found = cost.measure("0.4M", "float32", 1, quiet)
    assert set(found["seconds"]) == {"AdamW", "Muon", "AdaMuon", "M3"}
    assert all(seconds > 0 for seconds in found["seconds"].values())
    # momentum; and second moment; fast, slow, the held answer and second moment
    expected = {"Muon": 4, "AdaMuon": 8, "M3": 16, "AdamW": 8}
    for name, numbers in expected.items():
        assert found["bytes"][name] == pytest.approx(numbers, rel=0.1)
    row = {"task": "cost", "key": {"parameters": "0.4M", "dtype": "float32"}, "result": found}
    assert "| M3 |" in cost.shown([row])


class TestFrame:
    def target(self, made: list) -> Measured:
        def measurements(data, size, rows):
            def make(say):
                made.append(len(rows))
                return {"value": 1.5}

            tasks = ["first"] if not rows else ["first", "second"]
            return [Measurement(task=task, key={"n": 1}, make=make) for task in tasks]

        def table(rows):
            return f"{len(rows)} rows"

        places = (Place(task="second", title="The second", table=table),)
        return Measured(title="toy", measurements=measurements, places=places, page="", file="toy")

    def test_what_depends_on_rows_is_made_after_them_and_nothing_twice(self, tmp_path):
        made: list[int] = []
        where = Where(
            data=tmp_path, rows=tmp_path / "r.jsonl", page=tmp_path / "page.md", size="smoke"
        )
        for _ in range(2):
            measure(self.target(made), where, quiet)
        assert made == [0, 1]
        assert [row["task"] for row in read(where.rows)] == ["first", "second"]
        assert "## The second" in where.page.read_text()
        assert "1 rows" in where.page.read_text()

    def test_a_damaged_row_is_named(self, tmp_path):
        (tmp_path / "r.jsonl").write_text('{"task": "a"}\n')
        with pytest.raises(ValueError, match=r"r.jsonl:1: row: 'key' is missing"):
            read(tmp_path / "r.jsonl")

    def test_the_command_takes_a_part(self, tmp_path):
        said: list[str] = []
        request = Request(
            target="fig12", data=tmp_path, rows=tmp_path, work=tmp_path, page=tmp_path / "p.md",
            size="smoke",
        )  # fmt: skip
        reproduce(request, said.append)
        rows = read(tmp_path / "optimizers-smoke.jsonl")
        assert [row["key"]["dtype"] for row in rows] == ["float32", "bfloat16"]
        assert "x AdaMuon" in (tmp_path / "p.md").read_text()


class TestPage:
    def test_example_runs(self):
        [block] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
        scope: dict = {}
        exec(block, scope)
        assert scope["optimizer"].state[next(iter(scope["model"].parameters()))]["step"] == 3

    def test_its_tables_are_those_of_the_rows(self):
        assert isinstance(EVERY, Measured)
        text, rows = PAGE.read_text(), read(ROOT / "benchmarks" / "results" / "optimizers.jsonl")
        assert rows
        for place in EVERY.places:
            own = [row for row in rows if row["task"] == place.task]
            if own:
                assert measured.insert(text, place.task, place.table(own)) == text, place.task

    def test_pictures_are_there(self):
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+\.png)\)", PAGE.read_text())
        assert pictures
        assert all((PAGE.parent / name).is_file() for name in pictures)

    def test_curves_are_drawn(self, tmp_path):
        rows = read(ROOT / "benchmarks" / "results" / "optimizers.jsonl")
        own = [row for row in rows if row["task"] == "learn-vit"]
        [file] = training_page.draw(own, tmp_path, problem="vit")
        assert file.stat().st_size > 10_000

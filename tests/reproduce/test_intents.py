"""Intents in groups on made-up texts: what is read, every strategy on it, and rows."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

import pytest
import torch

from nestling.continual.protocol import Batch, Learner
from nestling.reproduce import intents as module
from nestling.reproduce.intent_texts import GROUPS, held_out, intents, read_texts
from nestling.reproduce.job import Job
from nestling.reproduce.rows import ERRORS, row_of


def write(file: Path, rows: list[tuple[str, str]]) -> None:
    file.parent.mkdir(exist_ok=True)
    with gzip.open(file, "wt", encoding="utf8", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *rows])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """150 classes: a text says a word of its class among others."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    things = ["tea", "rent", "snow", "jazz", "gold", "corn", "silk", "moss", "iron", "wine"]
    places = ["Rome", "Lima", "Oslo", "Cairo", "Delhi", "Kyoto", "Quito", "Accra", "Perth",
              "Minsk", "Sofia", "Turin", "Basel", "Dakar", "Hanoi"]  # fmt: skip
    names = [f"{thing} in {place}" for place in places for thing in things]
    for part, count in (("train", 12), ("test", 2)):
        write(folder / f"intent_cil/clinc_{part}.csv.gz", [
            (f"{draw.choice(['please', 'now', 'and'])} tell me about {name} {n}", name)
            for name in names for n in range(count)
        ])  # fmt: skip
    return folder


class TestTexts:
    def test_sizes(self, data):
        whole = intents(data, "clinc", "cpu")
        assert (len(whole.train), len(whole.test), whole.classes) == (1800, 300, 150)
        part = intents(data, "clinc", "validation")
        assert (len(part.train), len(part.test)) == (1650, 150)
        few = intents(data, "clinc", "smoke")
        assert (len(few.train), len(few.test), few.classes) == (360, 180, 45)

    def test_what_is_held_out_is_not_learned_and_the_test_texts_are_not_touched(self, data):
        part = intents(data, "clinc", "validation")
        whole = intents(data, "clinc", "cpu")
        assert sorted(part.train + part.test) == sorted(whole.train)
        assert part.measured.bincount().tolist() == [1] * 150

    def test_another_order_of_classes_for_what_is_chosen(self, data):
        part, whole = (intents(data, "clinc", size) for size in ("validation", "cpu"))
        orders = [whole.groups(seed) for seed in range(3)] + [part.groups(0)]
        assert len({str(order) for order in orders}) == 4
        assert all(len(order) == 10 and len(order[0]) == 15 for order in orders)

    def test_a_share_of_each_class(self):
        labels = torch.tensor([0] * 20 + [1] * 4)
        assert held_out(labels, 0.1).tolist() == held_out(labels, 0.1).tolist()
        assert held_out(labels, 0.1)[:20].sum() == 2
        assert held_out(labels, 0.1)[20:].sum() == 1

    def test_errors(self, data, tmp_path):
        with pytest.raises(ValueError, match="'clinc'"):
            intents(data, "x", "cpu")
        with pytest.raises(ValueError, match=r"banking_train\.csv\.gz: no such file"):
            intents(data, "banking", "cpu")
        write(tmp_path / "intent_cil/clinc_train.csv.gz", [("hello", "greeting")])
        with pytest.raises(ValueError, match="expected 150 classes, found 1"):
            intents(tmp_path, "clinc", "cpu")
        file = tmp_path / "other.csv.gz"
        with gzip.open(file, "wt") as handle:
            handle.write("a,b\n1,2\n")
        with pytest.raises(ValueError, match="columns text and label"):
            read_texts(file)
        file.write_bytes(b"not packed")
        with pytest.raises(ValueError, match="not a whole gzip file"):
            read_texts(file)


@pytest.fixture(scope="module")
def there(data):
    return module.prepared(data, "clinc", "smoke")


@pytest.mark.parametrize("name", module.STRATEGIES)
def test_every_strategy_learns_what_it_is_given(there, name):
    build, settings = module.STRATEGIES[name]
    learner = build(there, {**settings, "random": 64, "lr": 1e-3, "head_lr": 1e-2}, 0)
    assert isinstance(learner, Learner)
    chosen = there.texts.learned < 3
    batch = Batch(there.train[chosen], there.texts.learned[chosen])
    for _ in range(12):
        learner.observe(batch)
    learner.end_experience(batch.rows(slice(0, 8)))
    learner.observe(batch)
    found = learner.predict(batch.inputs)
    assert found.shape == (24, 45)
    assert (found.argmax(1) == batch.targets).double().mean() > 0.8


def test_features_are_those_of_the_encoder(there):
    ids = there.train[:3]
    torch.testing.assert_close(there.features(ids), there.encoder.features(ids))
    assert torch.equal(there.depths(ids)[:, -384:], there.features(ids))


def test_jobs(data):
    whole = module.jobs(data, size="cpu")
    assert len(whole) == 3 * 3 * len(module.STRATEGIES)
    assert {job.task for job in whole} == {f"intents-{name}" for name in GROUPS}
    assert {job.strategy for job in whole if job.joint} == set(module.JOINT)
    assert {section.task for section in module.SECTIONS} == {job.task for job in whole}
    [changed] = [
        job for job in module.jobs(data, size="validation", change={"lr": 0.5})
        if job.strategy == "EWC" and job.task == "intents-clinc-validation"
    ]  # fmt: skip
    assert changed.settings["lr"] == 0.5


def made(job: Job, folder: Path) -> dict:
    return row_of(job.make(folder, lambda _: None), **job.key, unit=job.unit, joint=job.joint)


def test_rows(data, tmp_path):
    by_name = {job.strategy: job for job in module.jobs(data, size="smoke")}
    rows = {name: made(job, tmp_path / name) for name, job in by_name.items()}
    assert set(rows) == set(module.SMOKE)
    assert len(rows["joint"]["R"]) == 2
    ours = rows[module.OURS]
    assert ours["unit"] == ERRORS
    assert ours["new"] == 360 == ours["cost"]["forward"]
    assert [len(row) for row in ours["R"]] == [3] * 4
    assert ours["R"][1][1:] == [1.0, 1.0]  # what has not come is never the answer
    assert sum(ours["R"][3]) < sum(rows["sequential"]["R"][3])
    again = made(by_name[module.OURS], tmp_path / module.OURS)  # a finished run is only read
    assert again["R"] == ours["R"]

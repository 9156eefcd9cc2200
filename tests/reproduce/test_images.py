"""Streams of images on small made-up digits: files, experiences, rows."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_digits import idx, patterns, write

from nestling.continual import metrics
from nestling.continual.protocol import Batch
from nestling.continual.strategies import LwF
from nestling.reproduce import images as streams
from nestling.reproduce.image_data import digits, images, pairs, read_idx
from nestling.reproduce.image_learners import GrowingLwF, Heads, Perceptron, adam
from nestling.reproduce.rows import row_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return patterns(tmp_path_factory.mktemp("data"))


class TestFiles:
    def test_numbers_come_back(self, tmp_path):
        numbers = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
        (tmp_path / "a.gz").write_bytes(gzip.compress(idx(numbers)))
        assert torch.equal(read_idx(tmp_path / "a.gz"), numbers)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "no such file"),
            (b"plain", "not a whole gzip file"),
            (gzip.compress(idx(torch.zeros(2, 3)))[:-9], "not a whole gzip file"),
            (gzip.compress(b"\1\0\x08\1"), "two zero bytes"),
            (gzip.compress(b"\0"), "two zero bytes"),
            (gzip.compress(idx(torch.zeros(2), kind=13)), "type 0x08 .* got 0x0d"),
            (gzip.compress(idx(torch.zeros(2, 3))[:9]), "before the sizes of its 2 axes"),
            (gzip.compress(idx(torch.zeros(2, 3))[:-1]), r"expected 6 numbers .* got 5"),
        ],
    )
    def test_errors(self, tmp_path, content, words):
        file = tmp_path / "a.gz"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=f"a.gz: .*{words}"):
            read_idx(file)

    def test_labels_of_other_images(self, tmp_path):
        (tmp_path / "mnist").mkdir()
        write(tmp_path / "mnist", "train", torch.zeros(3, 28, 28), torch.zeros(2))
        with pytest.raises(ValueError, match="as many labels as images"):
            digits(tmp_path, "train")


class TestExperiences:
    def test_classes_in_pairs(self, data):
        found = images(data, "split", size="smoke", seed=0)
        assert [one.name for one in found.train] == ["0 1", "2 3", "4 5", "6 7", "8 9"]
        assert [one.name for one in found.test] == [one.name for one in found.train]
        assert sum(len(one.items) for one in found.train) == 400
        assert sum(len(one.items) for one in found.test) == 200
        assert found.train[2].items.targets.unique().tolist() == [4, 5]
        assert found.train[0].items.inputs.dtype == torch.uint8

    def test_orders(self):
        orders = [pairs(seed) for seed in range(4)]
        assert all(sorted(c for pair in order for c in pair) == list(range(10)) for order in orders)
        assert len({tuple(order) for order in orders}) == 4

    def test_which_classes_are_told(self, data):
        plain, told = (
            images(data, kind, size="smoke", seed=1).test[3].items for kind in ("split", "by task")
        )
        assert torch.equal(told.inputs[:, :784], plain.inputs)
        assert torch.equal(told.targets, plain.targets)
        marks = told.inputs[:, 784:]
        assert marks.unique(dim=0).nonzero()[:, 1].tolist() == sorted(pairs(1)[3])

    def test_the_first_or_the_second(self, data):
        plain, two = (
            images(data, kind, size="smoke", seed=1).train[0] for kind in ("split", "by domain")
        )
        assert torch.equal(two.items.targets == 1, plain.items.targets == pairs(1)[0][1])
        assert two.classes is None

    def test_permutations(self, data):
        found = images(data, "permuted", size="smoke", seed=0)
        first, second = (one.items.inputs for one in found.train[:2])
        assert not torch.equal(first, second)
        assert torch.equal(first.sort(1).values, second.sort(1).values)
        # the same places in training and test
        there = found.test[1].items.inputs[:5].sort(1).values
        assert torch.equal(there, found.test[0].items.inputs[:5].sort(1).values)


class TestLearners:
    def test_only_the_head_that_is_told_learns(self):
        model = Heads(8)
        x = torch.randint(256, (6, 794), dtype=torch.uint8)
        x[:, 784:] = 0
        x[:, [786, 787]] = 1
        scores = model(x)
        assert set(scores.argmax(1).tolist()) <= {2, 3}
        F.cross_entropy(scores, torch.tensor([2, 3] * 3)).backward()
        moved = model.body[5].weight.grad.abs().sum(1) > 0
        assert moved.nonzero().flatten().tolist() == [2, 3]
        within = F.cross_entropy(model.body(x[:, :784])[:, 2:4], torch.tensor([0, 1] * 3))
        torch.testing.assert_close(F.cross_entropy(model(x), torch.tensor([2, 3] * 3)), within)

    def test_lwf_grows(self):
        """As strong as there are parts behind it, also after it was saved."""
        learner = GrowingLwF(Perceptron(8), adam({"lr": 1e-3}))
        items = Batch(torch.randint(256, (4, 784), dtype=torch.uint8), torch.arange(4))
        for _ in range(3):
            learner.observe(items)
            learner.end_experience(items)
        resumed = GrowingLwF(Perceptron(8), adam({"lr": 1e-3}))
        resumed.load_state(learner.state())
        one = LwF(learner.model, adam({"lr": 1e-3}))
        one.load_memory(learner.memory())
        scores = learner.predict(items.inputs) * 2
        for grown in (learner, resumed):
            torch.testing.assert_close(
                grown.distillation(items, scores), 3 * one.distillation(items, scores)
            )

    def test_lwf_goes_on_in_every_head(self):
        learner = GrowingLwF(Heads(8), adam({"lr": 1e-2}))

        def part(first: int) -> Batch:
            x = torch.randint(256, (8, 794), dtype=torch.uint8)
            x[:, 784:] = 0
            x[:, [784 + first, 785 + first]] = 1
            return Batch(x, first + torch.arange(8) % 2)

        learner.observe(part(0))
        learner.end_experience(part(0))
        for _ in range(3):
            learner.observe(part(2))
        new = part(2)
        assert learner.distillation(new, learner.predict(new.inputs)) > 1e-6


class TestJobs:
    def test_a_list_is_cheap_and_says_what_was_chosen(self):
        jobs = streams.jobs(Path("nowhere"), size="cpu")
        assert len({job.name for job in jobs}) == len(jobs)
        assert {job.task for job in jobs} == set(streams.TASKS)
        assert {job.seed for job in jobs} == {0, 1, 2}
        for job in jobs:
            told = job.settings.get("told", False)
            assert told == (job.strategy in ("EWC", "LwF", "low rank", "Adam, moments dropped"))
            assert job.joint == (job.strategy == "joint")

    @pytest.mark.parametrize(
        ("task", "strategies"),
        [
            ("images-split", ("sequential", "discriminant", "in context, 200", "joint")),
            ("images-split-task", ("low rank", "DER++")),
            ("images-permuted", ("replay", "class means")),
            ("images-split-task-long", ("LwF", "EWC")),
            ("images-split-domain-long", ("LwF",)),
        ],
    )
    def test_rows(self, data, tmp_path, task, strategies):
        for job in streams.jobs(data, size="smoke"):
            if job.task != f"{task}-smoke" or job.strategy not in strategies:
                continue
            record = job.make(tmp_path / job.name, lambda now: None)
            row = row_of(record, **job.key, unit=job.unit, joint=job.joint)
            parts = 3 if task == "images-permuted" else 5
            assert len(row["names"]) == parts
            assert len(row["R"]) == (2 if job.joint else parts + 1)
            assert row["online"] is not None
            if job.strategy == "discriminant":  # ten patterns with noise: nothing is lost
                assert metrics.final_average(row["R"]) < 0.02
                assert metrics.forgetting(row["R"]) < 0.02

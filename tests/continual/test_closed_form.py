"""Classifiers solved from sums: against their definitions, in any order, and resumed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from nestling.continual.protocol import Batch, Learner
from nestling.continual.strategies import ClassMeans, LeastSquares, StreamingDiscriminant
from nestling.storage.packing import pack, unpack

WIDTH, CLASSES = 6, 4
ALL = {
    "class means": ClassMeans,
    "Euclidean class means": partial(ClassMeans, distance="euclidean"),
    "discriminant": partial(StreamingDiscriminant, shrinkage=0.1),
    "least squares": partial(LeastSquares, ridge=0.5),
}


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def items(seed: int = 0, count: int = 80) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    x = means[labels] + torch.randn(count, WIDTH, generator=generator)
    return Batch(x.double(), labels)


@pytest.fixture(params=ALL, ids=str)
def make(request):
    return partial(ALL[request.param], same, WIDTH, CLASSES)


class TestAll:
    def test_is_a_learner_that_learns(self, make):
        learner = make()
        assert isinstance(learner, Learner)
        learner.observe(items(1, 400))
        test = items(2, 400)
        wrong = (learner.predict(test.inputs).argmax(1) != test.targets).double().mean()
        assert wrong < 0.4  # chance is 0.75

    def test_order_makes_no_difference(self, make):
        one, other, batch = make(), make(), items()
        order = torch.argsort(batch.targets, descending=True)
        for start in range(0, 80, 16):
            one.observe(batch.rows(slice(start, start + 16)))
            other.observe(batch.rows(order[start : start + 16]))
        x = items(3).inputs
        torch.testing.assert_close(one.predict(x), other.predict(x))

    def test_goes_on_to_the_bit(self, make):
        whole, first, second = make(period=20), make(period=20), make(period=20)
        parts = [items(seed, 13) for seed in range(8)]
        expected = [whole.observe(part) for part in parts]
        found = [first.observe(part) for part in parts[:3]]
        tensors: dict[str, torch.Tensor] = {}
        plain = pack(first.state(), tensors)
        second.load_state(unpack(plain, {name: t.clone() for name, t in tensors.items()}))
        assert found + [second.observe(part) for part in parts[3:]] == expected
        x = items(3).inputs
        assert torch.equal(second.predict(x), whole.predict(x))
        assert second.cost == whole.cost

    def test_a_class_that_has_not_come_is_never_the_answer(self, make):
        learner, batch = make(), items()
        learner.observe(batch.rows(batch.targets < 2))
        assert set(learner.predict(batch.inputs).argmax(1).tolist()) == {0, 1}

    def test_unknown_label(self, make):
        with pytest.raises(ValueError, match="classes below 4, got 7"):
            make().observe(Batch(torch.zeros(1, WIDTH), torch.tensor([7])))

    def test_features_of_another_width(self, make):
        with pytest.raises(ValueError, match="features"):
            make().predict(torch.zeros(2, WIDTH + 1))


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_discriminant_is_that_of_scikit_learn(shrinkage):
    batch = items(count=200)
    learner = StreamingDiscriminant(same, WIDTH, CLASSES, shrinkage=shrinkage)
    for part in range(0, 200, 30):
        learner.observe(batch.rows(slice(part, part + 30)))
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    reference.fit(batch.inputs.numpy(), batch.targets.numpy())
    x = items(5).inputs
    expected = torch.from_numpy(reference.predict_log_proba(x.numpy()))
    torch.testing.assert_close(learner.predict(x).log_softmax(1), expected, rtol=1e-6, atol=1e-8)


def test_class_means_by_hand():
    batch, x = items(), items(4).inputs
    learner = ClassMeans(same, WIDTH, CLASSES, distance="euclidean")
    learner.observe(batch)
    means = torch.stack([batch.inputs[batch.targets == c].mean(0) for c in range(CLASSES)])
    assert torch.equal(learner.predict(x).argmax(1), torch.cdist(x, means).argmin(1))


def test_least_squares_has_no_gradient_left():
    """Its readout is a minimum of the ridge loss that it states."""
    batch = items()
    learner = LeastSquares(same, WIDTH, CLASSES, ridge=1e-9)
    learner.observe(batch)
    x = batch.inputs
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    names = torch.nn.functional.one_hot(batch.targets, CLASSES).double()
    fits = [torch.linalg.lstsq(ones, names).solution, torch.linalg.lstsq(x, names).solution]
    found = learner.predict(x)
    errors = [(found - x_ @ fit).abs().max() for x_, fit in zip((ones, x), fits, strict=True)]
    assert min(errors) < 1e-4

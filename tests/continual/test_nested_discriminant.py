"""A discriminant of two levels: against densities, against scikit-learn, resumed, and its use."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import IncrementalPCA
from torch.distributions import MultivariateNormal

from nestling.continual.protocol import Batch, Experience, Learner
from nestling.continual.run import run
from nestling.continual.scoring import error_rate
from nestling.continual.sources import by_class
from nestling.continual.strategies import NestedDiscriminant, StreamingDiscriminant
from nestling.continual.stream import Stream
from nestling.storage.packing import pack, unpack

WIDTH, CLASSES = 6, 4


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def items(seed: int = 0, count: int = 200) -> Batch:
    """Classes with one mean each, and each long in directions of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    shapes = torch.randn(CLASSES, WIDTH + 1, WIDTH, generator=torch.Generator().manual_seed(99))
    x = torch.randn(count, 1, WIDTH, generator=generator) @ shapes[labels, :WIDTH]
    return Batch((x[:, 0] + shapes[labels, WIDTH]).double(), labels)


def learned(learner: NestedDiscriminant | StreamingDiscriminant, batch: Batch, size: int = 30):
    for start in range(0, len(batch), size):
        learner.observe(batch.rows(slice(start, start + size)))
    return learner


make = partial(NestedDiscriminant, same, WIDTH, CLASSES)


def test_scores_are_the_logarithms_of_the_densities():
    """With a full rank: normal densities with covariances (1 - k) S_r + k S_c, and the priors."""
    batch, x = items(), items(1).inputs
    learner = learned(make(rank=WIDTH, own=0.3, shrinkage=0.1), batch, 7)
    parts = [batch.inputs[batch.targets == c] for c in range(CLASSES)]
    scatters = [(p - p.mean(0)).T @ (p - p.mean(0)) for p in parts]
    shared = torch.stack(scatters).sum(0) / len(batch)
    shared = 0.9 * shared + 0.1 * shared.diagonal().mean() * torch.eye(WIDTH)
    expected = torch.stack([
        MultivariateNormal(p.mean(0), 0.7 * shared + 0.3 * scatter / len(p)).log_prob(x)
        + np.log(len(p) / len(batch))
        for p, scatter in zip(parts, scatters, strict=True)
    ], 1)  # fmt: skip
    torch.testing.assert_close(
        learner.predict(x).log_softmax(1), expected.log_softmax(1), rtol=1e-5, atol=1e-5
    )


def test_with_a_small_rank_the_density_is_that_of_what_is_kept():
    batch, x = items(), items(1).inputs
    learner = learned(make(rank=2, own=0.5, shrinkage=0.1), batch)
    linear = learned(StreamingDiscriminant(same, WIDTH, CLASSES, shrinkage=0.1), batch)
    factor = linear.factor()
    expected = []
    for c in range(CLASSES):
        B, count = learner.directions[c], learner.counts[c]
        covariance = 0.5 * factor @ factor.T + 0.5 * B.T @ B / count
        density = MultivariateNormal(learner.means[c], covariance)
        expected.append(density.log_prob(x) + (count / len(batch)).log())
    torch.testing.assert_close(
        learner.predict(x).log_softmax(1), torch.stack(expected, 1).log_softmax(1)
    )


def test_without_a_share_of_its_own_it_is_the_linear_one():
    batch, x = items(), items(1).inputs
    found = learned(make(own=0.0, shrinkage=0.1), batch).predict(x)
    linear = learned(StreamingDiscriminant(same, WIDTH, CLASSES, shrinkage=0.1), batch)
    torch.testing.assert_close(found, linear.predict(x))


def test_what_is_kept_is_the_incremental_decomposition_of_scikit_learn():
    rows = items(count=60).inputs
    learner, reference = make(rank=3), IncrementalPCA(3)
    for part in rows.split(12):
        learner.observe(Batch(part, torch.full((12,), 2)))
        reference.partial_fit(part.numpy())
    B = learner.directions[2]
    expected = reference.components_ * reference.singular_values_[:, None]
    torch.testing.assert_close(B.T @ B, torch.from_numpy(expected.T @ expected))
    assert torch.equal(learner.directions[:2], torch.zeros(2, 3, WIDTH, dtype=torch.float64))


def test_order_makes_no_difference_while_nothing_is_left_out():
    batch, x = items(count=80), items(3).inputs
    order = torch.argsort(batch.targets, descending=True)
    one = learned(make(rank=WIDTH), batch, 16)
    other = learned(make(rank=WIDTH), batch.rows(order), 9)
    torch.testing.assert_close(one.predict(x), other.predict(x), rtol=1e-5, atol=1e-5)


def test_tells_apart_what_only_varies_differently():
    """Two classes with one mean: the linear discriminant guesses, this one knows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    x = torch.randn(400, WIDTH, generator=generator)
    x[labels == 0, :2] *= 4
    x[labels == 1, 2:4] *= 4
    batch = Batch(x.double(), labels)
    test = Experience("test", batch)
    linear = learned(StreamingDiscriminant(same, WIDTH, CLASSES), batch)
    assert error_rate(linear, test) > 0.35
    assert error_rate(learned(make(rank=2), batch), test) < 0.15


def test_groups_of_classes_one_after_the_other_lose_nothing():
    """After the last group it is as good as on everything mixed; no group is told."""
    train, test = items(0, 800), items(1, 400)
    groups = [(2, 0), (3, 1)]
    learner = make(rank=4, own=0.6, period=10)
    stream = Stream(by_class(train.inputs, train.targets, groups), batch=16, boundaries=False)
    record = run(learner, stream, by_class(test.inputs, test.targets, groups))
    mixed = learned(make(rank=4, own=0.6), train, 16)
    assert abs(error_rate(mixed, Experience("test", test)) - sum(record.R[-1]) / 2) < 0.02
    assert record.R[1][1] == 1.0  # what has not come is never the answer
    linear = learned(StreamingDiscriminant(same, WIDTH, CLASSES), train, 16)
    assert sum(record.R[-1]) / 2 < error_rate(linear, Experience("test", test)) - 0.05


def test_goes_on_to_the_bit():
    whole, first, second = (make(rank=2, period=20) for _ in range(3))
    assert isinstance(whole, Learner)
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
    assert whole.cost.stored_bytes == 8 * (4 + 4 * WIDTH + WIDTH**2 + 4 * 2 * WIDTH)


def test_one_item_of_a_class_is_enough():
    learner = make(rank=3)
    learner.observe(items().rows(slice(0, 3)))
    assert not learner.predict(items(1).inputs).isnan().any()


@pytest.mark.parametrize(("argument", "value"), [("rank", 0), ("own", 1.0), ("own", -0.1),
                                                 ("shrinkage", 2.0)])  # fmt: skip
def test_bad_argument(argument, value):
    with pytest.raises(ValueError, match=argument):
        make(**{argument: value})


def test_state_of_another_rank():
    with pytest.raises(ValueError, match="directions"):
        make(rank=2).load_state(make(rank=3).state())

"""Strategies: each against its own formula by hand, and all against one contract."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestling.continual.protocol import Batch, Experience, Learner
from nestling.continual.run import run
from nestling.continual.scoring import bits_per_target
from nestling.continual.strategies import (
    EWC,
    Consolidated,
    DarkReplay,
    LowRank,
    LwF,
    Pairs,
    Replay,
    Reservoir,
    Sequential,
    diagonal_fisher,
)
from nestling.continual.stream import Stream, together
from nestling.levels import Consolidation
from nestling.models import build
from nestling.optim import adamw
from nestling.storage.packing import pack, unpack


def sgd(named, lr: float = 0.1):
    return torch.optim.SGD(named.values(), lr=lr, momentum=0.9)


def plain(named):
    return torch.optim.SGD(named.values(), lr=0.1)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def text_model() -> nn.Module:
    torch.manual_seed(0)
    return build("transformer", width=16, heads=2, layers=1)


def examples(seed: int, count: int = 12, classes: tuple[int, ...] = (0, 1)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor(classes)[torch.randint(len(classes), (count,), generator=generator)]
    return Batch(torch.randn(count, 3, generator=generator), targets)


def texts(seed: int, count: int = 6) -> Batch:
    ids = torch.randint(97, 105, (count, 9), generator=torch.Generator().manual_seed(seed))
    return Batch(ids[:, :-1], ids[:, 1:])


CLASSIFIERS = {
    "sequential": Sequential,
    "replay": partial(Replay, capacity=5, rows=3),
    "DER++": partial(DarkReplay, capacity=5, rows=3),
    "EWC": partial(EWC, strength=10.0, items=6),
    "online EWC": partial(EWC, strength=10.0, gamma=0.5, targets="sampled"),
    "LwF": partial(LwF, strength=2.0),
    "low rank": partial(LowRank, pairs=Pairs(rank=2)),
    "low rank, kept": partial(LowRank, pairs=Pairs(rank=2, ended="kept", period=50)),
}
CONSOLIDATED = partial(
    Consolidated, vocabulary=256,
    consolidation=Consolidation(period=60, surprise=None, dreams=4, length=8),
)  # fmt: skip
CASES = [pytest.param(make, classifier, examples, id=n) for n, make in CLASSIFIERS.items()] + [
    pytest.param(make, text_model, texts, id=f"{n}, text")
    for n, make in {**CLASSIFIERS, "consolidated": CONSOLIDATED}.items()
]


@pytest.mark.parametrize(("strategy", "model", "items"), CASES)
class TestContract:
    def test_is_a_learner_that_learns(self, strategy, model, items):
        learner = strategy(model(), sgd)
        assert isinstance(learner, Learner)
        batch = items(1)
        losses = [learner.observe(batch) for _ in range(15)]
        assert losses[-1] < losses[0]
        assert learner.cost.backward >= 15 * batch.count

    def test_goes_on_to_the_bit(self, strategy, model, items):
        def learn(learner, seeds):
            found = []
            for seed in seeds:
                found.append(learner.observe(items(seed)))
                if seed % 3 == 2:
                    learner.end_experience(items(seed))
            return found

        whole = strategy(model(), sgd)
        expected = learn(whole, range(10))
        first = strategy(model(), sgd)
        found = learn(first, range(5))
        tensors: dict[str, torch.Tensor] = {}
        plain = pack(first.state(), tensors)
        second = strategy(model(), sgd)
        second.load_state(unpack(plain, {name: t.clone() for name, t in tensors.items()}))
        assert found + learn(second, range(5, 10)) == expected
        assert second.cost == whole.cost
        for mine, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, other)
        assert torch.equal(second.predict(items(3).inputs), whole.predict(items(3).inputs))

    def test_state_of_another_model(self, strategy, model, items):
        state = strategy(model(), sgd).state()
        state["model"]["strange"] = torch.zeros(1)
        with pytest.raises(ValueError, match="strange"):
            strategy(model(), sgd).load_state(state)


class TestReservoir:
    def test_everything_seen_is_equally_likely_to_be_kept(self):
        kept = torch.zeros(20)
        for seed in range(3000):
            buffer = Reservoir(5, seed=seed)
            for part in torch.arange(20).split(3):
                buffer.add(part)
            kept[buffer.columns[0]] += 1
        # binomial with p = 1/4 and 3,000 trials: standard deviation 0.0079
        torch.testing.assert_close(kept / 3000, torch.full((20,), 0.25), atol=0.032, rtol=0)

    def test_rows_stay_together(self):
        buffer = Reservoir(4)
        buffer.add(torch.arange(50), torch.arange(50) * 10)
        assert torch.equal(buffer.columns[0] * 10, buffer.columns[1])

    def test_errors(self):
        with pytest.raises(ValueError, match="capacity"):
            Reservoir(0)
        buffer = Reservoir(2)
        with pytest.raises(ValueError, match="empty"):
            buffer.draw(1)
        with pytest.raises(ValueError, match="as many rows"):
            buffer.add(torch.zeros(2), torch.zeros(3))
        buffer.add(torch.zeros(2, 3))
        with pytest.raises(ValueError, match="buffer of 3, got 2"):
            Reservoir(3).load_state(buffer.state())
        with pytest.raises(ValueError, match=r"expected rows of \[\(3,\)\], got \[\(4,\)\]"):
            buffer.add(torch.zeros(2, 4))


class TestReplay:
    def test_loss_by_hand(self):
        old, new = examples(1, count=1), examples(2)
        learner = Replay(classifier(), plain, capacity=1, rows=2, weight=0.5, clip=None)
        learner.observe(old)
        before = copy.deepcopy(learner.model)
        learner.observe(new)
        loss = F.cross_entropy(before(new.inputs), new.targets)
        loss = loss + 0.5 * F.cross_entropy(before(old.inputs), old.targets)
        self.moved_by(before, loss, learner)

    def test_dark_loss_by_hand(self):
        old, new = examples(1, count=1), examples(2)
        learner = DarkReplay(
            classifier(), plain, capacity=1, rows=2, alpha=0.3, beta=0.7, clip=None
        )
        former = learner.predict(old.inputs)
        learner.observe(old)
        before = copy.deepcopy(learner.model)
        learner.observe(new)
        loss = F.cross_entropy(before(new.inputs), new.targets)
        again = before(old.inputs)
        loss = loss + 0.3 * (again - former).square().mean()
        loss = loss + 0.7 * F.cross_entropy(again, old.targets)
        self.moved_by(before, loss, learner)

    @staticmethod
    def moved_by(before: nn.Module, loss: torch.Tensor, learner: Replay | DarkReplay):
        """SGD without momentum: the step is the gradient."""
        gradients = torch.autograd.grad(loss, list(before.parameters()))
        for parameter, start, gradient in zip(
            learner.model.parameters(), before.parameters(), gradients, strict=True
        ):
            torch.testing.assert_close(parameter, start - 0.1 * gradient)


def test_padding_counts_nowhere():
    """The same text with ignored targets behind it moves a model as without them."""

    def padded(batch: Batch) -> Batch:
        ids = torch.nn.functional.pad(batch.inputs, (0, 3), value=97)
        return Batch(ids, torch.nn.functional.pad(batch.targets, (0, 3), value=-100))

    for strategy in (CLASSIFIERS["LwF"], CLASSIFIERS["DER++"], CLASSIFIERS["EWC"]):
        plain_text, with_padding = strategy(text_model(), sgd), strategy(text_model(), sgd)
        for seed in range(3):
            plain_text.observe(texts(seed))
            with_padding.observe(padded(texts(seed)))
            plain_text.end_experience(texts(seed))
            with_padding.end_experience(padded(texts(seed)))
        for mine, other in zip(
            with_padding.model.parameters(), plain_text.model.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, other)


def test_stored_bytes_are_those_of_the_examples():
    learner = Replay(classifier(), sgd, capacity=5)
    assert learner.cost.stored_bytes == 0
    learner.observe(examples(1, count=3))
    assert learner.cost.stored_bytes == 3 * (3 * 4 + 8)


class TestEWC:
    def test_fisher_by_hand(self):
        model, items = nn.Linear(3, 4), examples(4, count=5)
        p = model(items.inputs).softmax(-1).detach()
        expected = torch.zeros(4, 3)
        for n in range(5):
            error = p[n] - F.one_hot(items.targets[n], 4)
            expected += torch.outer(error, items.inputs[n]).square() / 5
        torch.testing.assert_close(diagonal_fisher(model, items)["weight"], expected)

    def test_sampled_fisher_is_the_expected_one(self):
        model, x = nn.Linear(3, 4), torch.randn(3)
        p = model(x).softmax(-1).detach()
        expected = sum(
            p[y] * torch.outer(p - F.one_hot(torch.tensor(y), 4), x).square() for y in range(4)
        )
        items = Batch(x.expand(4000, 3), torch.zeros(4000, dtype=torch.long))
        found = diagonal_fisher(
            model, items, targets="sampled", generator=torch.Generator().manual_seed(0)
        )
        torch.testing.assert_close(found["weight"], expected, rtol=0.15, atol=2e-3)

    @pytest.mark.parametrize("gamma", [None, 0.5])
    def test_penalty_by_hand(self, gamma):
        learner = EWC(nn.Linear(3, 4), sgd, strength=3.0, gamma=gamma)
        anchors, fishers = [], []
        for seed in (1, 2):
            items = examples(seed)
            learner.observe(items)
            fishers.append(diagonal_fisher(learner.model, items))
            anchors.append({n: p.detach().clone() for n, p in learner.model.named_parameters()})
            learner.end_experience(items)
        learner.observe(examples(3))
        if gamma is not None:
            anchors = anchors[-1:]
            fishers = [{n: 0.5 * fishers[0][n] + fishers[1][n] for n in fishers[0]}]
        expected = sum(
            1.5 * (f[n] * (p - a[n]).square()).sum()
            for a, f in zip(anchors, fishers, strict=True)
            for n, p in learner.model.named_parameters()
        )
        torch.testing.assert_close(learner.penalty(), expected)
        assert learner.penalty().item() > 0

    def test_holds(self):
        """The larger the strength, the less it moves."""
        moved = []
        for strength in (0.0, 1.0, 100.0):
            learner = EWC(classifier(), partial(sgd, lr=0.01), strength=strength)
            first = examples(1)
            for _ in range(20):
                learner.observe(first)
            learner.end_experience(first)
            start = F.cross_entropy(learner.predict(first.inputs), first.targets)
            for _ in range(40):
                learner.observe(examples(2, classes=(2, 3)))
            now = F.cross_entropy(learner.predict(first.inputs), first.targets)
            moved.append((now - start).item())
        assert moved[0] > moved[1] > moved[2]


class TestLwF:
    def test_by_hand(self):
        learner = LwF(classifier(), sgd, strength=2.0, temperature=3.0)
        first, new = examples(1), examples(2, classes=(2, 3))
        learner.observe(first)
        learner.end_experience(first)
        said = learner.predict(new.inputs)[:, :2]
        learner.observe(new)
        scores = learner.predict(new.inputs)
        p, q = (said / 3).softmax(-1), (scores[:, :2] / 3).softmax(-1)
        expected = 2.0 * 9 * (p * (p / q).log()).sum(-1).mean()
        torch.testing.assert_close(learner.distillation(new, scores), expected)

    def test_no_teacher(self):
        with pytest.raises(ValueError, match="no teacher"):
            LwF(classifier(), sgd).distillation(examples(1), torch.zeros(12, 4))


def test_joint_is_plain_training():
    parts = [Experience(str(seed), examples(seed)) for seed in range(3)]
    learner, model = Sequential(classifier(), sgd, clip=None), classifier()
    stream = Stream([together(parts)], batch=5, seed=4, passes=2)
    run(learner, stream, parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for moment in Stream([together(parts)], batch=5, seed=4, passes=2):
        optimizer.zero_grad()
        F.cross_entropy(model(moment.batch.inputs), moment.batch.targets).backward()
        optimizer.step()
    for mine, plain in zip(learner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)


def test_consolidation_keeps_what_plain_training_loses():
    """Two texts that share no symbol: after the second, the first is still known."""

    def text(first: int, seed: int) -> Experience:
        ids = first + (torch.arange(9) + torch.arange(400)[:, None]) % 5
        return Experience(f"text {seed}", Batch(ids[:, :-1], ids[:, 1:]))

    parts = [text(97, 0), text(197, 1)]
    slow = Consolidation(dreams=32, length=8, average=0.9)
    bits = {}
    for name, strategy in {
        "plain": Sequential,
        "consolidated": partial(Consolidated, vocabulary=256, consolidation=slow),
    }.items():
        learner = strategy(text_model(), partial(adamw, lr=1e-2))
        stream = Stream(parts, batch=4, boundaries=False)
        bits[name] = run(learner, stream, parts, score=bits_per_target).R
    for matrix in bits.values():
        assert matrix[1][0] < 0.5  # the first is learned by both
        assert matrix[2][1] < 0.5  # the second too
    assert bits["plain"][2][0] > 5 * bits["consolidated"][2][0]


@pytest.mark.parametrize(
    ("strategy", "argument", "values"),
    [
        (Replay, "rows", {"capacity": 3, "rows": 0}),
        (Replay, "weight", {"capacity": 3, "weight": 0.0}),
        (DarkReplay, "alpha", {"capacity": 3, "alpha": -1.0}),
        (DarkReplay, "beta", {"capacity": 3, "beta": -1.0}),
        (DarkReplay, "rows", {"capacity": 3, "rows": 0}),
        (EWC, "strength", {"strength": -1.0}),
        (EWC, "gamma", {"strength": 1.0, "gamma": 2.0}),
        (EWC, "items", {"strength": 1.0, "items": 0}),
        (EWC, "targets", {"strength": 1.0, "targets": "x"}),
        (LwF, "strength", {"strength": -1.0}),
        (LwF, "temperature", {"temperature": 0.0}),
    ],
)
def test_bad_argument(strategy, argument, values):
    with pytest.raises(ValueError, match=argument):
        strategy(classifier(), sgd, **values)


@pytest.mark.parametrize(
    ("argument", "values"), [("targets", {"targets": "x"}), ("most", {"most": 0})]
)
def test_bad_argument_of_fisher(argument, values):
    with pytest.raises(ValueError, match=argument):
        diagonal_fisher(nn.Linear(3, 4), examples(1), **values)

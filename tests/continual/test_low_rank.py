"""Low-rank pairs: where they stand, what they compute, and what becomes of them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestling.continual.protocol import Batch
from nestling.continual.strategies import LowRank, Pairs, linear_maps
from nestling.models import build
from nestling.optim import adamw


def plain(named):
    return torch.optim.SGD(named.values(), lr=0.1)


def sgd(named):
    return torch.optim.SGD(named.values(), lr=0.1, momentum=0.9)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def examples(seed: int, count: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (count,), generator=generator)
    return Batch(torch.randn(count, 6, generator=generator), targets)


class TestMaps:
    @pytest.mark.parametrize(
        "values",
        [
            {"preset": "hope", "periods": (1,)},
            {"preset": "transformer"},
            {"preset": "hope_attention", "periods": (4, 8), "regime": "in_context"},
        ],
        ids=lambda values: values["preset"],
    )
    def test_are_those_of_an_adapter_of_peft(self, values):
        """One meaning of "a map that may carry an adapter" in the whole library."""
        pytest.importorskip("transformers")
        from nestling.hf.lora import lora_targets

        model = build(**values, width=16, heads=2, layers=1)
        maps = linear_maps(model)
        assert maps == lora_targets(model)
        assert maps

    def test_of_an_encoder(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=12, num_labels=3, initializer_range=0.5, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        maps = linear_maps(model)
        assert "bert.encoder.layer.0.attention.self.query" in maps
        assert "classifier" in maps
        learner = LowRank(
            model, partial(adamw, lr=1e-2), pairs=Pairs(rank=2, trained=("classifier",))
        )
        assert set(learner.pairs) == set(maps) - {"classifier"}
        batch = Batch(torch.randint(30, (6, 5)), torch.arange(6) % 3)
        losses = [learner.observe(batch) for _ in range(30)]
        assert losses[-1] < losses[0] / 2

    def test_shared_weight(self):
        model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
        assert linear_maps(model) == ["head"]
        model["head"].weight = model["embedding"].weight
        assert linear_maps(model) == []


class TestPair:
    def test_step_by_hand(self):
        model = nn.Linear(6, 4)
        W, b = model.weight.detach().clone(), model.bias.detach().clone()
        learner = LowRank(model, plain, pairs=Pairs(rank=2, scale=3.0), clip=None)
        pair = learner.pairs[""]
        A, B = pair.A.detach().clone().requires_grad_(), pair.B.detach().clone().requires_grad_()
        for seed in range(3):
            batch = examples(seed)
            y = batch.inputs @ W.T + b + 3.0 * batch.inputs @ A @ B
            loss = F.cross_entropy(y, batch.targets)
            assert learner.observe(batch) == pytest.approx(loss.item())
            gradients = torch.autograd.grad(loss, [A, B])
            with torch.no_grad():
                A, B = A - 0.1 * gradients[0], B - 0.1 * gradients[1]
            A.requires_grad_()
            B.requires_grad_()
        torch.testing.assert_close(pair.A, A)
        torch.testing.assert_close(pair.B, B)
        assert pair.B.norm() > 0.01

    def test_only_pairs_and_what_is_trained_move(self):
        model = classifier()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        learner = LowRank(model, sgd, pairs=Pairs(rank=2, trained=("2.bias",)))
        for seed in range(5):
            learner.observe(examples(seed))
        after = dict(learner.model.named_parameters())
        assert torch.equal(after["0.parametrizations.weight.original"], before["0.weight"])
        assert torch.equal(after["0.bias"], before["0.bias"])
        assert not torch.equal(after["2.bias"], before["2.bias"])

    def test_a_phase_changes_no_more_than_the_rank(self):
        model = classifier()
        before = model[0].weight.detach().clone()
        learner = LowRank(model, sgd, pairs=Pairs(rank=2))
        ranks = []
        for seed in range(2):
            for _ in range(10):
                learner.observe(examples(seed))
            learner.end_experience(examples(seed))
            change = (model[0].weight.detach() - before).double()
            ranks.append(int(torch.linalg.matrix_rank(change, rtol=1e-4)))
        assert ranks == [2, 4]


@pytest.mark.parametrize("ended", ["merged", "kept"])
class TestEnd:
    def learner(self, ended, **values) -> LowRank:
        return LowRank(classifier(), adamw, pairs=Pairs(rank=2, ended=ended, **values))

    def test_the_model_computes_what_it_did(self, ended):
        learner, x = self.learner(ended), examples(9).inputs
        for phase in range(3):
            for _ in range(5):
                learner.observe(examples(phase))
            before = learner.predict(x)
            old = learner.pairs["0"].A.detach().clone()
            learner.end_experience(examples(phase))
            torch.testing.assert_close(learner.predict(x), before)
            assert not torch.equal(learner.pairs["0"].A, old)
            assert learner.pairs["0"].B.abs().max() == 0

    def test_where_the_pair_goes(self, ended):
        learner = self.learner(ended)
        held = learner.model[0].parametrizations.weight.original  # type: ignore[union-attr]
        start = held.detach().clone()
        learner.observe(examples(1))
        pair = learner.pairs["0"]
        change = (pair.A @ pair.B).T.detach().clone()
        assert change.norm() > 0
        learner.end_experience(examples(1))
        if ended == "merged":
            torch.testing.assert_close(held, start + change)
            assert learner.cost.stored_bytes == 0
        else:
            assert torch.equal(held, start)
            A, B = pair.kept[0]
            torch.testing.assert_close((A @ B).T, change)
            # two maps of 6 x 8 and 8 x 4 numbers, rank 2, four bytes each
            assert learner.cost.stored_bytes == 4 * 2 * (6 + 8 + 8 + 4)

    def test_moments_end_with_the_pair(self, ended):
        """The first step of a pair is that of a new optimizer, the head's is not."""
        learner = self.learner(ended, trained=("2.bias",))
        learner.observe(examples(1))
        learner.end_experience(examples(1))
        (optimizer,) = learner.optimizer.optimizers
        held = {id(parameter) for parameter in optimizer.state}
        named = dict(learner.model.named_parameters())
        assert held == {id(named["2.bias"])}

    def test_period(self, ended):
        learner = self.learner(ended, period=30)  # targets; a batch has 12
        ends = []
        for seed in range(8):
            old = learner.pairs["0"].A.detach().clone()
            learner.observe(examples(seed))
            moved = (learner.pairs["0"].A - old).abs().max() > 0.1  # a step moves it by 1e-3
            ends.append(bool(moved))
        assert ends == [False, False, True, False, True, False, False, True]

    def test_merged_copy_is_plain(self, ended):
        learner, x = self.learner(ended), examples(9).inputs
        for seed in range(3):
            learner.observe(examples(seed))
            learner.end_experience(examples(seed))
        learner.observe(examples(4))
        copied = learner.merged()
        assert list(copied.state_dict()) == list(classifier().state_dict())
        torch.testing.assert_close(copied(x), learner.predict(x))
        learner.observe(examples(5))
        assert not torch.equal(copied(x), learner.predict(x))

    def test_a_deep_copy_goes_its_own_way(self, ended):
        learner, x = self.learner(ended), examples(9).inputs
        learner.observe(examples(1))
        learner.end_experience(examples(1))
        other, before = copy.deepcopy(learner), learner.predict(x)
        lost = [other.observe(examples(2)), other.observe(examples(3))]
        other.end_experience(examples(3))
        assert torch.equal(learner.predict(x), before)
        assert [learner.observe(examples(2)), learner.observe(examples(3))] == lost
        learner.end_experience(examples(3))
        assert torch.equal(learner.predict(x), other.predict(x))


def test_pairs_move_at_the_period_of_their_level():
    model = build("transformer", width=16, heads=2, layers=1, periods=(1, 1000), hidden=8)
    learner = LowRank(model, sgd, pairs=Pairs(rank=2))
    ids = torch.randint(97, 105, (4, 9))
    learner.observe(Batch(ids[:, :-1], ids[:, 1:]))
    moved = {name: bool(pair.B.abs().max() > 0) for name, pair in learner.pairs.items()}
    assert moved["blocks.0.mixer.qkv"]
    assert moved["blocks.0.continuum.levels.0.mlp.down"]
    assert not moved["blocks.0.continuum.levels.1.mlp.down"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("rank", {"rank": 0}),
        ("scale", {"scale": 0.0}),
        ("period", {"period": 0}),
        ("maps: .* no torch.nn.Linear '1'", {"maps": ("1",)}),
        ("maps: .* trained as a whole", {"maps": ("0",), "trained": ("0",)}),
        ("maps: .* no linear map", {"trained": ("0", "2")}),
        ("trained: .* 'head'", {"trained": ("head",)}),
    ],
)
def test_bad_argument(word, values):
    with pytest.raises(ValueError, match=word):
        LowRank(classifier(), plain, pairs=Pairs(**values))

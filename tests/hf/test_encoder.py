"""A packaged encoder: its features, its held part, its levels, and what is said without it."""

from __future__ import annotations

import copy
import importlib.metadata

import pytest
import torch
from sentence_transformers import SentenceTransformer

from nestling.continual.protocol import Batch
from nestling.continual.strategies import LwF
from nestling.hf.encoder import (
    Classifier,
    Lower,
    Remembered,
    Upper,
    packaged_encoder,
)
from nestling.levels import Level
from nestling.models.by_level import by_level

TEXTS = [
    "what is the capital of france",
    "transfer ten dollars to my savings account, please",
    "play it again",
]


@pytest.fixture(scope="module")
def encoder():
    return packaged_encoder()


@pytest.fixture(scope="module")
def ids(encoder):
    return encoder.ids(TEXTS, length=16)


def test_features_are_those_of_sentence_transformers(encoder, ids):
    reference = SentenceTransformer(encoder.model.config._name_or_path, device="cpu")
    expected = reference.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(encoder.features(ids), expected, rtol=1e-4, atol=1e-5)


def test_depths_stand_side_by_side(encoder, ids):
    found = encoder.features(ids, (0, 4, 6))
    hidden = encoder.model(
        ids, attention_mask=encoder.mask(ids).long(), output_hidden_states=True
    ).hidden_states
    for place, depth in enumerate((0, 4, 6)):
        one = hidden[depth][2][encoder.mask(ids)[2]].mean(0)
        expected = one / one.norm()
        torch.testing.assert_close(found[2, 384 * place : 384 * (place + 1)], expected)


@pytest.mark.parametrize("held", [0, 4, 5])
def test_lower_and_upper_part_are_the_encoder(encoder, ids, held):
    upper = Upper(encoder, Lower(encoder, held), held=held)
    torch.testing.assert_close(upper(ids), encoder.features(ids))


def test_padding_makes_no_difference(encoder, ids):
    longer = torch.nn.functional.pad(ids, (0, 9), value=encoder.padding)
    torch.testing.assert_close(encoder.features(longer), encoder.features(ids))
    upper = Upper(encoder, Lower(encoder, 4), held=4)
    torch.testing.assert_close(upper(longer), upper(ids))


def test_what_is_remembered_is_computed_once(encoder, ids):
    calls = []

    def counted(rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return Lower(encoder, 4)(rows)

    remembered = Remembered(counted, half=True)
    remembered.remember(ids, rows=2)
    expected = Lower(encoder, 4)(ids)[[2, 0]]
    mask = encoder.mask(ids)[[2, 0]]
    found = remembered(ids[[2, 0]])
    torch.testing.assert_close(found[mask], expected[mask], rtol=2e-3, atol=2e-3)
    assert calls == [2, 1]
    with pytest.raises(ValueError, match="row 1 of 2 is not among the 3"):
        remembered(torch.stack([ids[0], ids[0] + 1]))


def test_a_teacher_shares_what_is_held(encoder, ids):
    model = Classifier(Upper(encoder, Lower(encoder, 5), held=5), 3)
    other = copy.deepcopy(model)
    assert other.features.lower is model.features.lower
    small = sum(p.numel() for p in model.parameters())
    assert small == 2 * 384 * 1536 + 1536 + 384 + 2 * 384 + 3 * 385
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_mlps_are_levels(encoder, ids):
    model = Classifier(Upper(encoder, Lower(encoder, 4), held=4, periods=(64, 8)), 3)
    levels = {level.period: list(named) for level, named in by_level(model)}
    assert set(levels) == {1, 8, 64}
    assert levels[1] == ["head.weight", "head.bias"]
    assert levels[64] == [
        "features.blocks.0.intermediate.dense.weight",
        "features.blocks.0.intermediate.dense.bias",
        "features.blocks.0.output.dense.weight",
        "features.blocks.0.output.dense.bias",
    ]
    assert model.parameter_levels()[levels[8][0]] == Level(8)


def test_learns_and_leaves_the_encoder_as_it_is(encoder, ids):
    before = {name: p.clone() for name, p in encoder.model.named_parameters()}
    model = Classifier(Upper(encoder, Lower(encoder, 5), held=5), 3)
    learner = LwF(model, lambda named: torch.optim.SGD(named.values(), lr=0.05))
    batch = Batch(ids, torch.arange(3))
    losses = [learner.observe(batch) for _ in range(5)]
    learner.end_experience(batch)
    losses.append(learner.observe(batch))
    assert losses[-1] < losses[0]
    assert not torch.equal(model.features(ids), encoder.features(ids))
    for name, parameter in encoder.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_errors(encoder, ids):
    with pytest.raises(ValueError, match="length"):
        encoder.ids(TEXTS, length=2)
    with pytest.raises(ValueError, match="texts"):
        encoder.ids("one text", length=8)
    with pytest.raises(ValueError, match="depths"):
        encoder.features(ids, (7,))
    with pytest.raises(ValueError, match="held"):
        Lower(encoder, 6)
    with pytest.raises(ValueError, match="held"):
        Upper(encoder, Lower(encoder, 5), held=6)
    with pytest.raises(ValueError, match="periods: expected one for each of 1 MLPs, got 2"):
        Upper(encoder, Lower(encoder, 5), held=5, periods=(1, 2))


def test_a_package_that_is_missing(monkeypatch):
    with pytest.raises(ImportError, match=r'pip install "nestling\[encoders\]"'):
        packaged_encoder("a-package-that-nobody-has")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        packaged_encoder()

from __future__ import annotations

import json

import pytest

from nestling.train import TrainConfig


def test_json_round_trip_is_exact():
    config = TrainConfig(lr=1 / 3, clip=None, betas=(0.1 + 0.2, 0.999), warmup=7)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_differences_name_what_is_learned_and_not_what_is_shown():
    one = TrainConfig(lr=0.1, log_every=5, save_every=9, steps=10)
    other = TrainConfig(lr=0.2, log_every=1, save_every=1, steps=20, seed=3)
    assert one.differences(other) == ["lr: 0.1, not 0.2", "seed: 0, not 3"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("length", 0),
        ("lr", float("nan")),
        ("lr", -1.0),
        ("floor", 2.0),
        ("betas", (0.9, 1.0)),
        ("clip", 0.0),
        ("warmup", -1),
        ("keep", 0),
    ],
)
def test_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: expected "):
        TrainConfig(**{field: value})


def test_unknown_field_is_named():
    with pytest.raises(ValueError, match=r"TrainConfig has no field \['learning_rate'\]"):
        TrainConfig.from_dict({"learning_rate": 1.0})

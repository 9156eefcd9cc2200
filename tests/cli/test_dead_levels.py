"""``inspect`` names dead levels: of a configuration, and of a run as its metrics tell."""

import pytest
import torch

from nestling.cli.level_table import print_levels
from nestling.data import TextStream
from nestling.models import build, configure
from nestling.train import Output, TrainConfig, train
from nestling.train.liveness import never_written

SMALL = {"width": 16, "heads": 2, "layers": 1, "hidden": 16}


@pytest.mark.parametrize(
    ("overrides", "changes", "dead"),
    [
        ({"periods": (64, 255), "regime": "in_context"}, {}, []),
        ({"periods": (64, 256), "regime": "in_context"}, {}, ["256 tokens never ends"]),
        ({"periods": (64, 256), "regime": "in_context"}, {"carry_state": True}, []),
        ({"periods": (64, None), "regime": "in_context"}, {}, ["no period"]),
        ({"periods": (8,), "regime": "in_context", "step_size": 0}, {}, ["step size is 0"]),
        ({"periods": (1, 20_481)}, {"steps": 10}, ["20,481 tokens is longer than the run"]),
        ({"periods": (1, 20_480)}, {"steps": 10}, []),
        ({"periods": (1, None)}, {}, []),
    ],
)
def test_what_training_cannot_write(overrides, changes, dead):
    found = never_written(configure("transformer", **SMALL, **overrides), TrainConfig(**changes))
    assert len(found) == len(dead)
    for told, expected in zip(found, dead, strict=True):
        assert expected in told
        assert told.startswith(f"continuum.levels.{len(overrides['periods']) - 1} is dead")


def test_inspect_says_so(tmp_path, capsys):
    print_levels("transformer", size="tiny", overrides=["periods=[8,512]", "regime=in_context"])
    assert "continuum.levels.1 is dead: its period of 512" in capsys.readouterr().out
    model = build("transformer", **SMALL, periods=(4, 40), regime="in_context")
    stream = TextStream(torch.arange(256).repeat(2), batch=2, length=24)
    config = TrainConfig(steps=2, batch=2, length=24)
    result = train(config, model, stream, output=Output(directory=tmp_path / "run", quiet=True))
    for what in (tmp_path / "run", result.checkpoint):
        print_levels(str(what), size="tiny", overrides=[])
        out = capsys.readouterr().out
        assert "continuum.levels.1 is dead: its period of 40 tokens never ends" in out
        assert "dead at step 2, nothing was written: blocks.0.continuum.levels.1" in out
    print_levels("hope", size="tiny", overrides=[])
    assert "dead" not in capsys.readouterr().out

"""Levels that are added to a trained model: the same function first, nothing dead afterwards."""

import pytest
import torch

from nestling.continuum import Backprop, ContinuumConfig, ContinuumLevel, in_context
from nestling.continuum.config import VARIANTS
from nestling.layers import SelfModifyingConfig
from nestling.models import build, observe, parameter_count, with_level, with_levels


def trained(preset="transformer", **overrides):
    """No parameter at its start value."""
    torch.manual_seed(0)
    values = {"width": 16, "heads": 2, "layers": 2, "vocab_size": 50, "hidden": 30, **overrides}
    made = build(preset, **values).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return made


def ids_for(length=16):
    return torch.randint(50, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preset", ["transformer", "hope"])
@pytest.mark.parametrize("step_size", [0.0, 0.1])
def test_levels_from_the_weights_of_an_mlp(variant, preset, step_size):
    model = trained(preset, periods=(1,))
    levels = in_context(3, 7, 16, step_size=step_size)
    config = ContinuumConfig(levels=levels, variant=VARIANTS[variant], hidden=9)
    made = with_levels(model, config)
    hidden = [level.hidden for level in made.blocks[0].continuum.levels]
    assert hidden == ([10, 10, 10] if variant == "independent" else [9, 9, 30])
    ids = ids_for()
    expected, _ = model(ids)
    logits, state = made(ids)
    if step_size == 0.0:
        if variant == "independent":
            torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
        else:
            assert torch.equal(logits, expected)
        return
    asked, _ = made(ids, writes="off")
    torch.testing.assert_close(asked, model(ids, writes="off")[0], rtol=1e-10, atol=1e-12)
    assert (logits - expected).abs().max() > 1e-6  # and then it learns
    assert not any(level.dead for level in made.activity(made.initial_state(2), state).values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("start", ["copy", "noise"])
@pytest.mark.parametrize("period", [2, 4, 9])
def test_one_more_level_in_any_place(variant, start, period):
    model = trained(periods=(3, 7), regime="in_context", variant=variant)
    made = with_level(model, in_context(period)[0], start=start)
    place = {2: 0, 4: 1, 9: 2}[period]
    assert made.config.continuum.periods.index(period) == place
    assert parameter_count(made.config) == sum(p.numel() for p in made.parameters())
    ids = ids_for(24)
    torch.testing.assert_close(
        made(ids, writes="off")[0], model(ids, writes="off")[0], rtol=1e-10, atol=1e-12
    )
    logits, _ = made(ids)
    logits.sin().mean().backward()
    new = [f"blocks.{block}.continuum.levels.{place}.mlp.down.weight" for block in (0, 1)]
    named = dict(made.named_parameters())
    assert all(float(named[name].grad.abs().max()) > 1e-12 for name in new)


@pytest.mark.parametrize("variant", VARIANTS)
def test_four_levels_one_by_one_with_the_loss_as_their_source(variant):
    model = trained(periods=(64,), regime="in_context", source="backprop", variant=variant)
    ids = ids_for(40)
    expected = observe(model, ids).nats
    for period in (16, 5, 2):
        level = in_context(period, source=Backprop(), step_size=1e-12)[0]
        model = with_level(model, level)
        torch.testing.assert_close(observe(model, ids).nats, expected, rtol=1e-6, atol=1e-8)
    assert model.config.continuum.periods == (2, 5, 16, 64)
    state = observe(model, ids).state
    writes = [int(level.writes[0]) for level in state.blocks[0].continuum.levels.values()]
    assert writes[0] > writes[1] > writes[2] > writes[3] == 0


def test_a_model_whose_own_levels_share_learned_weights():
    model = trained(variant="independent")
    made = with_levels(model, ContinuumConfig(levels=in_context(3, 7), variant=VARIANTS["nested"]))
    ids = ids_for()
    torch.testing.assert_close(
        made(ids, writes="off")[0], model(ids, writes="off")[0], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: with_levels(trained(periods=(1, 8)), ContinuumConfig()), "one level"),
        (lambda: with_levels(trained(hidden=2), ContinuumConfig(
            levels=in_context(1, 2, 3), variant=VARIANTS["independent"])), "2 hidden"),
        (lambda: with_level(trained(), ContinuumLevel(8, hidden=7)), "hidden size 30"),
        (lambda: with_level(trained(), ContinuumLevel(8), start="zero"), "start"),
        (lambda: with_level(trained("hope", layers=2), in_context(4, source=Backprop(order=2))[0]),
         "order=2"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_hope_keeps_everything_else():
    model = trained("hope", periods=(1,))
    assert isinstance(model.config.mixer, SelfModifyingConfig)
    made = with_level(model, ContinuumLevel(4096))
    for name, parameter in model.named_parameters():
        if ".continuum." not in name:
            assert torch.equal(dict(made.named_parameters())[name], parameter), name
    assert made.embedding.weight.dtype == torch.float64
    assert torch.equal(made(ids_for())[0], model(ids_for())[0])

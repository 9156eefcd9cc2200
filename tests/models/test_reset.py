"""Forgetting on purpose: what is reset starts anew, what is not goes on, to the same numbers."""

import pytest
import torch

from nestling.memory import flatten
from nestling.models import build
from nestling.models.reset import reset

LEVELS = {"periods": (3, 8), "regime": "in_context"}
CASES = {
    "hope": ("hope", LEVELS),
    "nested": ("hope", {**LEVELS, "variant": "nested", "kept": 0.9}),
    "loss": ("transformer", {**LEVELS, "source": "backprop"}),
    "attention": ("hope_attention", {}),
    "window": ("transformer", {"window": 4}),
    "titans": ("titans", {}),
}


def made(case):
    preset, overrides = CASES[case]
    torch.manual_seed(0)
    return build(preset, width=16, heads=2, layers=2, **overrides).double()


def read(model, ids, state=None):
    if model.config.learns_from_loss:
        seen = [model.observe(piece, state) for piece in (ids,)]
        return seen[0][0], seen[0][1]
    return model(ids, state)


def texts():
    torch.manual_seed(1)
    return torch.randint(256, (3, 45)), torch.randint(256, (3, 21))


@pytest.mark.parametrize("case", CASES)
def test_everything_reset_is_a_new_text(case):
    model = made(case)
    first, then = texts()
    with torch.no_grad():
        _, state = read(model, first)
        again, _ = model(then, reset(model, state))
        new, _ = model(then)
        on, _ = model(then, state)
    assert torch.equal(again, new)
    assert not torch.allclose(on, new)


@pytest.mark.parametrize("case", CASES)
def test_some_rows_start_anew_and_the_others_go_on(case):
    model = made(case)
    first, then = texts()
    rows = torch.tensor([False, True, False])
    with torch.no_grad():
        _, state = read(model, first)
        mixed, after = model(then, reset(model, state, rows=rows))
        new, _ = model(then)
        on, _ = model(then, state)
        later, _ = model(first, after)
        _, single = model(then)
        expected, _ = model(first, single)
    torch.testing.assert_close(mixed[1], new[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed[[0, 2]], on[[0, 2]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(later[1], expected[1], rtol=1e-9, atol=1e-9)


def test_names_choose_the_memories():
    model = made("nested")
    first, _ = texts()
    _, state = model(first)
    fresh = flatten(model.initial_state(3))
    name = "blocks.1.continuum.levels.1"
    before, after = flatten(state), flatten(reset(model, state, [name, "blocks.0.mixer"]))
    for path, tensor in after.items():
        start = path.startswith((name + ".", "blocks.0.mixer."))
        assert torch.equal(tensor, (fresh if start else before)[path]), path
    assert any(not torch.equal(before[path], fresh[path]) for path in fresh if name in path)


@pytest.mark.parametrize(
    ("names", "rows", "told"),
    [
        (["blocks.7"], None, "names: the state has no 'blocks.7'"),
        (["blocks.0.mix"], None, "names: the state has no"),
        (None, torch.tensor([1, 0, 1]), "rows: expected bool"),
        (None, torch.tensor([True]), r"rows: expected bool of shape \(3,\)"),
    ],
)
def test_what_cannot_be_reset_is_named(names, rows, told):
    model = made("hope")
    _, state = model(texts()[0])
    with pytest.raises(ValueError, match=told):
        reset(model, state, names, rows=rows)

"""Sessions of models with levels in context: clocks and open chunks outlive the process."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from small_sessions import ids, model, same, tensors

from nestling.memory import flatten
from nestling.models import observe
from nestling.models.observe import read_on
from nestling.session import Session
from nestling.session.outline import settled

CUTS = [1, 8, 31, 32, 33, 64, 71]
LOCAL = {"periods": (4, 11, 40), "regime": "in_context"}
CASES = {
    "local": LOCAL,
    "nested_adam": {**LOCAL, "variant": "nested", "error_rule": "adam"},
    "loss": {**LOCAL, "source": "backprop", "step_size": 0.5},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("preset", ["transformer", "hope"])
def test_saved_and_opened_anywhere_is_the_uninterrupted_reader_to_the_last_bit(
    tmp_path, case, preset
):
    net, text = model(preset, layers=2, **CASES[case]), ids(97)
    for start, stop in pairwise([0, *CUTS, len(text)]):
        with Session.open(tmp_path / "cut", model=net) as session:
            assert session.position == start
            session.feed(text[start:stop])
            session.save()
    state, logits = settled(net.initial_state(1)), None
    with torch.no_grad():
        for start, stop in pairwise([0, *CUTS, len(text)]):
            logits, state = read_on(net, text[None, start:stop], state)
            state = settled(state)
    with Session.open(tmp_path / "cut", model=net) as session:
        assert same(
            {p: t for p, t in tensors(session).items() if p != "logits"},
            flatten(state),
        )
        assert torch.equal(session.logits, logits[0])
        slow = session.state.blocks[0].continuum.levels["2"]
        read = 96 if case == "loss" else 97  # what follows the last byte is not known yet
        assert int(slow.writes) == 2
        assert int(slow.clock) == read - 80
        assert "blocks.0.continuum.levels.2" in net.liveness(net.initial_state(1), session.state)


def test_a_session_learns_from_the_loss(tmp_path):
    """What it reads twice, it predicts better than a model whose levels hold still."""
    net = model("transformer", **{**CASES["loss"], "step_size": 2.0})
    text = torch.tensor(list(b"abcd" * 40))
    with Session.open(tmp_path / "s", model=net) as session:
        session.feed(text)
        with torch.no_grad():
            after = observe(net, text[None], session.state).nats[0, 1:].mean()
    with torch.no_grad():
        logits, _ = net(text[None])
        still = torch.nn.functional.cross_entropy(logits[0, :-1], text[1:])
    assert float(after) < float(still) - 0.05

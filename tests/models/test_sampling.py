from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

from nestling.models import build, sampling
from nestling.models.observe import read_on
from nestling.models.sampling import draw, sample


def model(preset: str):
    torch.manual_seed(0)
    return build(preset, width=16, heads=2, layers=1, hidden=16)


@pytest.mark.parametrize("preset", ["hope", "transformer"])
def test_greedy_through_the_state_is_greedy_on_the_whole_text(preset):
    net = model(preset)
    prompt = torch.arange(40)
    text = prompt.tolist()
    for token in islice(sample(net, prompt, temperature=0.0), 20):
        logits, _ = net(torch.tensor([text]))
        assert token == int(logits[0, -1].argmax())
        text.append(token)


def test_levels_of_the_loss_learn_from_the_prompt_and_from_what_is_written():
    torch.manual_seed(0)
    net = build("transformer", width=16, heads=2, layers=1, hidden=16, periods=(3, 8),
                regime="in_context", source="backprop", step_size=2.0).double()  # fmt: skip
    prompt = torch.arange(40) % 5
    text, still = prompt.tolist(), 0
    for token in islice(sample(net, prompt, temperature=0.0), 20):
        with torch.no_grad():
            logits, _ = read_on(net, torch.tensor([text]))
            still += int(net(torch.tensor([text]))[0][0, -1].argmax()) == token
        assert token == int(logits[0].argmax())
        text.append(token)
    assert still < 20


def test_prompt_may_be_fed_in_pieces(monkeypatch):
    net, prompt = model("hope"), torch.arange(50) % 7
    whole = list(islice(sample(net, prompt, seed=1), 10))
    monkeypatch.setattr(sampling, "PIECE", 13)
    assert list(islice(sample(net, prompt, seed=1), 10)) == whole


def test_state_does_not_grow():
    from nestling.memory import flatten

    net = model("hope")
    sizes = []
    net.register_forward_hook(
        lambda m, a, out: sizes.append(sum(t.numel() for t in flatten(out[1]).values()))
    )
    list(islice(sample(net, torch.arange(3)), 80))
    # a chunk that is open keeps its anchor; nothing else depends on how much was read
    assert len(set(sizes)) <= 2


def test_draws_follow_the_distribution():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    counts = torch.zeros(3)
    for _ in range(1000):
        counts[draw(logits, 1.0, None, generator)] += 1
    # standard error at most sqrt(0.25 / 1000) = 0.016
    assert (counts / 1000).tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.05)
    sharper = torch.zeros(3)
    for _ in range(1000):
        sharper[draw(logits, 0.5, 2, generator)] += 1
    assert (sharper / 1000).tolist() == pytest.approx([0, 0.8, 0.2], abs=0.05)
    assert draw(logits, 1e-30, None, generator) == 1


def test_bad_arguments_are_named():
    net = model("transformer")
    with pytest.raises(ValueError, match=r"prompt: expected at least one id, one axis, got \(0,\)"):
        sample(net, torch.empty(0).long())
    with pytest.raises(ValueError, match="temperature: expected a number >= 0, got nan"):
        sample(net, torch.arange(3), temperature=math.nan)
    with pytest.raises(ValueError, match="top_k: expected a whole number >= 1, got 0"):
        sample(net, torch.arange(3), top_k=0)
    with torch.no_grad():
        net.get_parameter("norm.weight").fill_(math.nan)
    with pytest.raises(ValueError, match="its output is not finite"):
        next(sample(net, torch.arange(3)))

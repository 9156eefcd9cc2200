"""A state that is carried through training: the same numbers, gradients, and outer steps."""

import pytest
import torch

from nestling.memory import detach, flatten
from nestling.models import build, losses
from nestling.models.carry import attached, learned, moved_along


def model(source, variant):
    torch.manual_seed(0)
    return build("transformer", width=16, heads=2, layers=2, vocab_size=30, hidden=8,
                 periods=(3, 7), regime="in_context", source=source, variant=variant,
                 window=8).double()  # fmt: skip


def batch(seed):
    ids = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("source", ["local_every", "backprop"])
@pytest.mark.parametrize("variant", ["sequential", "nested"])
def test_gradient_reaches_initial_states_through_a_carried_state(source, variant):
    net = model(source, variant)
    _, state = losses(net, *batch(0))
    state = detach(state)
    again, _ = losses(net, *batch(1), state)
    nats, after = losses(net, *batch(1), attached(net, state))
    assert torch.equal(nats, again)
    for path, tensor in flatten(attached(net, state)).items():
        assert torch.equal(tensor, flatten(state)[path]), path
    mlps = {n: p for n, p in net.named_parameters() if ".mlp." in n}
    grads = torch.autograd.grad(nats.sum(), list(mlps.values()), allow_unused=True)
    assert all(grad is not None and float(grad.abs().max()) > 1e-9 for grad in grads)
    assert after.blocks[0].continuum is not None


@pytest.mark.parametrize("variant", ["sequential", "nested"])
def test_what_the_outer_loop_learns_reaches_the_carried_weights(variant):
    """The distance to the initial state, which is what the text has written, stays."""
    net = model("backprop", variant)
    state = detach(losses(net, *batch(0))[1])
    before = learned(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = moved_along(net, state, before)
    now = learned(net)
    opened = [one.observed.chunk.blocks for one in (moved, state)]
    for blocks, old_blocks in ((moved.blocks, state.blocks), opened):
        for index, (block, old) in enumerate(zip(blocks, old_blocks, strict=True)):
            for place, level in block.continuum.levels.items():
                for name, W in level.weights.items():
                    written = old.continuum.levels[place].weights[name] - before[index][place][name]
                    torch.testing.assert_close(W - now[index][place][name], written)
                    if variant == "nested" and place == "0":
                        written = old.continuum.levels[place].initial.weights[name]
                        written = written - before[index][place][name]
                        found = level.initial.weights[name] - now[index][place][name]
                        torch.testing.assert_close(found, written)

"""What must hold whatever the model: cuts, rows, padding, the definition, rank, gradients."""

from __future__ import annotations

import pytest
import stack_models as models
import torch
import torch.nn.functional as F
from stack_definition import definition

from nestling.continuum import Adam, Backprop, ContinuumLevel, HeavyBall, InContext
from nestling.hf import stack_levels
from nestling.levels import Level
from nestling.memory import flatten

TOLERANCE = {"rtol": 1e-7, "atol": 1e-10}


def stacked(name="llama", levels=(4, 12), seed=0, **changes):
    values = {"step_size": 0.5, "source": Backprop(chunk=5), **changes}
    made = models.model(name, seed)
    return stack_levels(made, [Level(period) for period in levels], **values)


def read(net, tokens, cuts=(), state=None, **more):
    nats, start = [], 0
    with torch.no_grad():
        for stop in (*cuts, tokens.shape[1]):
            seen = net.observation(tokens[:, start:stop], state, **more)
            nats.append(seen.nats)
            state, start = seen.state, stop
    return torch.cat(nats, dim=1), state


def same(one, other, **tolerance):
    a, b = flatten(one), flatten(other)
    assert a.keys() == b.keys()
    for path, tensor in a.items():
        torch.testing.assert_close(tensor, b[path], **(tolerance or TOLERANCE), msg=path)


def row(state, index):
    """One row of a state, its cache without what only other rows need."""
    held = int(state.held[index])

    def cut(path, tensor):
        tensor = tensor[index : index + 1]
        return tensor[:, :, tensor.shape[2] - held :] if ".cache." in path else tensor

    return {path: cut(path, tensor) for path, tensor in flatten(state).items()}


RULES = {"gradient_descent": {}, "delta": {}, "heavy_ball": {}, "adam": {"step_size": 0.01}}


@pytest.mark.parametrize("plan", ["layer_mod_levels", "split"])
@pytest.mark.parametrize("rule", RULES)
def test_it_is_what_the_definition_says(rule, plan):
    changes = {"plan": plan, "error_rule": rule, "matrices": "every", "kept": 0.9, **RULES[rule]}
    net, tokens = stacked(**changes), models.ids(1, 31)
    nats, state = read(net, tokens)
    expected, written = definition(net, tokens[0])
    torch.testing.assert_close(nats[0, 1:], expected, **TOLERANCE)
    assert set(net.writes(state).values()) == {7.0, 2.0}
    for slot in net.stack.slots:
        own = state.blocks[slot.block].levels[str(slot.level)][slot.name].weights["full"][0]
        torch.testing.assert_close(own, written[slot], **TOLERANCE)
        assert float(own.norm()) > 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_a_text_may_be_cut_anywhere(name):
    net, tokens = stacked(name, matrices="every"), models.ids(2, 23)
    nats, state = read(net, tokens)
    for cuts in ((1,), (4,), (5, 6), (8, 9, 21), tuple(range(1, 23))):
        other, after = read(net, tokens, cuts)
        torch.testing.assert_close(other, nats, **TOLERANCE)
        same(after, state)


@pytest.mark.parametrize("name", ["llama", "mistral", "opt"])
def test_rows_are_on_their_own_and_padding_is_nothing(name):
    net = stacked(name, matrices="every")
    tokens, mask = models.ids(2, 24), torch.ones(2, 24, dtype=torch.bool)
    mask[0, [0, 3, 4, 11, 17]] = False
    mask[1, 15:] = False
    padded = tokens.masked_fill(~mask, 7)
    with torch.no_grad():
        first = net.observation(padded[:, :13], None, mask[:, :13])
        seen = net.observation(padded[:, 13:], first.state, mask[:, 13:])
    nats = torch.cat([first.nats, seen.nats], dim=1)
    for index in range(2):
        alone, state = read(net, tokens[index : index + 1, mask[index]])
        torch.testing.assert_close(nats[index, mask[index]], alone[0], **TOLERANCE)
        assert float(nats[index, ~mask[index]].abs().sum()) == 0
        for path, tensor in row(seen.state, index).items():
            torch.testing.assert_close(tensor, flatten(state)[path], **TOLERANCE, msg=path)
        # What it says next is the same, too.
        more = models.ids(2, 4, seed=1)
        with torch.no_grad():
            ours, _ = net(more, seen.state)
            theirs, _ = net(more[index : index + 1], state)
        torch.testing.assert_close(ours[index], theirs[0], **TOLERANCE)


def test_reading_without_the_loss_writes_nothing_and_off_returns_the_state():
    net, tokens = stacked(), models.ids(1, 20)
    _, state = read(net, tokens[:, :10])
    with torch.no_grad():
        logits, same_state = net(tokens[:, 10:], state, writes="off")
        again, after = net(tokens[:, 10:], state)
    assert same_state is state
    assert torch.equal(logits, again)
    assert net.writes(after) == net.writes(state)
    assert int(after.held) == 20
    # What was observed of the open chunk counts: 10 tokens, of which the last has no target.
    assert int(after.clocks["1"].clock) == 9
    gathered = after.blocks[1].levels["1"]["last"].gathered["full"]
    direct = stacked(levels=(4, 9), source=Backprop(chunk=5), step_size=1.0)
    _, reference = read(direct, tokens[:, :10])
    if torch.equal(state.blocks[0].levels["0"]["last"].weights["full"],
                   reference.blocks[0].levels["0"]["last"].weights["full"]):  # fmt: skip
        raise AssertionError("another step size must write something else")
    assert float(gathered.norm()) > 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_attention_finds_can_be_bounded(name):
    """Rotary positions slide over the text, learned ones start anew."""
    if name == "gpt2":
        net, tokens = stacked(name, levels=(20, 20), source=Backprop(chunk=20)), models.ids(1, 100)
        nats, state = read(net, tokens, (7, 61))
        assert int(state.position) == int(state.held) == 40  # three chunks of 20 in 64 places
        assert float(net.liveness(net.initial_state(1), state)["blocks.0.levels.0"]) > 0
        whole = stacked(name, levels=(20, 20), source=Backprop(chunk=20), step_size=0.0)
        plain, _ = read(whole, tokens)
        with torch.no_grad():
            logits = whole.base(tokens[:, 60:99]).logits
        expected = F.cross_entropy(logits.mT, tokens[:, 61:], reduction="none")
        torch.testing.assert_close(plain[:, 61:], expected, **TOLERANCE)
        return
    net, tokens = stacked(name, window=6), models.ids(2, 40)
    nats, state = read(net, tokens)
    other, after = read(net, tokens, (3, 17, 18))
    torch.testing.assert_close(other, nats, **TOLERANCE)
    same(after, state)
    assert int(state.held.max()) <= 6 + 5
    assert state.position.tolist() == [40, 40]
    with torch.no_grad():  # also where nothing learns
        whole, end = net(tokens)
        first, middle = net(tokens[:, :13])
        second, last = net(tokens[:, 13:], middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, **TOLERANCE)
    same(last, end)


def test_full_rank_writes_are_full_writes_and_low_rank_is_the_nearest():
    tokens = models.ids(2, 30)
    full, low = (stacked(matrices="every", rank=rank) for rank in (None, 16))
    (nats, state), (other, near) = read(full, tokens), read(low, tokens)
    torch.testing.assert_close(other, nats, rtol=1e-6, atol=1e-8)
    for slot in full.stack.slots:
        a, b = (s.blocks[slot.block].levels[str(slot.level)][slot.name].weights
                for s in (state, near))  # fmt: skip
        torch.testing.assert_close(b["left"] @ b["right"], a["full"], rtol=1e-6, atol=1e-8)
    lives = [net.liveness(net.initial_state(2), s) for net, s in ((full, state), (low, near))]
    assert lives[0] == pytest.approx(lives[1], rel=1e-5)
    # One write of rank 2 is nearly as near as a matrix of rank 2 can be.
    once, two = (stacked(levels=(20, 20), source=Backprop(chunk=20), rank=r) for r in (None, 2))
    (_, state), (_, near) = read(once, tokens[:, :21]), read(two, tokens[:, :21])
    for block in range(2):
        wanted = state.blocks[block].levels[str(block)]["last"].weights["full"]
        found = near.blocks[block].levels[str(block)]["last"].weights
        gap = (found["left"] @ found["right"] - wanted).square().sum((1, 2))
        least = torch.linalg.svdvals(wanted)[:, 2:].square().sum(1)
        assert bool((gap < 1.3 * least).all())
        assert sum(t.numel() for t in found.values()) == 2 * 2 * (24 + 16)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_through_writes(order):
    """Second order: the derivative of everything, first order: writes are constants."""
    net = stacked(levels=(4, 8), source=Backprop(order=order, chunk=4), matrices="every")
    tokens = models.ids(1, 13)
    loss, _ = net.observe(tokens[:, :7])
    loss, state = net.observe(tokens)
    parameters = [net.base.model.embed_tokens.weight, net.base.model.layers[0].mlp.up_proj.weight,
                  net.base.model.layers[1].self_attn.q_proj.weight]  # fmt: skip
    found = torch.autograd.grad(loss, parameters)
    expected, _ = definition(net, tokens[0], differentiated=order == 2)
    wanted = torch.autograd.grad(expected.mean(), parameters)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert state.blocks[0].levels["0"]["last"].weights["full"].requires_grad == (order == 2)


def test_second_order_is_the_slope_of_the_loss():
    net = stacked("gpt2", levels=(4, 8), source=Backprop(order=2, chunk=4), matrices="every")
    tokens, parameters = models.ids(1, 13), list(net.parameters())
    loss, _ = net.observe(tokens)
    torch.manual_seed(0)
    direction = [torch.randn_like(p) for p in parameters]
    found = torch.autograd.grad(loss, parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True))
    ends = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(step * d)
            ends.append(float(net.observe(tokens)[0]))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_targets_may_be_given_and_may_be_missing():
    net, tokens = stacked(matrices="every"), models.ids(2, 21)
    nats, state = read(net, tokens)
    with torch.no_grad():
        seen = net.observation(tokens[:, :9], targets=tokens[:, 1:10])
        more = net.observation(tokens[:, 9:20], seen.state, targets=tokens[:, 10:])
    torch.testing.assert_close(torch.cat([seen.nats, more.nats], 1), nats[:, 1:], **TOLERANCE)
    for path, tensor in flatten(more.state).items():
        if "weights" in path:
            torch.testing.assert_close(tensor, flatten(state)[path], **TOLERANCE)
    targets = tokens[:, 1:].masked_fill(torch.arange(20)[None] % 2 == 0, -100)
    with torch.no_grad():
        half = net.observation(tokens[:, :-1], targets=targets)
        first = net.observation(tokens[:, :5])
    assert half.scored.sum(1).tolist() == [10, 10]
    expected = first.nats[:, 2::2].mean()  # up to the first write they are the same
    torch.testing.assert_close(half.nats[:, 1:4:2].mean(), expected, **TOLERANCE)


@pytest.mark.parametrize("rank", [None, 2])
def test_half_precision_writes_in_float32(rank):
    net = stack_levels(models.model("llama", scale=1.0).bfloat16(), [Level(4), Level(8)], rank=rank)
    tokens = models.ids(2, 20)
    with torch.no_grad():
        logits, _ = net(tokens)
        assert torch.equal(logits, net.base(tokens).logits)
        _, state = net.observe(tokens)
    written = [t for path, t in flatten(state).items() if path.endswith((".full", ".left"))]
    assert {tensor.dtype for tensor in written} == {torch.float32}
    assert all(value > 0 for value in net.liveness(net.initial_state(2), state).values())


def test_lora_may_be_the_slow_level():
    peft = pytest.importorskip("peft")
    made, tokens = models.model(), models.ids(1, 20)
    plain = made(tokens).logits
    config = peft.LoraConfig(r=2, target_modules=["down_proj", "up_proj"], init_lora_weights=True)
    lora = peft.get_peft_model(made, config)
    net = stack_levels(lora, [Level(4), Level(1000)], layers=[0, 1],
                       regime=("in_context", "across_contexts"))  # fmt: skip
    with torch.no_grad():
        assert torch.equal(net(tokens)[0], plain)
    loss, state = net.observe(tokens)
    loss.backward()
    assert net.writes(state) == {"0": 4.0}
    periods = net.parameter_levels()
    moved = {name: periods[name].period for name, p in net.named_parameters() if p.grad is not None}
    assert moved
    assert all("lora_B" in name or "lora_A" in name for name in moved)
    assert {period for name, period in moved.items() if ".layers.1.mlp" in name} == {1000}
    assert {period for name, period in moved.items() if ".layers.0." in name} == {1}


def test_the_model_is_not_touched():
    net = stacked(matrices="every")
    before = {name: p.clone() for name, p in net.base.state_dict().items()}
    _, state = read(net, models.ids(2, 20))
    loss, _ = net.observe(models.ids(2, 20))
    assert loss.requires_grad
    assert all(torch.equal(p, before[name]) for name, p in net.base.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert not any(tensor.requires_grad for tensor in flatten(state).values())
    net.train()
    _, other = read(net, models.ids(2, 20))
    same(other, state)


def test_generate_uses_what_was_written_and_beams_share_it():
    net = stacked(step_size=4.0, levels=(4, 4))
    _, state = read(net, models.ids(2, 30))
    prompt = models.ids(2, 3, seed=5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = net.generate(prompt, **options)
    assert torch.equal(plain, net.base.generate(prompt, **options))
    taught = net.generate(prompt, state, **options)
    assert not torch.equal(plain, taught)
    empty = net.new_text(state)
    tokens = prompt
    with torch.no_grad():
        for _ in range(6):
            logits, _ = net(tokens, empty)
            tokens = torch.cat([tokens, logits[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(taught, tokens)
    folds = stacked("opt", step_size=4.0, levels=(4, 4))  # rows and tokens in one axis
    _, learned = read(folds, models.ids(2, 30))
    four = folds.generate(prompt, learned, num_beams=3, **options)
    for index in range(2):
        _, alone = read(folds, models.ids(2, 30)[index : index + 1])
        one = folds.generate(prompt[index : index + 1], alone, num_beams=3, **options)
        assert torch.equal(one[0], four[index])
    beams = net.generate(prompt, state, num_beams=3, num_return_sequences=2, **options)
    assert beams.shape == (4, 9)


def test_what_cannot_be_stacked_or_read_is_refused():
    llama = models.model()
    for message, levels, changes in [
        ("fastest first", (8, 4), {}),
        ("expected a list", (), {}),
        ("as many layers", (1, 2, 3), {}),
        ("indices from 0 to 1", (4,), {"layers": [2]}),
        ("indices from 0 to 1", (4,), {"layers": [0, 0]}),
        ("source: expected Backprop", (4,), {"source": "local"}),
        ("error_rule", (4,), {"error_rule": "sgd"}),
        ("plan", (4,), {"plan": "all"}),
        ("matrices", (4,), {"matrices": "first"}),
        ("rank: expected a whole", (4,), {"rank": 0}),
        ("remembers a moment", (4,), {"rank": 2, "error_rule": Adam()}),
        ("no derivative", (4,), {"rank": 2, "source": Backprop(order=2)}),
        ("step_size", (4,), {"step_size": -1.0}),
        ("move as a whole", (4, 8), {"regime": "across_contexts", "plan": "split"}),
    ]:
        with pytest.raises(ValueError, match=message):
            stack_levels(llama, [Level(period) for period in levels], **changes)
    with pytest.raises(ValueError, match="expected one of transformers"):
        stack_levels(torch.nn.Linear(2, 2), [Level(4)])
    with pytest.raises(ValueError, match="predicts no tokens"):
        stack_levels(llama.model, [Level(4)])
    with pytest.raises(ValueError, match="positions"):
        stacked("gpt2", levels=(100, 100), source=Backprop(chunk=80))
    net = stacked()
    _, state = read(net, models.ids(1, 6))
    for message, call in [
        ("input_ids", lambda: net(torch.zeros(3, dtype=torch.long))),
        ("0 to 47, got 48", lambda: net.observe(torch.full((1, 2), 48))),
        ("attention_mask", lambda: net(models.ids(1, 4), attention_mask=torch.ones(1, 3).bool())),
        ("expected 2 rows", lambda: net(models.ids(2, 4), state)),
        ("writes", lambda: net(models.ids(1, 4), writes="maybe")),
        ("waits", lambda: net.observe(models.ids(1, 4), state, targets=models.ids(1, 4))),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        net.observe(models.ids(1, 4))


def test_chosen_layers_and_levels_of_their_own():
    regime = InContext(source=Backprop(chunk=4), rule=HeavyBall(0.5), step_size=0.2)
    net = stack_levels(models.model(), [ContinuumLevel(4, regime)], layers=[1])
    assert [(slot.block, slot.name) for slot in net.stack.slots] == [(1, "last")]
    _, state = read(net, models.ids(1, 10))
    assert [list(block.levels) for block in state.blocks] == [[], ["0"]]
    assert list(net.liveness(net.initial_state(1), state)) == ["blocks.1.levels.0"]


def test_across_contexts_the_weights_are_the_levels():
    net = stack_levels(models.model(), [Level(8), Level(64)],
                       regime=("in_context", "across_contexts"))  # fmt: skip
    levels = net.parameter_levels()
    assert levels.keys() == dict(net.named_parameters()).keys()
    slow = {name for name, level in levels.items() if level.period == 64}
    assert slow == {
        f"base.model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    }
    assert {level.period for level in levels.values()} == {1, 64}
    assert {slot.block for slot in net.stack.slots} == {0}

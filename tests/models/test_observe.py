"""Learning from the next-token loss in context: ``observe`` against a token loop, and its laws."""

import itertools

import pytest
import torch
from observe_definition import Reader
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestling.continuum import (
    Adam,
    Backprop,
    ContinuumConfig,
    ContinuumLevel,
    DeltaGradientDescent,
    GradientDescent,
    HeavyBall,
    InContext,
    Local,
)
from nestling.continuum.config import VARIANTS
from nestling.layers import AttentionConfig, SelfModifyingConfig
from nestling.memory import flatten, unflatten
from nestling.models import LanguageModel, ModelConfig, build, observe
from nestling.models.observe import observing, settled

RULES = {
    "sgd": GradientDescent(), "momentum": HeavyBall(0.7), "adam": Adam(eps=1e-3),
    "dgd": DeltaGradientDescent(),
}  # fmt: skip
THREE, FOUR = (2, 3, 7), (1, 3, 5, 8)
VOCABULARY = 11
BY_LOSS = (Backprop(),)


def model_for(variant="sequential", periods=THREE, rules=("sgd",), sources=BY_LOSS,
              layers=2, mixer=None, seed=0):  # fmt: skip
    """Small and in float64, with large errors and no parameter at its start value."""
    levels = tuple(
        ContinuumLevel(period, InContext(rule=RULES[rules[i % len(rules)]],
                                         source=sources[i % len(sources)],
                                         step_size=(0.05, 0.02, 0.03)[i % 3]), hidden=3 + i)
        for i, period in enumerate(periods)
    )  # fmt: skip
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=VOCABULARY, width=6, heads=2, layers=layers, mixer=mixer or AttentionConfig(),
        continuum=ContinuumConfig(levels=levels, variant=VARIANTS[variant]),
    )  # fmt: skip
    made = LanguageModel(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def ids_for(batch=1, length=17, seed=1):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def numbers(blocks):
    """All of a state but the tokens seen, which the definition counts when they are written."""
    return {p: t for p, t in flatten(blocks).items() if not p.endswith(".seen")}


def gradients(model, nats, blocks):
    outputs = [nats, *(t for t in flatten(blocks).values() if t.is_floating_point())]
    loss = sum((out.sin() * torch.linspace(0.5, 1.5, out.numel()).view(out.shape)).sum()
               for out in outputs if out.requires_grad)  # fmt: skip
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g if g is not None else torch.zeros(()) for name, g in zip(named, found)}  # noqa: B905


def same(one, other, rtol=1e-8):
    assert one.keys() == other.keys()
    for name, value in one.items():
        real = value.is_floating_point() and value.numel()
        scale = 1 + float(value.detach().abs().max()) if real else 0.0
        torch.testing.assert_close(
            other[name], value, rtol=rtol, atol=1e-10 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def by_definition(model, ids):
    reader = Reader(model)
    losses = [reader.token(token) for token in ids[0]]
    return torch.stack(losses[1:]), tuple(reader.blocks)


def against_the_definition(model, ids):
    with sdpa_kernel(SDPBackend.MATH):  # which can be differentiated twice
        nats, blocks = by_definition(model, ids)
    seen = observe(model, ids)
    torch.testing.assert_close(seen.nats[0, 1:], nats, rtol=1e-9, atol=1e-11)
    assert seen.scored.tolist() == [[False] + [True] * (ids.shape[1] - 1)]
    same(numbers(blocks), numbers(seen.state.blocks))
    assert all(int(t) == ids.shape[1] for p, t in flatten(seen.state.blocks).items()
               if p.endswith(".seen"))  # fmt: skip
    same(gradients(model, nats, blocks), gradients(model, seen.nats[0, 1:], seen.state.blocks))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("periods", [THREE, FOUR], ids=str)
def test_equals_the_token_loop(variant, rule, periods):
    against_the_definition(model_for(variant, periods, [rule]), ids_for())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [3, 256])
def test_equals_the_token_loop_differentiated_twice(variant, chunk):
    model = model_for(variant, (2, 5, 7), ["sgd", "dgd", "adam"], [Backprop(order=2, chunk=chunk)])
    against_the_definition(model, ids_for(length=15))


def test_levels_of_both_sources_in_one_chain():
    local = Local(matrices="every")
    model = model_for("sequential", FOUR, ["dgd", "sgd"], [local, Backprop(chunk=4)])
    against_the_definition(model, ids_for())


def test_second_order_is_the_derivative_of_what_is_computed():
    """Central differences of the whole loss, writes and all, and what first order leaves out."""
    ids, found = ids_for(length=9), {}
    for order in (1, 2):
        model = model_for(periods=(2, 3), sources=[Backprop(order=order)])
        names = ["blocks.0.continuum.levels.0.mlp.gate_up.weight", "blocks.1.mixer.qkv.weight",
                 "blocks.0.continuum.levels.1.step_scale"]  # fmt: skip
        parameters = [dict(model.named_parameters())[name] for name in names]
        grads = torch.autograd.grad(model.observe(ids)[0], parameters)
        found[order] = 0.0
        for parameter, grad in zip(parameters, grads, strict=True):
            direction = torch.randn_like(parameter)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(direction, alpha=sign * 1e-5)
                    values.append(float(model.observe(ids)[0]))
                    parameter.sub_(direction, alpha=sign * 1e-5)
            expected = (values[0] - values[1]) / 2e-5
            found[order] = max(found[order], abs(float((grad * direction).sum()) / expected - 1))
    assert found[2] < 1e-6
    assert found[1] > 1e-3


CASES = {
    "three": {"periods": THREE},
    "four_nested": {"variant": "nested", "periods": FOUR, "rules": ("adam", "momentum", "dgd")},
    "short_chunks": {"periods": (5, 12), "sources": (Backprop(chunk=3),), "rules": ("dgd",)},
    "both_sources": {"periods": FOUR, "sources": (Local(), Backprop(chunk=4)), "rules": ("dgd",)},
    "hope": {"periods": THREE, "mixer": SelfModifyingConfig(chunk_size=4, memory_chunk_size=3)},
    "no_loss_level": {"periods": THREE, "sources": (Local(),), "rules": ("dgd",)},
    "second_order": {"periods": (2, 5), "sources": (Backprop(order=2),)},
}


@pytest.mark.parametrize("case", CASES)
def test_cut_anywhere(case):
    model, ids = model_for(**CASES[case]), ids_for(2)
    whole = observe(model, ids)
    expected = gradients(model, whole.nats, whole.state.blocks)
    for cuts in ([1, 16], [4, 9, 13], list(range(1, 17))):
        state, nats = None, []
        for start, stop in itertools.pairwise([0, *cuts, 17]):
            seen = observe(model, ids[:, start:stop], state)
            nats.append(seen.nats)
            state = seen.state
        torch.testing.assert_close(torch.cat(nats, 1), whole.nats, rtol=1e-9, atol=1e-11)
        same(flatten(whole.state), flatten(state), rtol=1e-7)
    same(expected, gradients(model, torch.cat(nats, 1), state.blocks), rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_padding_rows_out_of_step_and_other_rows(case):
    """Rows of unequal length, padded anywhere, go on out of step as if each were alone."""
    model = model_for(**CASES[case])
    first, then, last = ids_for(3, 11), ids_for(3, 9, seed=2), ids_for(3, 1, seed=3)
    lengths = (11, 6, 0)
    mask = torch.zeros(3, 13, dtype=torch.bool)
    mask[0, 1:12], mask[1, torch.tensor([0, 2, 3, 7, 8, 12])] = True, True
    padded = torch.full((3, 13), 5)
    for row, length in enumerate(lengths):
        padded[row, mask[row]] = first[row, :length]
    state, found = None, [[], [], []]
    for ids, kept in ((padded, mask), (then, None), (last, None)):
        seen = observe(model, ids, state, mask=kept)
        state = seen.state
        for row in range(3):
            valid = slice(None) if kept is None else kept[row]
            found[row].append(seen.nats[row, valid])
    for row, length in enumerate(lengths):
        alone = observe(model, torch.cat([first[row, :length], then[row], last[row]])[None])
        torch.testing.assert_close(torch.cat(found[row]), alone.nats[0], rtol=1e-9, atol=1e-11)
        for path, tensor in flatten(alone.state.blocks).items():
            if "mixer.memory.weights" in path and "k" in path.split(".")[-1]:
                continue  # pairs of attention are padded to the longest row
            if "levels" in path:
                got = flatten(state.blocks)[path][row : row + 1]
                torch.testing.assert_close(got, tensor, rtol=1e-9, atol=1e-11, msg=path)


@pytest.mark.parametrize("case", CASES)
def test_causal(case):
    model, ids = model_for(**CASES[case]), ids_for(2)
    whole = observe(model, ids)
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCABULARY
    after = observe(model, changed)
    torch.testing.assert_close(after.nats[:, :9], whole.nats[:, :9], rtol=0, atol=0)
    assert (after.nats[:, 9:] - whole.nats[:, 9:]).abs().gt(1e-12).all()


@pytest.mark.parametrize("case", CASES)
def test_the_same_in_training_in_evaluation_and_without_gradients(case):
    model, ids = model_for(**CASES[case]), ids_for(2)
    state = observe(model, ids_for(2, 5, seed=7)).state
    found = [observe(model.train(), ids, state), observe(model.eval(), ids, state)]
    with torch.no_grad():
        found.append(observe(model, ids, state))
        assert not any(t.requires_grad for t in flatten(found[-1].state).values())
        assert not found[-1].nats.requires_grad
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found.append(observe(model, ids))
    torch.testing.assert_close(found[1].nats, found[0].nats, rtol=0, atol=0)
    torch.testing.assert_close(found[2].nats, found[0].nats, rtol=1e-12, atol=1e-13)
    same(flatten(found[0].state), flatten(found[2].state))
    model.requires_grad_(True)
    torch.testing.assert_close(found[3].nats, observe(model, ids).nats, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_targets_of_ones_own(case):
    model, ids = model_for(**CASES[case]), ids_for(2, 18)
    stream = observe(model, ids)
    told = observe(model, ids[:, :-1], targets=ids[:, 1:])
    torch.testing.assert_close(told.nats, stream.nats[:, 1:], rtol=1e-9, atol=1e-11)
    state, nats = None, []
    for start, stop in ((0, 6), (6, 7), (7, 17)):
        seen = observe(model, ids[:, start:stop], state, targets=ids[:, start + 1 : stop + 1])
        nats.append(seen.nats)
        state = seen.state
    torch.testing.assert_close(torch.cat(nats, 1), told.nats, rtol=1e-9, atol=1e-11)
    same(flatten(told.state.blocks), flatten(state.blocks))


def test_forward_holds_levels_of_the_loss_and_ends_the_open_chunk():
    """Three of four tokens are scored: their error is kept, nothing is written, clocks hold."""
    model, ids = model_for(periods=(5,), rules=["dgd"], layers=1), ids_for(1, 4)
    state = observe(model, ids).state
    asked, same_state = model(ids, state, writes="off")
    assert same_state is state
    _, after = model(ids, state)
    told, _ = model(ids, state)
    torch.testing.assert_close(asked, told, rtol=0, atol=0)
    level = after.blocks[0].continuum.levels["0"]
    assert (int(level.clock), int(level.seen), int(level.writes)) == (3, 8, 0)
    assert after.observed is None
    by_targets = observe(model, ids[:, :3], targets=ids[:, 1:]).state
    expected = settled(model, by_targets).blocks[0].continuum.levels["0"]
    same(dict(expected.gathered), dict(level.gathered))
    more = observe(model, ids_for(1, 3, seed=5), after).state.blocks[0].continuum.levels["0"]
    assert (int(more.clock), int(more.writes), int(more.contributed)) == (0, 1, 5)


def test_an_open_chunk_is_saved_and_goes_on():
    model, ids = model_for("nested", FOUR, ["adam"]), ids_for(2)
    whole = observe(model, ids)
    state = observe(model, ids[:, :8]).state
    saved = {path: tensor.detach().clone() for path, tensor in flatten(state).items()}
    loaded = unflatten(observing(model, model.initial_state(2)), saved)
    again = observe(model, ids[:, 8:], loaded)
    torch.testing.assert_close(again.nats, whole.nats[:, 8:], rtol=1e-9, atol=1e-11)
    same(flatten(whole.state), flatten(again.state))


def test_gradient_reaches_every_level_and_its_step_size():
    for variant in VARIANTS:
        model, ids = model_for(variant, rules=["adam", "dgd", "momentum"]), ids_for(2, 24)
        model.observe(ids)[0].backward()
        dead = [name for name, p in model.named_parameters()
                if p.grad is None or not float(p.grad.abs().max()) > 1e-12]  # fmt: skip
        assert dead == []


def test_loss_is_the_mean_over_predicted_tokens():
    model, ids = model_for(), ids_for(2)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 9:] = False
    loss, state = model.observe(ids, mask=mask)
    seen = observe(model, ids, mask=mask)
    assert int(seen.scored.sum()) == 16 + 8
    torch.testing.assert_close(loss, seen.nats.sum() / 24, rtol=0, atol=0)
    first, _ = model.observe(ids[:, :1])
    assert first.detach() == 0.0
    assert state.observed is not None


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: m.observe(torch.zeros(1, 0, dtype=torch.long)), "ids"),
        (lambda m: m.observe(ids_for(), targets=ids_for(1, 3)), "targets"),
        (lambda m: m.observe(ids_for(), targets=ids_for() + VOCABULARY), "targets"),
        (lambda m: m.observe(ids_for(), m.observe(ids_for())[1], targets=ids_for()), "targets"),
        (lambda m: m.observe(ids_for(2), m.observe(ids_for())[1]), "state"),
        (lambda m: model_for(sources=[Backprop(order=2)], mixer=SelfModifyingConfig()), "order=2"),
        (lambda m: model_for(sources=[Backprop(order=2)], mixer=AttentionConfig(conv_size=4)),
         "order=2"),
        (lambda m: Backprop(order=3), "order"),
        (lambda m: build("hope", regime="in_context", source="backwards"), "source"),
        (lambda m: build("hope", periods=(8, 8), source="backprop"), "source"),
        (lambda m: build("hope", variant="parallel"), "variant"),
        (lambda m: build("hope", regime=("in_context",)), "regime"),
        (lambda m: build("hope", regime="in_context", step_size="big"), "step_size"),
        (lambda m: build("hope", regime="in_context", error_rule="newton"), "error_rule"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(model_for())


@pytest.mark.parametrize("source", [Local(), Backprop()], ids=["local", "backprop"])
def test_every_end_of_a_period_is_told_with_the_state_before_and_after(source):
    """Periods 3 and 5 over 11 tokens: the loss of the eleventh is not known yet."""
    model, ids, events = model_for(periods=(3, 5), sources=[source]), ids_for(2, 11), []
    if isinstance(source, Local):
        _, state = model(ids, on_boundary=events.append)
    else:
        _, state = model.observe(ids, on_boundary=events.append)
    told = sorted((event.name, int(event.tokens[1])) for event in events)
    assert told == sorted(
        (f"blocks.{block}.continuum.levels.{level}", at)
        for block in (0, 1) for level, ends in ((0, (3, 6, 9)), (1, (5, 10))) for at in ends
    )  # fmt: skip
    assert all(event.rows.tolist() == [True, True] for event in events)
    last = {event.name: event.after for event in events}
    for block in (0, 1):
        for level in (0, 1):
            own = state.blocks[block].continuum.levels[str(level)].weights
            expected = last[f"blocks.{block}.continuum.levels.{level}"]
            assert all(torch.equal(own[name], W) for name, W in expected.items())
    _, held = model.observe(ids, on_boundary=lambda event: event.before)
    assert all(value == 0 for value in model.liveness(model.initial_state(2), held).values())


@pytest.mark.parametrize("field", ["ids", "targets", "count"])
def test_an_open_chunk_that_cannot_be_is_refused(field):
    model = model_for()
    state = observe(model, ids_for(1, 4)).state
    for value in (-1, VOCABULARY):
        tensors = dict(flatten(state))
        tensors[f"observed.chunk.{field}"] = torch.full_like(
            tensors[f"observed.chunk.{field}"], value
        )
        with pytest.raises(ValueError, match="open chunk"):
            model.observe(ids_for(), unflatten(state, tensors))


def test_inference_mode_is_refused():
    model = model_for()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        model.observe(ids_for())

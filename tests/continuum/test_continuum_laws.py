"""What a Continuum Memory System in context must be, whatever its levels are."""

import dataclasses

import pytest
import torch
from chains import FOUR, RULES, SOURCES, WIDTH, memory, random_state

from nestling.continuum import (
    AcrossContexts,
    Backprop,
    Boundary,
    ContinuumConfig,
    ContinuumLevel,
    InContext,
    Local,
    Watch,
    chunked,
    in_context,
)
from nestling.continuum.config import VARIANTS
from nestling.continuum.source import Given
from nestling.layers.continuum import ContinuumMemory, matched
from nestling.memory import flatten


def same_weights(of, like):
    missing = of.load_state_dict(like.state_dict(), strict=False)
    assert not missing.missing_keys or all(
        name.split(".")[-1] == "step_scale" or ".target." in name or ".key." in name
        for name in missing.missing_keys
    )
    return of


def plain_chain(periods, variant, hidden=7):
    torch.manual_seed(3)
    levels = tuple(ContinuumLevel(period, AcrossContexts()) for period in periods)
    config = ContinuumConfig(levels=levels, variant=VARIANTS[variant], hidden=hidden)
    made = ContinuumMemory(WIDTH, config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def run(made, x, **options):
    x = x.clone().requires_grad_()
    y, state = made(x, **options)
    named = dict(made.named_parameters())
    grads = torch.autograd.grad(y.sin().sum(), [x, *named.values()], allow_unused=True)
    return y, dict(zip(["x", *named], grads, strict=True)), state


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source", [Local(), Backprop()], ids=["local", "backprop"])
def test_one_level_that_never_moves_is_the_plain_mlp_to_the_last_bit(variant, source):
    plain = plain_chain((1,), variant)
    levels = in_context(None, source=source)
    config = ContinuumConfig(levels=levels, variant=VARIANTS[variant], hidden=7)
    made = same_weights(ContinuumMemory(WIDTH, config), plain)
    x = torch.randn(3, 19, WIDTH)
    (y, grads, _), (y2, grads2, _) = run(plain, x), run(made, x)
    assert torch.equal(y, y2)
    assert grads.keys() == grads2.keys()
    for name, grad in grads.items():
        if grad is None:
            assert grads2[name] is None
        else:
            assert torch.equal(grads2[name], grad), name
    mlp, mix = plain.levels[0], plain.mix_scale
    assert torch.equal(y, x + (1.0 if mix is None else mix[0]) * mlp.mlp(mlp.norm(x)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_size_0_is_no_system_to_the_last_bit(variant):
    plain = plain_chain(FOUR, variant)
    levels = in_context(*FOUR, step_size=0.0)
    config = ContinuumConfig(levels=levels, variant=VARIANTS[variant], hidden=7)
    made = same_weights(ContinuumMemory(WIDTH, config), plain)
    assert {n for n, _ in made.named_parameters()} == {n for n, _ in plain.named_parameters()}
    x = torch.randn(3, 19, WIDTH)
    (y, grads, _), (y2, grads2, state) = run(plain, x), run(made, x)
    assert torch.equal(y, y2)
    assert all(torch.equal(grads2[name], grad) for name, grad in grads.items())
    start = made.initial_state(3)
    assert all(level.moved == 0 and level.writes == 0
               for level in made.activity(start, state).values())  # fmt: skip
    assert made.activity(start, state)["levels.0"].dead


def test_nested_levels_start_anew_exactly_where_the_slower_period_ends():
    """Periods 2, 3 and 7: every event of 14 tokens, and what the weights are before and after."""
    made = memory("nested", (2, 3, 7), [RULES["adam"]], SOURCES["local"])
    events: list[Boundary] = []
    watch = Watch(on_boundary=events.append)
    x = torch.randn(1, 14, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        _, end = made(x, watch=watch)
    told = sorted((int(e.tokens[0]), e.name, e.kind) for e in events)
    once = [
        (2, "levels.0", "write"), (3, "levels.0", "restart"), (3, "levels.1", "write"),
        (5, "levels.0", "write"), (6, "levels.0", "restart"), (6, "levels.1", "write"),
        (7, "levels.0", "restart"), (7, "levels.1", "restart"), (7, "levels.2", "write"),
    ]  # fmt: skip
    assert told == sorted(once + [(at + 7, name, kind) for at, name, kind in once])
    assert {int(level.clock) for level in end.levels.values()} == {0}
    for event in events:
        if event.kind == "restart":
            moved = [not torch.equal(event.after[n], W) for n, W in event.before.items()]
            assert all(moved) or int(event.tokens[0]) in (7, 14)
    # What a block starts from is what the slower level has learned, and that stays.
    last = {e.name: e.after for e in sorted(events, key=lambda e: int(e.tokens[0]))}
    for index in ("0", "1"):
        initial = end.levels[index].initial.weights
        for name, W in initial.items():
            assert torch.equal(last[f"levels.{index}"][name], W)
            assert torch.equal(end.levels[index].weights[name], W)
            learned = made.levels[int(index)].weights()[name]
            assert not torch.equal(W[0], learned)
    slowest = end.levels["2"].weights["down"][0]
    assert not torch.equal(slowest, made.levels[2].weights()["down"])


def test_other_variants_never_start_anew():
    for variant in ("sequential", "independent"):
        made = memory(variant, (2, 3, 7), [RULES["adam"]])
        kinds = []
        watch = Watch(on_boundary=lambda event, kinds=kinds: kinds.append(event.kind))
        made(torch.randn(1, 14, WIDTH, dtype=torch.float64), watch=watch)
        assert kinds == ["write"] * (7 + 4 + 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_anywhere(variant):
    made = memory(variant, FOUR, [RULES["adam"], RULES["dgd"]], SOURCES["local"])
    x = torch.randn(2, 17, WIDTH, dtype=torch.float64)
    start = random_state(made, 2)
    whole, end = made(x, start)
    for cuts in ([1, 16], [4, 9, 13], list(range(1, 17))):
        parts, state = [], start
        for piece in x.tensor_split(cuts, dim=1):
            y, state = made(piece, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)
        for path, tensor in flatten(end).items():
            torch.testing.assert_close(flatten(state)[path], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_causal_and_rows_independent(variant):
    made = memory(variant, FOUR, [RULES["dgd"]], SOURCES["local"])
    x = torch.randn(3, 17, WIDTH, dtype=torch.float64)
    whole, _ = made(x)
    changed = x.clone()
    changed[1, 9] += 1.0
    after, _ = made(changed)
    assert torch.equal(after[1, :9], whole[1, :9])
    assert torch.equal(after[0], whole[0])
    assert torch.equal(after[2], whole[2])
    assert bool((after[1, 9:] - whole[1, 9:]).abs().amax(-1).gt(1e-12).all())


def test_a_hook_may_put_other_weights_in():
    """What consolidation will do: here it takes every move back."""
    made = memory("sequential", (2, 3, 7), [RULES["sgd"]], SOURCES["local"])
    x = torch.randn(2, 14, WIDTH, dtype=torch.float64)
    _, end = made(x, watch=Watch(on_boundary=lambda event: event.before))
    start = made.initial_state(2)
    for index, level in end.levels.items():
        for name, W in level.weights.items():
            assert torch.equal(W, start.levels[index].weights[name])
        assert int(level.writes[0]) > 0
    with pytest.raises(ValueError, match=r"on_boundary: expected gate_up of shape .* levels\.0"):
        made(x, watch=Watch(on_boundary=lambda event: {"down": event.after["down"]}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_stays_in_float32(variant):
    made = memory(variant, (2, 5), [RULES["adam"]], SOURCES["local"]).float()
    x = torch.randn(2, 9, WIDTH)
    exact, _ = made(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = made(x)
    assert (y.float() - exact).abs().mean() < 0.1 * exact.abs().mean()
    floating = [t for t in flatten(state).values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.float32}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_levels_with_the_parameters_of_one_mlp(variant, count):
    levels = in_context(*FOUR[-count:], source=Local(key="projection"))
    config = ContinuumConfig(levels=levels, variant=VARIANTS[variant])
    found = matched(64, config, hidden=1024)

    def size(config):
        return sum(p.numel() for p in ContinuumMemory(64, config).parameters())

    assert abs(size(found) / size(ContinuumConfig(hidden=1024)) - 1) < 0.01
    assert found.levels == config.levels
    assert found.hidden < 1024 / count
    with pytest.raises(ValueError, match="hidden"):
        matched(64, config, hidden=8)
    own = dataclasses.replace(config, levels=(ContinuumLevel(3, InContext(), hidden=5),),
                              periods=(3,))  # fmt: skip
    with pytest.raises(ValueError, match="hidden size of its own"):
        matched(64, own, hidden=1024)


def test_a_level_that_keeps_nothing_holds_its_last_period_only():
    made = memory("sequential", (5,), [RULES["sgd"]], Local(), steps=(0.4,), kept=(0.0,))
    torch.manual_seed(4)
    last = torch.randn(2, 5, WIDTH).double()
    ends = []
    for before in (torch.randn(2, 10, WIDTH).double(), torch.randn(2, 35, WIDTH).double()):
        _, state = made(before)
        held = state.levels["0"].weights["down"]
        _, state = made(last, state)
        ends.append((held, state.levels["0"].weights["down"]))
    (held, end), (held2, end2) = ends
    assert not torch.allclose(held, held2, rtol=1e-3)
    # The last period's error is that of the weights held in it, so it differs with them: but of
    # the weights themselves nothing is left, only eta times that error.
    fast = made.chain().levels[0]
    norm, start = fast.norm(last), fast.learned
    for before, after in ((held, end), (held2, end2)):
        gate, up = (norm @ start["gate_up"]).chunk(2, dim=-1)
        a = torch.nn.functional.silu(gate) * up
        error = a @ before - fast.target(norm)
        expected = start["down"] - fast.eta * a.mT @ error / 5
        torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-12)


def test_what_is_kept_fades_by_its_share_with_every_write():
    """Without an error, ``theta_n - theta_0 = kept^n (theta - theta_0)``."""
    made = memory("sequential", (4,), [RULES["sgd"]], kept=(0.75,), source=SOURCES["local"])
    chain = made.chain()
    fast = dataclasses.replace(
        chain.levels[0], source=Given(torch.zeros(2, 12, WIDTH, dtype=torch.float64))
    )
    chain = dataclasses.replace(chain, levels=(fast,))
    state = random_state(made, 2)
    level = dataclasses.replace(
        state.levels["0"], clock=torch.zeros(2, dtype=torch.long),
        gathered={name: 0 * W for name, W in state.levels["0"].gathered.items()},
    )  # fmt: skip
    state = dataclasses.replace(state, levels={"0": level})
    x = torch.randn(2, 12, WIDTH).double()
    _, after = chunked(chain, x, state)
    for name, learned in fast.learned.items():
        far = level.weights[name] - learned
        torch.testing.assert_close(
            after.levels["0"].weights[name] - learned, 0.75**3 * far, rtol=1e-12, atol=1e-13
        )
        assert far.abs().max() > 0.05


@pytest.mark.parametrize("kept", [-0.1, 1.1, float("nan")])
def test_what_is_kept_is_a_share(kept):
    with pytest.raises(ValueError, match="kept: expected a number in"):
        InContext(kept=kept)

"""Laws that every preset keeps: cut anywhere, look ahead nowhere, mix no rows, ignore padding."""

import pytest
import torch

from nestling.layers import SelfModifyingTitans
from nestling.memory import Decay, DecayToInitial, Delta, LearningRule, Momentum, flatten
from nestling.models import ModelConfig, build, match_parameters, parameter_count
from nestling.models.presets import MIXERS

RULES = {
    "hope_momentum": LearningRule(retention=Delta(), momentum=Momentum(), values="self"),
    "hope_to_initial": LearningRule(retention=Delta(DecayToInitial()), values="self"),
    "hope_no_dgd": LearningRule(retention=Decay(), values="self"),
}
LEVELS = {"in_context": {}, "in_context_nested": {"variant": "nested", "error_rule": "adam"},
          "in_context_independent": {"variant": "independent"}}  # fmt: skip
CASES = [*MIXERS, *RULES, *LEVELS, "hope_adaptive_q", "hope_two_clocks", "windowed", "with_conv"]


def model_for(case: str, seed: int = 0):
    torch.manual_seed(seed)
    common = {"width": 16, "heads": 2, "layers": 2, "vocab_size": 50, "hidden": 24}
    chunks = {"chunk_size": 4, "memory_chunk_size": 4}
    if case in RULES:
        made = build("hope", rule=RULES[case], **chunks, **common)
    elif case in LEVELS:
        made = build("transformer", periods=(3, 8, 20), regime="in_context", **LEVELS[case],
                     **common)  # fmt: skip
    elif case == "hope_adaptive_q":
        every = ("k", "v", "q", "eta", "alpha", "memory")
        made = build("hope", adaptive=every, **chunks, **common)
    elif case == "hope_two_clocks":
        made = build("hope", chunk_size=5, memory_chunk_size=3, **common)
    elif case == "windowed":
        made = build("transformer", window=6, **common)
    elif case == "with_conv":
        made = build("transformer", conv_size=4, **common)
    elif ("attention" in case and case != "linear_attention") or case == "transformer":
        made = build(case, **common)
    else:
        made = build(case, **chunks, **common)
    return made.double()


def ids_for(batch=2, length=17, seed=1):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES)
def test_split_anywhere(case):
    model, ids = model_for(case), ids_for()
    whole, end = model(ids)
    for cuts in ([1, 16], [4, 9, 13], [7], list(range(1, 17))):
        state, parts = None, []
        for start, stop in zip([0, *cuts], [*cuts, 17], strict=True):
            logits, state = model(ids[:, start:stop], state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-11)
        for path, tensor in flatten(end).items():
            torch.testing.assert_close(flatten(state)[path], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_causal_and_rows_independent(case):
    model, ids = model_for(case), ids_for()
    whole, _ = model(ids)
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    after, _ = model(changed)
    assert torch.equal(after[:, :9], whole[:, :9])
    assert (after[:, 9:] - whole[:, 9:]).abs().amax(-1).gt(1e-12).all()
    alone, _ = model(ids[1:])
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_padding_anywhere_equals_no_padding(case):
    model, ids = model_for(case), ids_for(1, 11)
    plain, end = model(ids)
    more, _ = model(ids, end)
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
                           [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
                           [0, 2, 3, 5, 7, 8, 9, 11, 12, 13, 14]])  # fmt: skip
    padded, mask = torch.full((3, 15), 7), torch.zeros(3, 15, dtype=torch.bool)
    for row, place in enumerate(places):
        padded[row, place], mask[row, place] = ids[0], True
    logits, state = model(padded, mask=mask)
    again, _ = model(padded, state, mask=mask)
    for row, place in enumerate(places):
        torch.testing.assert_close(logits[row, place], plain[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(again[row, place], more[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_unequal_length_go_on_out_of_step(case):
    model = model_for(case)
    first, then = ids_for(2, 9), ids_for(2, 8, seed=2)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    _, state = model(first, mask=mask)
    logits, state = model(then, state)
    logits_next, _ = model(then[:, :1], state)
    for row, length in enumerate((9, 6)):
        whole = torch.cat([first[row, :length], then[row], then[row, :1]])[None]
        alone, _ = model(whole)
        torch.testing.assert_close(logits[row], alone[0, length:-1], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(logits_next[row], alone[0, -1:], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_no_parameter_without_gradient(case):
    model, ids = model_for(case), ids_for(2, 24)
    logits, _ = model(ids)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    dead = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 1e-12 or not p.grad.isfinite().all()
    ]
    assert dead == []


@pytest.mark.parametrize("case", CASES)
def test_train_and_eval_are_the_same(case):
    model, ids = model_for(case), ids_for()
    train, _ = model.train()(ids)
    evaluated, _ = model.eval()(ids)
    assert torch.equal(train, evaluated)


@pytest.mark.parametrize("case", ["hope", "hope_momentum", "hope_two_clocks"])
@pytest.mark.parametrize("recompute", [1, 2])
def test_recomputation_changes_nothing(case, recompute):
    import dataclasses

    ids, grads = ids_for(2, 24), []
    for value in (0, recompute):
        model = model_for(case)
        for block in model.blocks:
            block.mixer.config = dataclasses.replace(block.mixer.config, recompute=value)
        logits, _ = model(ids)
        logits.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [False, True])
def test_one_pass_over_all_memories_equals_two(momentum):
    """With one chunk for all tokens the memory's chunk size does not matter, only the code path."""
    rule = RULES["hope_momentum"] if momentum else LearningRule(retention=Delta(), values="self")
    found = []
    for memory_chunk_size in (12, 24):
        torch.manual_seed(0)
        model = build("hope", width=16, heads=2, layers=1, vocab_size=50, rule=rule,
                      chunk_size=12, memory_chunk_size=memory_chunk_size).double()  # fmt: skip
        logits, state = model(ids_for(2, 12))
        logits.sin().sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        mixer = state.blocks[0].mixer
        found.append([logits, *mixer.memory.weights.values(), *mixer.generators.weights.values(),
                      *mixer.memory.momentum.values(), *grads])  # fmt: skip
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_inner_memory_writes():
    model, ids = model_for("hope_adaptive_q"), ids_for(2, 24)
    _, state = model(ids)
    alive = model.liveness(model.initial_state(2), state)
    assert set(alive) == {
        f"blocks.{i}.mixer.{name}"
        for i in (0, 1)
        for name in ("k", "v", "q", "eta", "alpha", "memory")
    }
    assert all(1e-4 < value < 10 for value in alive.values())
    assert alive["blocks.0.mixer.memory"] > alive["blocks.0.mixer.k"]


def test_bf16_autocast_keeps_the_state_in_float32():
    model, ids = model_for("hope").float(), ids_for(2, 24)
    exact, _ = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model(ids)
    for path, tensor in flatten(state).items():
        if "weights" in path or "momentum" in path:
            assert tensor.dtype == torch.float32, path
    assert (logits.float() - exact).abs().mean() < 0.1 * exact.abs().mean()
    half = model.to(torch.bfloat16)
    _, state = half(ids)
    assert state.blocks[0].mixer.memory.weights["w_in"].dtype == torch.float32


def test_a_block_starts_from_its_initial_state():
    block = build("hope", width=16, heads=2, layers=1).blocks[0]
    x = torch.randn(2, 6, 16)
    fresh, _ = block(x)
    explicit, _ = block(x, block.initial_state(2))
    assert torch.equal(fresh, explicit)


def test_config_goes_through_json():
    import json

    for case in CASES:
        config = model_for(case).config
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_match_parameters_within_one_percent():
    for size in ("tiny", "mini", "small"):
        target = sum(p.numel() for p in build("transformer", size=size).parameters())
        assert abs(parameter_count(match_parameters("hope", target, size=size)) / target - 1) < 0.01


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: build("hoope"), "preset"),
        (lambda: build("hope", size="huge"), "size"),
        (lambda: build("hope", widht=3), "widht"),
        (lambda: build("hope", width=30, heads=4), "heads"),
        (lambda: build("hope", adaptive=("k",)), "adaptive"),
        (lambda: build("hope", periods=(64, 1)), "periods"),
        (lambda: ModelConfig.from_dict({"nonsense": 1}), "nonsense"),
        (lambda: ModelConfig.from_dict({"mixer": {"is": "os.system"}}), "os.system"),
        (lambda: model_for("hope")(torch.zeros(1, 3)), "ids"),
        (lambda: model_for("hope")(torch.full((1, 3), 50)), "ids"),
        (lambda: model_for("hope")(torch.full((1, 3), -1)), "ids"),
        (lambda: model_for("hope")(torch.zeros(1, 0, dtype=torch.long)), "ids"),
        (lambda: model_for("hope")(torch.zeros(3, dtype=torch.long)), "ids"),
        (lambda: model_for("hope")(ids_for(), mask=torch.ones(2, 3)), "mask"),
        (lambda: model_for("hope")(ids_for(), model_for("hope").initial_state(3)), "state"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize("case", CASES)
def test_writes_off_leaves_the_state_and_nothing_else(case):
    model, ids = model_for(case), ids_for()
    _, state = model(ids)
    kept = {path: tensor.clone() for path, tensor in flatten(state).items()}
    first, same = model(ids, state, writes="off")
    assert same is state
    for path, tensor in flatten(state).items():
        torch.testing.assert_close(tensor, kept[path], rtol=0, atol=0)
    # asked again, the same answer; and the next write goes on as if nothing had been asked
    torch.testing.assert_close(model(ids, state, writes="off")[0], first, rtol=0, atol=0)
    ahead, _ = model(ids, state)
    torch.testing.assert_close(model(ids, same)[0], ahead, rtol=0, atol=0)
    if isinstance(model.blocks[0].mixer, SelfModifyingTitans) or case in LEVELS:
        assert not torch.allclose(first, ahead, atol=1e-6)  # reading is not writing
        fresh, _ = model(ids, writes="off")
        assert not torch.allclose(first, fresh, atol=1e-6)  # and it is this state that is read
    else:
        torch.testing.assert_close(first, ahead, rtol=1e-9, atol=1e-11)

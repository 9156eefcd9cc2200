"""A model and its training as one system, for every preset and for models of one's own."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from nestling.layers import Attention, ContinuumConfig, ContinuumMemory, SelfModifyingTitans
from nestling.levels import Component, Level
from nestling.memory import flatten
from nestling.models import build
from nestling.models.by_level import by_level
from nestling.models.presets import MIXERS
from nestling.optim import LevelwiseOptimizer, adamw
from nestling.train import nested_system

FLOW = {"conditioning", "backpropagation"}
LINEAR = {"generation", "initialisation", *FLOW}
KINDS = {
    "hope": LINEAR,
    "hope_attention": {"generation", "non_parametric", *FLOW},
    "transformer": {"generation", "non_parametric", *FLOW},
    "titans": LINEAR,
    "deltanet": LINEAR,
    "gated_deltanet": LINEAR,
    "linear_attention": LINEAR,
}
IN_CONTEXT = {
    f"hope {variant} {source}": {
        "preset": "hope", "periods": (64, 512), "variant": variant, "regime": "in_context",
        "source": source,
    }
    for variant in ("sequential", "nested", "independent")
    for source in ("local", "backprop")
}  # fmt: skip
MODELS = {**{name: {"preset": name} for name in MIXERS}, **IN_CONTEXT}


def trained(model, *, tokens_per_step=2048):
    optimizer = LevelwiseOptimizer(by_level(model), adamw)
    return nested_system(model, optimizer, tokens_per_step=tokens_per_step)


def small(name, **more):
    values = {"width": 16, "heads": 2, "layers": 2, "hidden": 16, **MODELS[name], **more}
    return build(values.pop("preset"), **values)


def links(system, kind):
    return {(t.source, t.target) for t in system.transfers if t.kind == kind}


def test_every_preset_is_spoken_for():
    assert set(KINDS) == set(MIXERS)


@pytest.mark.parametrize("name", MODELS)
def test_every_trained_parameter_belongs_to_one_component(name):
    model = small(name)
    system = trained(model)
    claimed = [weight for component in system.components for weight in component.weights]
    assert sorted(claimed) == sorted(weight for weight, _ in model.named_parameters())
    sizes = {weight: p.numel() for weight, p in model.named_parameters()}
    for component in system.components:
        assert (component.kind == "weights") == bool(component.weights)
        if component.weights:
            assert component.parameters == sum(sizes[weight] for weight in component.weights)
        assert component.parameters > 0
        assert component.objective, component.name
    moments = sum(c.parameters for c in system.components if c.kind == "moments")
    assert moments == 2 * sum(sizes.values())


@pytest.mark.parametrize("name", MODELS)
def test_transfers_name_components_and_every_kind_that_must_be_there_is(name):
    system = trained(small(name))
    names = {component.name for component in system.components}
    kinds = {component.name: component.kind for component in system.components}
    assert {t.source for t in system.transfers} | {t.target for t in system.transfers} == names
    expected = KINDS.get(name, LINEAR)
    assert {t.kind for t in system.transfers} == expected
    # initialisation: exactly what is carried in context starts from what is learned
    started = {target for source, target in links(system, "initialisation")
               if kinds[source] == "weights"}  # fmt: skip
    assert started == {name for name in names if kinds[name] == "in_context"}
    # every initial state, as every other weight, is reached by an error
    moved = {target for _, target in links(system, "backpropagation")}
    assert {name for name in names if kinds[name] == "weights"} <= moved
    assert not {name for name in names if kinds[name] in ("moments", "non_parametric")} & moved


@pytest.mark.parametrize("name", MODELS)
def test_order_is_that_of_def_2(name):
    system = trained(small(name))
    periods = [c.level.sort_key for c in system.components]
    assert periods == sorted(periods)
    numbers = system.numbers
    assert list(numbers.values()) == sorted(numbers.values())
    for component in system.components:
        for other in component.after:
            assert numbers[other] < numbers[component.name]
    moments = [c.name for c in system.components if c.kind == "moments"]
    for first, second in zip(moments[::2], moments[1::2], strict=True):
        assert numbers[first] == numbers[second], "Adam's two moments are one level"


def test_hope_in_numbers():
    system = trained(small("hope"))
    assert [[(c.level.period, c.name.removeprefix("blocks.0.")) for c in level if "s.1" not in
             c.name.replace("levels", "level")] for level in system.levels] == [
        [(1, f"mixer.{box}") for box in ("k", "v", "eta", "alpha")],
        [(1, "mixer.memory")],
        [(2048, "optimizer.period_2048.exp_avg"), (2048, "optimizer.period_2048.exp_avg_sq")],
        [(2048, "mixer.weights"), (2048, "mixer.initial"), (2048, "continuum.levels.0"),
         (2048, "embedding")],
        [(8192, "optimizer.period_8192.exp_avg"), (8192, "optimizer.period_8192.exp_avg_sq")],
        [(8192, "continuum.levels.1")],
        [(65536, "optimizer.period_65536.exp_avg"), (65536, "optimizer.period_65536.exp_avg_sq")],
        [(65536, "continuum.levels.2")],
    ]  # fmt: skip
    boxes = {f"blocks.0.mixer.{box}" for box in ("k", "v", "eta", "alpha")}
    made = links(system, "generation")
    assert {s for s, t in made if t == "blocks.0.mixer.memory"} == boxes | {
        "blocks.0.mixer.weights"
    }
    assert ("blocks.0.mixer.k", "blocks.0.mixer.k") in made, "they modify themselves"
    flow = links(system, "conditioning")
    chain = ["embedding", "blocks.0.mixer.weights", *(f"blocks.0.continuum.levels.{i}" for i in
             range(3)), "blocks.1.mixer.weights"]  # fmt: skip
    back = links(system, "backpropagation")
    for one, two in itertools.pairwise(chain):
        assert (one, two) in flow
        assert (two, one) in back
    assert ("blocks.1.continuum.levels.2", "embedding") in flow


def test_gradient_flows():
    flows = trained(small("hope")).gradient_flows
    assert sorted(len(flow) for flow in flows) == [1] * 10 + [11]
    for source, together in (("local", 1), ("backprop", 4)):
        found = trained(small(f"hope sequential {source}")).gradient_flows
        level = next(flow for flow in found if "blocks.1.continuum.levels.0" in flow)
        assert len(level) == together


def test_nested_levels_start_from_the_slower_one():
    system = trained(small("hope nested local"))
    assert ("blocks.0.continuum.levels.1", "blocks.0.continuum.levels.0") in links(
        system, "initialisation"
    )
    other = links(trained(small("hope sequential local")), "initialisation")
    assert ("blocks.0.continuum.levels.1", "blocks.0.continuum.levels.0") not in other


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), []),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), ["momentum_buffer"]),
        (torch.optim.Adam, ["exp_avg", "exp_avg_sq"]),
        (torch.optim.RMSprop, ["square_avg"]),
        (torch.optim.Adagrad, ["sum"]),
    ],
)
def test_one_torch_optimizer_for_all_weights(make, names):
    model = small("transformer")
    optimizer = make(model.parameters())
    system = nested_system(model, optimizer, tokens_per_step=64)
    weights = [c for c in system.components if c.kind == "weights"]
    assert {c.level.period for c in weights} == {64}
    assert all(c.rule.startswith(type(optimizer).__name__) for c in weights)
    moments = [f"optimizer.{name}" for name in names]
    assert [c.name for c in system.components if c.kind == "moments"] == moments
    for component in weights:
        assert component.after == tuple(moments)
        for moment in moments:
            assert (component.name, moment) in links(system, "generation")
            assert (moment, component.name) in links(system, "conditioning")


def test_frozen_weights_never_move_and_a_component_in_parts_keeps_its_transfers():
    model = small("transformer", layers=1)
    model.blocks[0].mixer.qkv.weight.requires_grad_(False)
    system = nested_system(model, torch.optim.Adam(model.parameters()), tokens_per_step=8)
    by_name = {c.name: c for c in system.components}
    held, moved = (f"blocks.0.mixer.weights ({how})" for how in ("held", "Adam, 8"))
    assert by_name[held].weights == ("blocks.0.mixer.qkv.weight",)
    assert by_name[held].level == Level(None)
    assert by_name[held].parameters == 3 * 16 * 16
    assert "blocks.0.mixer.out.weight" in by_name[moved].weights
    assert {("embedding", held), ("embedding", moved)} <= links(system, "conditioning")
    assert held not in {target for _, target in links(system, "backpropagation")}
    assert system.numbers[held] == max(system.numbers.values())
    assert all(held not in flow for flow in system.gradient_flows)


def test_parts_of_one_period_have_names_of_their_own():
    model = nn.Linear(2, 2)
    optimizer = LevelwiseOptimizer(
        [(Level(1), {"weight": model.weight}), (Level(4), {"bias": model.bias})], adamw
    )
    system = nested_system(model, optimizer, tokens_per_step=8)
    assert [c.name for c in system.components if c.weights] == [
        "other weights (AdamW, 8)", "other weights (AdamW, 8, 1)",
    ]  # fmt: skip
    assert [c.parameters for c in system.components if c.weights] == [4, 2]


def test_without_an_optimizer_nothing_moves_the_weights():
    system = nested_system(small("titans"))
    assert {c.level.period for c in system.components if c.weights} == {None}
    assert [flow for flow in system.gradient_flows if len(flow) > 1] == []


class Own(nn.Module):
    """Parts of ours and of torch in a model that says nothing itself."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(4, 16)
        self.layers = nn.ModuleList([Attention(16, 2), SelfModifyingTitans(16, 2)])
        self.levels = ContinuumMemory(16, ContinuumConfig(periods=(1, 4096), hidden=16))


def test_a_model_of_ones_own():
    model = Own()
    system = nested_system(model, torch.optim.AdamW(model.parameters()), tokens_per_step=32)
    by_name = {c.name: c for c in system.components}
    assert by_name["other weights"].weights == ("encode.weight", "encode.bias")
    assert {"layers.0.memory", "layers.1.k", "layers.1.initial", "levels.levels.1"} <= set(by_name)
    claimed = [weight for c in system.components for weight in c.weights]
    assert sorted(claimed) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("part", [Attention(16, 2), ContinuumMemory(16, ContinuumConfig(hidden=8))])
def test_a_part_alone(part):
    system = nested_system(part, torch.optim.SGD(part.parameters(), lr=1.0))
    assert all(not c.name.startswith(".") for c in system.components)
    assert sum(c.parameters for c in system.components if c.weights) == sum(
        p.numel() for p in part.parameters()
    )


class Claims(nn.Module):
    def __init__(self, *weights):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.claimed = weights

    def components(self, name):
        one = Component(name="a", level=Level(1), memory="", rule="", context_flow="", parameters=2,
                        kind="weights", weights=self.claimed[:1])  # fmt: skip
        return [one, dataclasses.replace(one, name="b", weights=self.claimed[1:])]


def test_wrong_claims_are_named():
    with pytest.raises(ValueError, match="a and b both claim the parameter 'weight'"):
        nested_system(Claims("weight", "weight"))
    with pytest.raises(ValueError, match="the model has no parameter 'wait'"):
        nested_system(Claims("weight", "wait"))
    with pytest.raises(ValueError, match="tokens_per_step: expected a whole number >= 1, got 0"):
        nested_system(nn.Linear(1, 1), tokens_per_step=0)


def test_the_examples_of_the_documentation_run(capsys):
    text = (Path(__file__).parents[2] / "docs" / "levels.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "1 1 " + str([f"blocks.{i}.mixer.{m}" for i in (0, 1) for m in
                                   ("k", "v", "eta", "alpha")])  # fmt: skip
    assert out[2] == "3 2048 ['optimizer.exp_avg', 'optimizer.exp_avg_sq']"


@pytest.mark.parametrize("name", [*MIXERS, *(n for n in IN_CONTEXT if n.endswith("local"))])
def test_errors_reach_what_the_transfers_say_they_move(name):
    torch.manual_seed(0)
    periods = {"periods": (4, 8)} if name in IN_CONTEXT else {}
    model = small(name, **periods)
    logits, _ = model(torch.randint(256, (2, 24)))
    logits.logsumexp(-1).mean().backward()
    parameters = dict(model.named_parameters())
    for component in trained(model).components:
        if component.weights:
            grads = [parameters[weight].grad for weight in component.weights]
            assert any(grad is not None and bool(grad.any()) for grad in grads), component.name


@pytest.mark.parametrize("name", ["hope", "titans", "hope nested local"])
def test_memories_start_from_what_the_transfers_say(name):
    model = small(name)
    parameters = dict(model.named_parameters())
    system = trained(model)
    by_name = {c.name: c for c in system.components}
    started = links(system, "initialisation")
    for source in dict.fromkeys(s for s, _ in started if by_name[s].kind == "weights"):
        before = {p: one.clone() for p, one in flatten(model.initial_state(1)).items()}
        with torch.no_grad():
            for weight in by_name[source].weights:
                parameters[weight].add_(1.0)
        after = flatten(model.initial_state(1))
        layer = source.rpartition(".")[0]
        moved = {path for path in before if not torch.equal(before[path], after[path])}
        assert moved
        assert all(path.startswith(f"{layer}.") for path in moved)
        for target in (target for s, target in started if s == source):
            where, _, own = target.rpartition(".")
            if own in ("k", "v", "eta", "alpha"):  # in one stack
                target = f"{where}.generators"  # noqa: PLW2901
            assert any(path.startswith(f"{target}.") for path in moved), target

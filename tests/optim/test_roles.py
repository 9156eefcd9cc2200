"""Which parameters are matrices: on our own models, nets of filters, and models of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from nestling.models import build
from nestling.optim import M3, GeneralizedMomentum, m3, roles
from nestling.optim.roles import MATRICES, role_of


def by_role(model: nn.Module) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, role in roles(model).items():
        found.setdefault(role, set()).add(name)
    return found


def ends(names: set[str]) -> set[str]:
    """Last two parts of every name."""
    return {".".join(name.split(".")[-2:]) for name in names}


def test_hope():
    model = build("hope", width=32, heads=2, layers=1)
    found = by_role(model)
    assert found["embedding"] == {"embedding.weight"}
    assert ends(found["stacked"]) == {
        f"initial_{kind}.{name}" for kind in ("memory", "generators") for name in ("w_in", "w_out")
    }
    assert {p.ndim for n, p in model.named_parameters() if n in found["stacked"]} == {3, 4}
    assert ends(found["convolution"]) == {"k.weight", "v.weight", "q.weight"}
    assert ends(found["norm"]) == {"mixer.scale"}
    assert ends(found["matrix"]) == {
        "k.weight", "v.weight", "q.weight", "gate.weight", "out.weight", "gate_up.weight",
        "down.weight",
    }  # fmt: skip
    assert all(".conv." not in name for name in found["matrix"])
    assert {"norm.weight", "eta.bias", "eta.read_out", "alpha.read_out"} <= ends(found["vector"])


def test_transformer():
    found = by_role(build("transformer", width=32, heads=2, layers=1))
    assert found["embedding"] == {"embedding.weight"}
    assert ends(found["matrix"]) == {"qkv.weight", "out.weight", "gate_up.weight", "down.weight"}
    assert ends(found["vector"]) == {"norm.weight"}
    assert set(found) == {"embedding", "matrix", "vector"}


@pytest.mark.parametrize("preset", ["hope", "transformer", "titans", "deltanet"])
def test_a_model_of_ours_is_moved_by_m3(preset):
    model = build(preset, width=32, heads=2, layers=1)
    optimizer = M3(model, lr=0.01, frequency=2)
    ids = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        logits, _ = model(ids[:, :-1], model.initial_state(2))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class Block(nn.Module):
    """A residual block of filters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))


class Net(nn.Module):
    """Filters, a hidden layer, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 7)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.layer1 = nn.Sequential(Block())
        self.hidden = nn.Linear(8, 16)
        self.classifier = nn.Linear(16, 10)


def test_a_net_of_filters():
    found = by_role(Net())
    assert found["convolution"] == {
        "stem.weight", "up.weight", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight",
    }  # fmt: skip
    assert found["matrix"] == {"hidden.weight"}
    assert found["head"] == {"classifier.weight"}


def test_attention_of_torch():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    found = by_role(layer)
    assert found["matrix"] == {
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    }  # fmt: skip
    holder = nn.Module()
    holder.multi_head_attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    found = by_role(holder)
    assert ends(found["matrix"]) == {"multi_head_attention.in_proj_weight", "out_proj.weight"}
    assert {"multi_head_attention.bias_k", "multi_head_attention.bias_v"} <= ends(found["vector"])


def test_recurrent_cells():
    assert by_role(nn.LSTM(4, 8))["matrix"] == {"weight_ih_l0", "weight_hh_l0"}


def test_gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=50, n_positions=12)
    model = transformers.GPT2LMHeadModel(config)
    found = by_role(model)
    assert found["embedding"] == {"transformer.wte.weight", "transformer.wpe.weight"}
    # a module Conv1D, which is a matrix
    assert ends(found["matrix"]) == {"c_attn.weight", "c_proj.weight", "c_fc.weight"}
    assert set(found) == {"embedding", "matrix", "vector"}
    # by name alone the tables are known as well
    names = {n: role_of(n, p) for n, p in model.named_parameters()}
    assert {n for n, role in names.items() if role == "embedding"} == found["embedding"]


@pytest.mark.parametrize("tied", [True, False])
def test_llama(tied):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=50, tie_word_embeddings=tied,
    )  # fmt: skip
    found = by_role(transformers.LlamaForCausalLM(config))
    assert found["embedding"] == {"model.embed_tokens.weight"}
    assert found.get("head", set()) == (set() if tied else {"lm_head.weight"})
    assert {name.split(".")[-2] for name in found["matrix"]} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert set(found) - {"head"} == {"embedding", "matrix", "vector"}


def test_a_picture_transformer_with_a_head():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    found = by_role(model)
    assert found["head"] == {"classifier.weight"}
    assert len(found["convolution"]) == 1
    assert found["embedding"] == {"vit.embeddings.position_embeddings"}
    assert len(found["matrix"]) == 6


NAMES = {
    "attention.multi_head.q.weight": "matrix",
    "multihead_attn.in_proj_weight": "matrix",
    "lm_head.weight": "head",
    "head.weight": "head",
    "heads.head.weight": "head",
    "score.weight": "head",
    "unembed.weight": "head",
    "per_head_proj.weight": "matrix",
    "ln_1.weight": "norm",
    "norm1.weight": "norm",
    "bn2.weight": "norm",
    "pos_embed": "embedding",
    "wte.weight": "embedding",
    "planner.weight": "matrix",
    "scaled.weight": "matrix",
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    assert role_of(name, torch.zeros(4, 4)) == NAMES[name]


def test_shapes_without_names():
    found = [role_of("", torch.zeros(s)) for s in ((), (3,), (3, 1), (1, 3, 1), (3, 4), (2, 3, 4),
                                                   (2, 3, 4, 4))]  # fmt: skip
    assert found == ["vector"] * 4 + ["matrix", "stacked", "convolution"]
    assert MATRICES == ("matrix", "stacked")


def test_frozen_parameters_have_no_role_and_are_not_taken():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    assert set(roles(model)) == {"1.weight", "1.bias"}
    optimizer = M3(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_what_is_known_better_is_taken_and_all_else_stays():
    """A role that is given adds to those of the modules."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    plain = GeneralizedMomentum(model, m3())
    assert [group["param_names"] for group in plain.param_groups] == [
        ["1.weight", "2.weight"], ["0.weight"], ["1.bias", "2.bias"],
    ]  # fmt: skip
    told = GeneralizedMomentum(model, m3(), roles={"2.weight": "head"})
    assert [group["param_names"] for group in told.param_groups] == [
        ["1.weight"], ["0.weight", "2.weight"], ["1.bias", "2.bias"],
    ]  # fmt: skip


def test_a_tied_table_is_taken_once_and_is_a_table():
    model = nn.Sequential(nn.Linear(4, 9, bias=False), nn.Embedding(9, 4), nn.Linear(4, 4))
    model[0].weight = model[1].weight
    assert roles(model) == {"0.weight": "embedding", "2.weight": "matrix", "2.bias": "vector"}
    optimizer = M3(model)
    assert [group["by"] for group in optimizer.param_groups] == ["main", "others", "others"]


def test_matrices_of_one_row_are_no_matrices():
    holder = nn.ParameterList([Parameter(torch.ones(1, 5)), Parameter(torch.ones(5, 5))])
    assert roles(holder) == {"0": "vector", "1": "matrix"}

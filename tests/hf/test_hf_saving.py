"""What is saved comes back: weights in shards or half precision, caches, tokenizers."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from small_models import close, config_for, ids_for, model_for
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from nestling.data import ByteTokenizer
from nestling.hf import HopeCache, HopeConfig, HopeForCausalLM, byte_tokenizer
from nestling.hf.tokenizer import our_tokenizer
from nestling.memory import flatten
from nestling.session import Session, SessionError, read_saves

TEXT = "né Ā \x00 日本語 🎉\r\n\t two  spaces <s> </s> \u2028 end "


def tensors_of(folder) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("case", ["hope", "titans", "transformer", "levels_nested"])
def test_round_trip_in_shards(case, tmp_path):
    model, ids = model_for(case), ids_for()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not list(tmp_path.glob("*.bin"))
    saved = tensors_of(tmp_path)
    assert "lm_head.weight" not in saved  # tied: one table, saved once
    assert len(saved) == len(list(model.parameters()))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is HopeForCausalLM
    assert again.dtype == torch.float64
    assert again.lm_head.weight is again.language_model.embedding.weight
    assert again.config.to_model_config() == model.config.to_model_config()
    for (name, ours), (other, theirs) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert (name, True) == (other, torch.equal(ours, theirs))
    close(again(ids).logits, model(ids).logits)
    base = AutoModel.from_pretrained(tmp_path)
    close(base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_card(tmp_path):
    model = model_for("hope", eos_token_id=7)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "tags: [nestling, nested-learning, hope]" in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"], written["hidden_size"], written["vocab_size"]) == (
        "nestling", 16, 50,
    )  # fmt: skip
    assert written["nestling"] == model.config.to_model_config().to_dict()
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 7


@pytest.mark.parametrize("case", ["hope", "titans", "hope_attention", "levels_nested"])
def test_half_precision_keeps_states_in_float32(case, tmp_path):
    model, ids = model_for(case).float(), ids_for()
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    made = half(ids, labels=ids)
    assert made.logits.dtype == torch.bfloat16
    assert (made.logits.float() - model(ids).logits).abs().max() < 0.1
    made.loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in half.parameters())
    written = {
        path: tensor.dtype
        for path, tensor in flatten(made.past_key_values.state).items()
        if (tensor.is_floating_point() and "memory.weights.w" in path) or ".levels." in path
    }
    assert set(written.values()) <= {torch.float32, torch.int64}
    assert case == "hope_attention" or torch.float32 in written.values()
    assert half.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 16)


def test_what_a_checkpoint_lacks_is_drawn_as_by_our_constructor(tmp_path):
    model = model_for("hope")
    weights = model.state_dict()
    name = "model.language_model.blocks.0.mixer.gates.alpha.bias"
    alpha = weights.pop(name)
    made, told = HopeForCausalLM.from_pretrained(
        None, config=model.config, state_dict=weights, output_loading_info=True
    )
    assert set(told["missing_keys"]) == {name}
    close(made.state_dict()[name].double(), alpha)  # which starts at the same number everywhere
    with torch.device("meta"):
        empty = HopeForCausalLM(config_for("hope"))
    assert {p.device.type for p in empty.parameters()} == {"meta"}


@pytest.mark.parametrize("case", ["hope", "titans", "windowed", "levels_of_the_loss"])
def test_a_cache_is_a_session(case, tmp_path):
    model, ids, more = model_for(case, vocab_size=256), ids_for(1, 9), ids_for(1, 5, seed=2)
    cache = model(ids).past_key_values
    header = cache.save(tmp_path / "talk", model, note="first")
    assert (header.position, header.number, header.note) == (9, 1, "first")
    again = HopeCache.load(tmp_path / "talk", model)
    assert (again.get_seq_length(), again.read.tolist()) == (9, [9])
    assert len(again) == len(cache) == model.config.num_hidden_layers
    with torch.no_grad():
        assert torch.equal(model(more, past_key_values=again).logits,
                           model(more, past_key_values=cache).logits)  # fmt: skip
    cache.save(tmp_path / "talk", model)
    assert [save.position for save in read_saves(tmp_path / "talk")] == [9, 14]
    earlier = HopeCache.load(tmp_path / "talk", model, back=1)
    close(
        model(more, past_key_values=earlier).logits, model(torch.cat([ids, more], 1)).logits[:, 9:]
    )
    HopeCache.load(tmp_path / "talk", model).save(tmp_path / "copy", model)  # without a new token
    with Session.open(tmp_path / "copy", model=model.language_model) as session:
        assert session.position == 14
        session.feed("and what was read as a session")
        session.save()
    whole = HopeCache.load(tmp_path / "copy", model)
    assert whole.get_seq_length() == 44
    assert model(more, past_key_values=whole).logits.isfinite().all()


def test_other_models_and_rows_are_refused(tmp_path):
    model, ids = model_for("hope", vocab_size=256), ids_for(2, 4)
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="one row"):
        cache.save(tmp_path / "talk", model)
    with pytest.raises(ValueError, match="one row"):
        HopeCache(model.config).save(tmp_path / "talk", model)
    cache.batch_select_indices(torch.tensor([1]))
    cache.save(tmp_path / "talk", model)
    other = model_for("hope", seed=1, vocab_size=256)
    with pytest.raises(SessionError, match="belongs to another"):
        HopeCache.load(tmp_path / "talk", other)
    with pytest.raises(SessionError, match="belongs to another"):
        other(ids[:1]).past_key_values.save(tmp_path / "talk", other)
    with pytest.raises(SessionError, match="no session"):
        HopeCache.load(tmp_path / "nothing", model)
    small = model_for("hope")
    with pytest.raises(ValueError, match="tokenizer: expected that of the text"):
        small(ids[:1]).past_key_values.save(tmp_path / "small", small)
    file = next((tmp_path / "talk").glob("save-*/state.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(SessionError, match="damaged"):
        HopeCache.load(tmp_path / "talk", model)


SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM
from nestling.hf import HopeCache
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
cache = HopeCache.load(sys.argv[2], model)
ids = torch.tensor([list(b" and then")])
made = model.generate(ids, attention_mask=cache.mask(ids), past_key_values=cache, do_sample=False,
                      max_new_tokens=12)
print(made[0].tolist())
cache.save(sys.argv[2], model)
"""


def test_a_conversation_goes_on_in_another_process(tmp_path):
    torch.manual_seed(0)
    HopeForCausalLM(HopeConfig("hope", width=16, heads=2, layers=1)).save_pretrained(
        tmp_path / "model"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    first, second = (torch.tensor([list(text)]) for text in (b"once upon a time", b" and then"))
    cache = model(first).past_key_values
    cache.save(tmp_path / "talk", model)
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "model", tmp_path / "talk"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = model.generate(
        second, attention_mask=cache.mask(second), past_key_values=cache, do_sample=False,
        max_new_tokens=12,
    )  # fmt: skip
    assert json.loads(told.stdout) == expected[0].tolist()
    theirs = flatten(HopeCache.load(tmp_path / "talk", model).state)
    for path, tensor in flatten(cache.state).items():
        assert torch.equal(theirs[path], tensor), path


def test_bytes_round_trip(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for text in (TEXT, "".join(map(chr, range(0x300))), "", "\x00"):
            ids = one(text).input_ids
            assert ids == list(text.encode())
            assert one.decode(ids) == text
        assert (one.vocab_size, one.eos_token_id, one.pad_token_id) == (256, 0, 0)
        both = one(["né", "abcd"], padding=True, return_tensors="pt")
        assert both.attention_mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
        assert our_tokenizer(one, 256).name == "bytes"
        assert one.decode([195], skip_special_tokens=True) == "\ufffd"


def test_tokenizers_of_sessions():
    tokenizer = byte_tokenizer()
    own = ByteTokenizer()
    assert our_tokenizer(own, 256) is own
    tokenizer.add_tokens(["<more>"])
    with_more = our_tokenizer(tokenizer, 300)
    assert with_more.vocab_size == 257
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert our_tokenizer(tokenizer, 300).to_json() == with_more.to_json()
    with pytest.raises(ValueError, match="tokenizer: expected one of"):
        our_tokenizer("gpt2", 256)

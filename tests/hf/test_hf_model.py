"""The model behind transformers' door is the same model: logits, loss, gradients, cuts, padding."""

import pytest
import torch
import torch.nn.functional as F
from small_models import CASES, close, config_for, ids_for, model_for
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from nestling.hf import HopeCache, HopeConfig, HopeForCausalLM, HopeModel
from nestling.memory import flatten
from nestling.models import build, observe
from nestling.models.observe import observing


@pytest.mark.parametrize("case", CASES)
def test_cached_equals_uncached_at_any_cut(case):
    model, ids = model_for(case), ids_for()
    whole = model(ids, use_cache=False)
    assert whole.past_key_values is None
    close(whole.logits, model.language_model(ids)[0])
    for cuts in ([1, 12], [5], [2, 3, 4, 7, 8]):
        cache, parts = HopeCache(model.config), []
        for start, stop in zip([0, *cuts], [*cuts, 13], strict=True):
            part = model(ids[:, start:stop], past_key_values=cache)
            assert part.past_key_values is cache
            assert cache.get_seq_length() == stop
            parts.append(part.logits)
        close(torch.cat(parts, 1), whole.logits)


@pytest.mark.parametrize("case", CASES)
def test_padding_anywhere_writes_nothing(case):
    model, ids = model_for(case), ids_for(1, 9)
    plain = model(ids, labels=ids)
    logits = model(ids).logits
    for places in ([*range(4, 13)], [0, 1, 3, 4, 6, 7, 9, 10, 12]):
        padded, mask = torch.zeros(1, 13, dtype=torch.long), torch.zeros(1, 13, dtype=torch.long)
        padded[:, places], mask[:, places] = ids, 1
        read = model(padded, attention_mask=mask)
        close(read.logits[:, places], logits)
        for path, tensor in flatten(model(ids).past_key_values.state).items():
            close(flatten(read.past_key_values.state)[path], tensor)
        labels = padded.masked_fill(mask == 0, -100)
        loss = model(padded, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(loss, plain.loss, rtol=1e-6, atol=1e-7)  # float32 in there
        # and with the mask of everything since the beginning
        cache = model(padded[:, :7], attention_mask=mask[:, :7]).past_key_values
        rest = model(padded[:, 7:], attention_mask=mask, past_key_values=cache)
        close(rest.logits[:, [p - 7 for p in places if p >= 7]],
              logits[:, [i for i, p in enumerate(places) if p >= 7]])  # fmt: skip
        assert cache.read.tolist() == [9]
        assert cache.columns == 13


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_cache(case):
    """Beams: rows are reordered, repeated and chosen, and go on as if alone."""
    model, ids, more = model_for(case), ids_for(3, 6), ids_for(3, 5, seed=2)
    cache = model(ids).past_key_values
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    order = model(more, past_key_values=cache).logits
    close(order, model(torch.cat([ids[[2, 0, 0]], more], 1)).logits[:, 6:])
    cache = model(ids[:2]).past_key_values
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    twice = more[[0, 1, 0, 1]]
    close(model(twice, past_key_values=cache).logits,
          model(torch.cat([ids[[0, 0, 1, 1]], twice], 1)).logits[:, 6:])  # fmt: skip
    cache = model(ids).past_key_values
    cache.batch_select_indices(torch.tensor([1]))
    close(model(more[:1], past_key_values=cache).logits,
          model(torch.cat([ids[1:2], more[:1]], 1)).logits[:, 6:])  # fmt: skip


def test_cache_forks_resets_and_cannot_be_cropped():
    model, ids = model_for("hope"), ids_for(1, 8)
    cache = model(ids).past_key_values
    branch = cache.fork()
    first = model(ids, past_key_values=branch).logits
    close(model(ids, past_key_values=cache.fork()).logits, first)
    assert (len(cache), cache.get_seq_length(), branch.get_seq_length()) == (2, 8, 16)
    cache.crop(0)
    with pytest.raises(ValueError, match="cannot unlearn"):
        cache.crop(1)
    with pytest.raises(ValueError, match="a state"):
        cache.update(ids, ids, 0)
    cache.reset()
    assert (cache.batch_size, cache.is_initialized, cache.get_seq_length()) == (-1, False, 0)
    close(model(ids, past_key_values=cache).logits, model(ids).logits)


@pytest.mark.parametrize("case", ["hope", "hope_attention"])
def test_loss_is_that_of_transformers(case):
    model, ids = model_for(case), ids_for()
    labels = ids.clone()
    labels[0, :4] = -100
    made = model(ids, labels=labels)
    expected = F.cross_entropy(made.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    # transformers computes losses in float32
    torch.testing.assert_close(made.loss.double(), expected, rtol=1e-6, atol=1e-7)
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    close(model(ids, shift_labels=shifted).loss, made.loss)
    per_token = model(ids, labels=labels, num_items_in_batch=100).loss
    torch.testing.assert_close(per_token * 100, made.loss * 21, rtol=1e-6, atol=1e-6)


def test_levels_of_the_loss_learn_where_the_labels_are():
    model, ids = model_for("levels_of_the_loss"), ids_for()
    seen = observe(model.language_model, ids)
    made = model(ids, labels=ids)
    close(made.loss, seen.loss)
    assert made.logits is None
    with pytest.raises(ValueError, match="shift_labels"):
        model(ids, labels=ids, shift_labels=ids)
    grads = torch.autograd.grad(made.loss, list(model.parameters()), allow_unused=True)
    expected = torch.autograd.grad(seen.loss, list(model.parameters()), allow_unused=True)
    for ours, other in zip(grads, expected, strict=True):
        assert (ours is None) == (other is None)
        if ours is not None:
            close(ours, other)
    assert made.past_key_values.state.blocks[0].continuum.levels["0"].writes.tolist() == [4, 4]
    assert model(ids).past_key_values.state.blocks[0].continuum.levels["0"].writes.sum() == 0
    # what was observed and not yet written counts when reading goes on
    rest = model(ids[:, :4], past_key_values=made.past_key_values).logits
    state = observe(model.language_model, ids).state
    close(rest, model.language_model(ids[:, :4], state)[0])
    one = ids.clone()
    one[0, 3] = 1 + one[0, 3] % 49
    with pytest.raises(ValueError, match="labels: expected input_ids or -100"):
        model(ids, labels=one)
    hidden = ids.masked_fill(torch.arange(13) < 5, -100)
    close(model(ids, labels=hidden).loss, seen.nats[:, 5:].mean())
    assert observing(model.language_model, state) is state


def test_logits_to_keep_and_hidden_states():
    model, ids = model_for("hope"), ids_for()
    whole = model(ids, output_hidden_states=True)
    close(model(ids, logits_to_keep=3).logits, whole.logits[:, -3:])
    index = torch.tensor([0, 5])
    close(model(ids, logits_to_keep=index).logits, whole.logits[:, index])
    assert len(whole.hidden_states) == 3
    close(whole.hidden_states[0], model.get_input_embeddings()(ids))
    close(whole.hidden_states[-1], model.model(ids).last_hidden_state)
    block = model.language_model.block_list()[0]
    close(whole.hidden_states[1], block(whole.hidden_states[0])[0])
    as_tuple = model(ids, labels=ids, return_dict=False)
    close(as_tuple[1], whole.logits)


def test_bad_arguments_are_named():
    model, ids = model_for("hope"), ids_for()
    for name, words in {
        "inputs_embeds": {"inputs_embeds": torch.zeros(2, 13, 16)},
        "output_attentions": {"output_attentions": True},
        "past_key_values": {"past_key_values": DynamicCache()},
        "attention_mask": {"attention_mask": torch.ones(2, 1, 13, 13)},
        "labels": {"labels": ids[:, 1:]},
        "logits_to_keep": {"labels": ids, "logits_to_keep": 1},
    }.items():
        with pytest.raises(ValueError, match=name):
            model(ids, **words)
    with pytest.raises(ValueError, match="attention_mask"):
        model(ids, attention_mask=torch.ones(2, 12))
    with pytest.raises(ValueError, match="input_ids"):
        model(torch.arange(3))
    with pytest.raises(ValueError, match="ids: expected 0 to 49"):
        model(ids + 49)
    with pytest.raises(TypeError, match="position_ids"):
        model(ids, position_ids=ids)


def test_configuration():
    config = config_for("levels_nested", eos_token_id=3, use_cache=False)
    again = HopeConfig.from_dict(config.to_dict())
    assert again.to_model_config() == config.to_model_config()
    assert (again.eos_token_id, again.use_cache, again.hidden_size) == (3, False, 16)
    assert HopeConfig("hope", hidden_size=32, num_hidden_layers=1).to_model_config().width == 32
    assert HopeConfig("hope").num_attention_heads == 4
    for words, told in (
        ({"perids": (1,)}, "perids"),
        ({"width": 32, "hidden_size": 64}, "given twice"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"nestling": config.nestling, "vocab_size": 77}, "vocab_size: 77 contradicts"),
        ({"nestling": config.nestling, "size": "tiny"}, "preset, size"),
    ):
        with pytest.raises(ValueError, match=told):
            HopeConfig(**words)
    with pytest.raises(ValueError, match="preset: expected one of"):
        HopeConfig("rope")


def test_auto_classes_and_a_model_of_ours():
    config = config_for("titans")
    assert type(AutoConfig.for_model("nestling")) is HopeConfig
    assert type(AutoModel.from_config(config)) is HopeModel
    assert type(AutoModelForCausalLM.from_config(config)) is HopeForCausalLM
    own = build("hope", width=16, heads=2, layers=1)
    model = HopeForCausalLM.from_language_model(own, eos_token_id=0)
    assert model.language_model is own
    assert model.lm_head.weight is own.embedding.weight
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 0
    ids = ids_for()
    assert torch.equal(model(ids).logits, own(ids)[0])


def test_the_table_can_be_resized():
    model = model_for("hope")
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(60)
    assert model.config.vocab_size == model.language_model.config.vocab_size == 60
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    close(model.get_input_embeddings().weight[:50].detach(), before)
    assert model(torch.full((1, 3), 59)).logits.shape == (1, 3, 60)

"""LoRA on Hope models, and LoRA as the slowest level of a stack."""

import copy

import datasets
import pytest
import torch
from eval_tasks import llama, run, write_tasks
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import ids_for, model_for
from transformers import Trainer, TrainingArguments

from nestling.hf import stack_levels
from nestling.hf.lora import adapter_level, lora_targets
from nestling.hf.scoring import Ours, Reading
from nestling.levels import Level
from nestling.models import LanguageModel
from nestling.optim import LevelwiseOptimizer

CASES = ["hope", "levels_in_context", "levels_of_the_loss", "titans"]


def close(ours, other):
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)


def adapted(case, **words):
    """A model with an adapter, and what it was before."""
    model = model_for(case, **words)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=lora_targets(model),
                        task_type="CAUSAL_LM")  # fmt: skip
    torch.manual_seed(1)
    return get_peft_model(copy.deepcopy(model), config).double(), model


def train(model, ids, steps=2, rate=0.05):
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.SGD(own, lr=rate), []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("case", CASES)
def test_targets_are_applied_and_no_initial_state(case):
    model = model_for(case)
    targets = lora_targets(model)
    assert all(isinstance(model.get_submodule(path), torch.nn.Linear) for path in targets)
    assert not [p for p in targets if "initial" in p or "embedding" in p or "lm_head" in p]
    blocks = model.language_model.block_list()
    levels = sum(len(block.continuum.levels) for block in blocks)
    in_context = case.startswith("levels")
    assert sum(".mlp." in path for path in targets) == (0 if in_context else 2 * levels)
    assert sum(path.endswith(("project.q", "qkv")) for path in targets) == len(blocks)
    own = levels if case == "levels_in_context" else 0
    assert sum(path.endswith(".target") for path in targets) == own
    assert [f"model.language_model.{p}" for p in lora_targets(model.language_model)] == targets
    with pytest.raises(ValueError, match="model: expected a HopeForCausalLM, got LlamaForCausalLM"):
        lora_targets(llama())


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_there_and_back(case, tmp_path):
    model, base = adapted(case)
    ids = ids_for(2, 24)
    close(model(ids).logits, base(ids).logits)
    losses = train(model, ids)
    assert losses[1] < losses[0]
    after = model(ids).logits
    assert (after - base(ids).logits).abs().max() > 1e-4
    with model.disable_adapter():
        close(model(ids).logits, base(ids).logits)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    close(again(ids).logits, after)
    prompt = ids[:, :7]
    spoken = model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    merged = model.merge_and_unload()
    close(merged(ids).logits, after)
    assert torch.equal(merged.generate(prompt, max_new_tokens=5, do_sample=False), spoken)
    core = next(part for part in again.modules() if isinstance(part, LanguageModel))
    close(Reading(learner=Ours(core), writes=False).logits(ids),
          merged.language_model(ids, writes="off")[0])  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_adapter_learns(case):
    """The ones behind the first step: a gradient everywhere, and nothing else has one."""
    model, _ = adapted(case)
    ids = ids_for(2, 24)
    train(model, ids, steps=1)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_" in name:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


def test_trainer_moves_adapters_alone(tmp_path):
    model, base = adapted("hope")
    model = model.float()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in ids_for(8, 16)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == {name for name in before if "lora_" in name}
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(base.float(), tmp_path / "adapter")
    ids = ids_for()
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-6)


def test_an_adapted_model_is_evaluated(tmp_path, monkeypatch):
    """Behind peft it is still a model with an inner state, and reads as the merged one does."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model, _ = adapted("hope", vocab_size=256, layers=1)
    train(model, ids_for(2, 24))
    folder = write_tasks(tmp_path)
    done = run(model, folder, "pairs", writes="off")
    assert done["how"]["writes"] == "off"
    merged = run(model.merge_and_unload(), folder, "pairs", writes="off")
    value = merged["results"]["pairs"]["perplexity"]
    assert done["results"]["pairs"]["perplexity"] == pytest.approx(value, rel=1e-9)
    stack, _, _ = slow_stack(period=96)
    plain = run(stack.base, folder, "pairs")["results"]["pairs"]["perplexity"]
    stacked = run(stack, folder, "pairs", writes="off")["results"]["pairs"]["perplexity"]
    assert stacked == pytest.approx(plain, rel=1e-9)


def slow_stack(period, step_size=0.3):
    """Levels in context on a Llama, with LoRA beside attention and beside the written matrices."""
    base = llama()
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), config).double()
    stacked = stack_levels(model, [Level(8), Level(16)], step_size=step_size)
    optimizer = LevelwiseOptimizer(
        [adapter_level(stacked, period)], lambda named: torch.optim.SGD(named.values(), lr=0.3)
    )
    return stacked, optimizer, base


def tokens(text):
    return torch.tensor([list(text.encode())])


def test_lora_is_the_slow_level_of_a_stack():
    """Adapters move once in 96 tokens, across texts; levels in context start anew with each."""
    stacked, optimizer, base = slow_stack(period=96)
    text = tokens("a text of forty-eight bytes, and no one of them.")
    assert text.shape == (1, 48)
    before = {name: value.detach().clone() for name, value in stacked.named_parameters()}
    moved, losses = [], []
    for _ in range(8):
        loss, state = stacked.observe(text)  # each text from nothing
        loss.backward()
        assert stacked.writes(state) == {"0": 5.0, "1": 2.0}
        assert all(
            value > 0 for value in stacked.liveness(stacked.initial_state(1), state).values()
        )
        losses.append(float(loss.detach()))
        moved.append([level.period for level in optimizer.step(tokens=48).levels])
    assert moved == [[], [96]] * 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)  # held for the period
    assert losses[2] < losses[1]
    assert losses[-1] < losses[0] - 0.05
    for name, value in stacked.named_parameters():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name
    # What the adapters have learned is theirs: without them and the levels, it is the model it was.
    with stacked.base.disable_adapter():
        close(stacked(text)[0], base(text).logits)


def test_a_stack_finds_its_mlps_behind_adapters():
    stacked, _, base = slow_stack(period=96, step_size=0.0)
    paths = [slot.path.removeprefix("base_model.model.") for slot in stacked.stack.slots]
    assert paths == [f"model.layers.{index}.mlp.down_proj" for index in range(2)]
    text = tokens("adapters start at nothing, and levels with a step size of 0 stay there")
    close(stacked(text)[0], base(text).logits)
    with torch.no_grad():
        _, state = stacked.observe(text)
        assert stacked.writes(state) == {"0": 0.0, "1": 0.0}

"""Trainer, resume, SFTTrainer, gradient checkpointing: our models are trained like all others."""

import pytest
import torch
from datasets import Dataset
from small_models import close, ids_for, model_for
from torch.autograd.graph import saved_tensors_hooks
from transformers import Trainer, TrainingArguments

from nestling.hf import HopeConfig, HopeForCausalLM, byte_tokenizer

LOSS = "levels_of_the_loss"


def bytes_kept(model: HopeForCausalLM, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The loss, and the bytes that wait for its gradient."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, labels=ids).loss
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return loss, sum(size for place, size in sizes.items() if place not in own)


@pytest.mark.parametrize("case", ["hope", "titans", "transformer", "levels_nested"])
def test_gradient_checkpointing(case):
    model, ids = model_for(case), ids_for(2, 40)
    loss, kept = bytes_kept(model, ids)
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    loss, less = bytes_kept(model, ids)
    assert less < 0.5 * kept
    loss.backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name])
    model.gradient_checkpointing_disable()
    assert bytes_kept(model, ids)[1] == pytest.approx(kept, rel=0.05)  # places are used again


def test_checkpointing_every_other_layer_and_what_is_refused():
    model, ids = model_for("titans", layers=4), ids_for(2, 40)
    kept = [bytes_kept(model, ids)[1]]
    for every in (4, 2, 1):
        model.gradient_checkpointing_enable(every_n_layers=every)
        kept.append(bytes_kept(model, ids)[1])
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4
    with pytest.raises(ValueError, match="use_reentrant: expected False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    learner = model_for(LOSS)
    learner.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing: expected none"):
        learner(ids, labels=ids)


def trainer(model: HopeForCausalLM, folder, steps: int, **words) -> Trainer:
    ids = torch.randint(50, (24, 12), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    told = {"save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, **words}
    return Trainer(
        model=model,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        args=TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=2, lr_scheduler_type="constant",
            gradient_accumulation_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, **told,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("case", ["hope", LOSS])
def test_trainer_resumes_to_the_last_bit(case, tmp_path):
    whole = model_for(case).float()
    trainer(whole, tmp_path / "whole", 4).train()
    first = model_for(case).float()
    trainer(first, tmp_path / "cut", 2).train()
    again = model_for(case, seed=5).float()
    resumed = trainer(again, tmp_path / "cut", 4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    for (name, ours), theirs in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    moved = [not torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(),
                                                   strict=True)]  # fmt: skip
    assert sum(moved) > 0.8 * len(moved)
    assert (tmp_path / "cut" / "checkpoint-4" / "README.md").exists()
    assert 3.0 < resumed.evaluate()["eval_loss"] < 5.0


def test_trainer_divides_by_the_tokens_of_all_accumulated_batches(tmp_path):
    """Two steps of two rows are one step of four, also where rows count differently many tokens."""
    made = []
    for rows, steps in ((4, 1), (2, 2)):
        model = model_for("titans").float()
        run = trainer(model, tmp_path, 1, save_strategy="no", max_grad_norm=0.0,
                      per_device_eval_batch_size=rows)  # fmt: skip
        run.args.per_device_train_batch_size = rows
        run.args.gradient_accumulation_steps = steps
        ids = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))
        labels = ids.masked_fill(torch.arange(12)[None] < torch.tensor([[0], [9], [3], [6]]), -100)
        run.train_dataset = Dataset.from_dict({"input_ids": ids.tolist(),
                                               "labels": labels.tolist()})  # fmt: skip
        run._train_batch_size = rows
        run.args.train_sampling_strategy = "sequential"
        run.train()
        made.append((run.state.log_history[0]["loss"], run.state.log_history[0]["grad_norm"]))
    torch.testing.assert_close(*map(torch.tensor, made), rtol=1e-4, atol=1e-6)


def test_sft_trainer(tmp_path):
    trl = pytest.importorskip("trl")
    torch.manual_seed(0)
    config = HopeConfig("hope", width=16, heads=2, layers=1, eos_token_id=0, pad_token_id=0)
    model = HopeForCausalLM(config)
    data = Dataset.from_dict({"text": ["what was written", "first, and what came after"] * 8})
    run = trl.SFTTrainer(
        model=model,
        processing_class=byte_tokenizer(),
        train_dataset=data,
        args=trl.SFTConfig(
            tmp_path, max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=6,
            report_to=[], use_cpu=True, bf16=False, logging_steps=1, disable_tqdm=True,
        ),
    )  # fmt: skip
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[0] > 5.0
    assert losses[-1] < losses[0] - 0.8
    again = HopeForCausalLM.from_pretrained(tmp_path / "checkpoint-12")
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)

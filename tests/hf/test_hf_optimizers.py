"""The Trainer takes our optimizers by instance: it trains, saves, and goes on to the last bit."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from small_models import model_for
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from nestling.optim import DGD, DMGD, M3, AdaMuon, DeltaMomentum, PreconditionedMomentum

MAKERS = {
    "m3": lambda model: M3(model, lr=1e-2, frequency=3),
    "adamuon": lambda model: AdaMuon(model, lr=1e-2),
    "dmgd": lambda model: DMGD(model, lr=1e-2),
    "delta": lambda model: DeltaMomentum(model, lr=1e-1),
    "preconditioned": lambda model: PreconditionedMomentum(model, lr=1e-3),
    "dgd": lambda model: DGD(model, lr=1e-2),
}


def hope(seed: int) -> PreTrainedModel:
    return model_for("hope", seed=seed).float()


def gpt2(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2,
                   resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                   bos_token_id=0, eos_token_id=0)
    )  # fmt: skip


def llama(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                    num_attention_heads=2)
    )  # fmt: skip


def trainer(
    model: PreTrainedModel, make, folder, steps: int, *, schedule=False, **words
) -> Trainer:
    ids = torch.randint(50, (24, 12), generator=torch.Generator().manual_seed(0)).tolist()
    optimizer = make(model)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step)) if schedule else None
    told = {"save_steps": 4, "logging_steps": 1, "gradient_accumulation_steps": 2, **words}
    return Trainer(
        model=model,
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        optimizers=(optimizer, scheduler),
        args=TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=2, lr_scheduler_type="constant",
            report_to=[], use_cpu=True, disable_tqdm=True, **told,
        ),
    )  # fmt: skip


def resumes(make, build, folder, **words) -> None:
    """Steps 5 to 7, in the middle of a period of 3, are those of a run that was never cut."""
    whole, first, again = build(0), build(0), build(5)
    run = trainer(whole, make, folder / "whole", 7, **words)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer(first, make, folder / "cut", 4, **words).train()
    resumed = trainer(again, make, folder / "cut", 7, **words)
    resumed.train(resume_from_checkpoint=str(folder / "cut" / "checkpoint-4"))
    for (name, ours), theirs in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not torch.equal(
        first.get_output_embeddings().weight, whole.get_output_embeddings().weight
    )


@pytest.mark.parametrize("build", [hope, gpt2, llama])
def test_m3_trains_saves_and_goes_on(build, tmp_path):
    resumes(MAKERS["m3"], build, tmp_path)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "m3"])
def test_all_others_do_too(name, tmp_path):
    resumes(MAKERS[name], llama, tmp_path)


def test_with_a_scheduler_of_its_own(tmp_path):
    resumes(MAKERS["m3"], llama, tmp_path, schedule=True)


def test_in_bfloat16(tmp_path):
    """Weights in float32, activations in bfloat16."""
    resumes(MAKERS["m3"], llama, tmp_path, bf16=True)


def test_the_rates_that_are_logged_are_ours(tmp_path):
    run = trainer(llama(0), MAKERS["m3"], tmp_path, 3, schedule=True)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([1e-2, 1e-2 / 1.1, 1e-2 / 1.2])

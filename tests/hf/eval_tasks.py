"""Tasks on the disk, models that learn while they are asked, and their losses by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from small_models import model_for
from transformers import LlamaConfig, LlamaForCausalLM

from nestling.hf import HopeForCausalLM, stack_levels
from nestling.hf.evaluation import Evaluation, evaluate
from nestling.hf.stacked import StackedModel
from nestling.levels import Level
from nestling.models.observe import observe

PAIRS = [
    ("the cat sat on the mat, the hen", " sat on the cat"),
    ("a", " b"),
    ("", "no context at all, but more than a period of it"),
]
TEXTS = [
    "a text that is scored as a whole, period by period, from its first byte on",
    "and a short one",
]
CHOICES = [
    {"question": "the cat sat on the", "choices": ["mat", "moon", "mat and the hat"], "answer": 0},
    {"question": "two and two are", "choices": ["five", "four"], "answer": 1},
    {"question": "a hen is a", "choices": ["bird", "word"], "answer": 0},
]


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **said: Any) -> None:
    """A YAML task with its documents beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"task": name, "dataset_path": "json", "test_split": "test",
              "dataset_kwargs": {"data_files": {"test": str(data)}}}  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **said}))


def metric(name: str, aggregation: str = "mean") -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": aggregation == "mean"}


def write_tasks(folder: Path) -> Path:
    """``pairs``, ``texts`` and ``choices``."""
    rows = [{"context": context, "continuation": text} for context, text in PAIRS]
    write_task(folder, "pairs", rows, output_type="loglikelihood", target_delimiter="",
               doc_to_text="{{context}}", doc_to_target="{{continuation}}",
               metric_list=[metric("perplexity", "perplexity"), metric("acc")])  # fmt: skip
    write_task(folder, "texts", [{"text": text} for text in TEXTS],
               output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
               metric_list=[metric("bits_per_byte", "bits_per_byte")])  # fmt: skip
    write_task(folder, "choices", CHOICES, output_type="multiple_choice",
               doc_to_text="{{question}}", doc_to_choice="{{choices}}",
               doc_to_target="{{answer}}",
               metric_list=[metric("acc"), metric("acc_norm")])  # fmt: skip
    return folder


def llama(seed: int = 0) -> LlamaForCausalLM:
    """Random, of bytes, with weights that matter."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return made


def stacked(seed: int = 0) -> StackedModel:
    return stack_levels(llama(seed), [Level(period=9), Level(period=22)], step_size=0.5)


def model(kind: str) -> Any:
    if kind == "llama":
        return llama()
    if kind == "stacked":
        return stacked()
    return model_for(kind, vocab_size=256, layers=1, **PERIODS.get(kind, {}))


PERIODS = {"levels_of_the_loss": {"periods": (9, 22)}}
LEARNERS = ["hope", "levels_in_context", "levels_of_the_loss", "stacked"]


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def nats(model: Any, ids: list[int], writes: str, state: Any = None) -> torch.Tensor:
    """``-ln p`` of every token but the first, by the model's own account of its losses."""
    tokens = torch.tensor([ids])
    inner = model.language_model if isinstance(model, HopeForCausalLM) else model
    with torch.no_grad():
        if isinstance(inner, LlamaForCausalLM):
            logits = inner(tokens[:, :-1]).logits
        elif writes == "on":
            seen = inner.observation(tokens, state) if isinstance(inner, StackedModel) else (
                observe(inner, tokens, state)
            )  # fmt: skip
            return seen.nats[0, 1:]
        else:
            logits = inner(tokens[:, :-1], state, writes="off")[0]
    return -logits.log_softmax(-1)[0].gather(1, tokens[0, 1:, None])[:, 0]


def score(model: Any, context: str, text: str, writes: str, state: Any = None) -> float:
    """``ln p(text | context)``; without a context lm-eval puts the end of a text before it."""
    before, own = bytes_of(context) or [0], bytes_of(text)
    return -float(nats(model, before + own, writes, state)[-len(own) :].sum())


def run(model: Any, folder: Path, *tasks: str, session: Any = None, **how: Any) -> dict[str, Any]:
    return evaluate(model, tasks, how=Evaluation(include=(folder,), **how), session=session)

"""transformers' own common tests of a model, on ours.

They are in its source distribution and not in the wheel. Fetch them and say where they are:

    pip download transformers==5.23.0 --no-binary :all: --no-deps && tar xzf transformers-5.23.0.tar.gz
    pip install parameterized
    TRANSFORMERS_TESTS=transformers-5.23.0/tests pytest tests/hf/test_common.py -m nightly

What is skipped here, and why, is in ``SKIPPED`` and docs/hugging-face.md.
"""  # noqa: E501

from __future__ import annotations

import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from nestling.hf import HopeConfig, HopeForCausalLM, HopeModel

pytestmark = pytest.mark.nightly

FOLDER = os.environ.get("TRANSFORMERS_TESTS")
if FOLDER is None:
    pytest.skip(
        "TRANSFORMERS_TESTS: expected the folder 'tests' of transformers' source distribution",
        allow_module_level=True,
    )
pytest.importorskip("parameterized", reason="transformers' common tests need parameterized")


def common_tests(folder: Path) -> Any:
    """The module ``test_modeling_common``, as a part of a package of its own."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(folder)]
    sys.modules["transformers_tests"] = package
    # The distribution leaves out folders from which the module takes two more mixins.
    for name, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        if not (folder / f"{name.replace('.', '/')}.py").exists():
            parent, _, own = name.partition(".")
            for part in (f"transformers_tests.{parent}", f"transformers_tests.{parent}.{own}"):
                sys.modules.setdefault(part, types.ModuleType(part))
            setattr(sys.modules[f"transformers_tests.{name}"], mixin, type(mixin, (), {}))
    # What they know of a class they look up by its name in these tables.
    MODEL_MAPPING_NAMES["nestling"] = "HopeModel"
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["nestling"] = "HopeForCausalLM"
    return importlib.import_module("transformers_tests.test_modeling_common")


COMMON = common_tests(Path(FOLDER))

LAYERS = "our blocks are no layers of transformers, HopeModel checkpoints them; test_hf_training.py"
SKIPPED = {
    "test_inputs_embeds": "text comes as tokens",
    "test_inputs_embeds_matches_input_ids": "text comes as tokens",
    "test_attention_outputs": "there are no attention maps",
    "test_retain_grad_hidden_states_attentions": "there are no attention maps",
    "test_load_save_without_tied_weights": "one table is read and written",
    "test_resize_embeddings_untied": "one table is read and written",
    "test_resize_embeddings_untied_no_reinit_on_post_init": "one table is read and written",
    "test_training_gradient_checkpointing_use_reentrant_true": "refused by a ValueError: gradients "
    "reach the initial memories through states, which the reentrant kind does not follow",
    "test_gradient_checkpointing_enable_disable": LAYERS,
    "test_training_gradient_checkpointing": LAYERS,
    "test_training_gradient_checkpointing_use_reentrant_false": LAYERS,
    "test_generation_tester_mixin_inheritance": "the mixin is not in the source distribution; "
    "test_hf_generation.py tests generate",
}


class Small:
    """Small configurations and inputs, as the mixin asks for them."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 3, 7, 16, 2, 2
    is_training = True

    def __init__(self, preset: str) -> None:
        self.preset = preset

    def prepare_config_and_inputs_for_common(self) -> tuple[HopeConfig, dict[str, torch.Tensor]]:
        config = HopeConfig(
            self.preset, vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            hidden=24, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        ids = torch.randint(2, 50, (self.batch_size, self.seq_length))
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class OnOurs(COMMON.ModelTesterMixin):
    """The mixin with what ours is."""

    preset = "hope"
    all_model_classes = (HopeModel, HopeForCausalLM)
    has_attentions = False

    def setUp(self) -> None:
        name = self._testMethodName.split("_0_")[0]  # pyright: ignore[reportAttributeAccessIssue]
        if name in SKIPPED:
            self.skipTest(SKIPPED[name])  # pyright: ignore[reportAttributeAccessIssue]
        self.model_tester = Small(self.preset)


class TestHope(OnOurs, unittest.TestCase):
    preset = "hope"


class TestTransformer(OnOurs, unittest.TestCase):
    preset = "transformer"

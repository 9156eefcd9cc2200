"""A trained model out of a checkpoint, ready to read on."""

from __future__ import annotations

from pathlib import Path

import torch

from nestling.data import Tokenizer, tokenizer_from_json
from nestling.models import LanguageModel, ModelConfig
from nestling.storage.checkpoint import CheckpointError, read_model, resolve
from nestling.storage.weights import load_weights


def load_model(
    path: str | Path, *, device: str | torch.device = "cpu"
) -> tuple[LanguageModel, Tokenizer]:
    """The model of a checkpoint, or of a run's newest one, and the tokenizer of its text.

    Raises:
        CheckpointError: as :func:`nestling.train.read`, or if the model that it describes is not
            one that this version can build.
    """
    path = resolve(path)
    saved = read_model(path)
    try:
        model = LanguageModel(ModelConfig.from_dict(saved.config["model"]))
        load_weights(model, saved.model)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its model cannot be built: {error}") from error
    return model.to(device), tokenizer_from_json(saved.attachments.get("tokenizer.json"))

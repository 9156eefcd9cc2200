"""A stacked model on the disk: a standard directory of transformers, and ``nestling.json``.

    config.json     model_type "nestling_stacked", the model's own configuration under "base"
    nestling.json   the levels, where they are, and the digest of the weights that they stand on
    *.safetensors   the model's weights, as it was

Nothing but nestling knows that model type: who reads the directory as an ordinary model is told so,
and never gets one without its levels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import nestling
from nestling.data import ByteTokenizer, Tokenizer, load_tokenizer
from nestling.hf.plan import StackConfig
from nestling.hf.stacked import StackedModel
from nestling.session.identity import weights_digest
from nestling.storage.durable import appearing, cause, replace

FORMAT, SCHEMA = "nestling-stack", 1
LEVELS, CONFIG = "nestling.json", "config.json"
TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "tokenizer.model", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
"""Files that go with a model's texts."""


class StackedConfig(PreTrainedConfig):
    """What ``config.json`` of a stacked model says: that it is one, and of which model."""

    model_type = "nestling_stacked"

    def __init__(self, base: dict[str, Any] | None = None, **rest: Any):
        super().__init__(**rest)
        self.base = base or {}


AutoConfig.register(StackedConfig.model_type, StackedConfig, exist_ok=True)


def save_stacked(
    model: StackedModel, directory: str | Path, *, tokenizer: str | Path | None = None
) -> None:
    """Write a stacked model; the directory appears whole or not at all.

    Args:
        model: its weights are those of the model that it stands on.
        directory: where to.
        tokenizer: a directory whose files of a tokenizer are copied along.

    Raises:
        ValueError: if something is there already, the model is none that transformers can save,
            or the disk refuses.
    """
    directory, base = Path(directory), model.base
    if directory.exists() or directory.is_symlink():
        raise ValueError(f"directory: {directory} exists already")
    if not isinstance(base, PreTrainedModel) or hasattr(base, "peft_config"):
        raise ValueError(
            f"model: {type(base).__name__} has adapters or is not transformers' own: merge them "
            "first (merge_and_unload)"
        )
    levels = {
        "format": FORMAT, "schema": SCHEMA, "nestling": nestling.__version__,
        "stack": model.config.to_dict(),
        "base": {"class": type(base).__name__, "sha256": weights_digest(base),
                 "parameters": sum(p.numel() for p in base.parameters())},
    }  # fmt: skip
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with appearing(directory) as hidden:
            base.save_pretrained(hidden)
            own = json.loads((hidden / CONFIG).read_text())
            outer = {
                "model_type": StackedConfig.model_type, "architectures": ["StackedModel"],
                "base": own, "vocab_size": model.vocab_size,
            }  # fmt: skip
            replace(hidden / CONFIG, _json(outer))
            replace(hidden / LEVELS, _json(levels))
            for file in TOKENIZERS:
                if tokenizer is not None and (Path(tokenizer) / file).is_file():
                    replace(hidden / file, (Path(tokenizer) / file).read_bytes())
    except OSError as error:
        raise ValueError(f"{directory}: could not be written: {cause(error)}") from error


def load_stacked(
    directory: str | Path, *, base: Any = None, device: str | torch.device = "cpu"
) -> StackedModel:
    """The model, the levels, and the check that they belong together.

    Args:
        directory: what :func:`save_stacked` wrote.
        base: the model, if it is there already; else it is read from the directory.
        device: where it computes.

    Raises:
        ValueError: naming the file that is missing, damaged or of another schema; or if the base's
            weights are not those that the levels were put on.
    """
    directory = Path(directory)
    said = read_json(directory / LEVELS)
    if said.get("format") != FORMAT or said.get("schema") != SCHEMA:
        raise ValueError(
            f"{directory / LEVELS}: expected format {FORMAT!r} of schema {SCHEMA}, got "
            f"{said.get('format')!r} of schema {said.get('schema')!r}"
        )
    if sorted(said) != ["base", "format", "nestling", "schema", "stack"]:
        raise ValueError(f"{directory / LEVELS}: unexpected fields: {sorted(said)}")
    try:
        config = StackConfig.from_dict(said["stack"])
        wanted = {name: said["base"][name] for name in ("class", "sha256", "parameters")}
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{directory / LEVELS}: {error}") from error
    if base is None:
        base = _base(directory)
    found = weights_digest(base)
    if type(base).__name__ != wanted["class"] or found != wanted["sha256"]:
        raise ValueError(
            f"base: expected {wanted['class']} with weights {str(wanted['sha256'])[:12]}, "
            f"got {type(base).__name__} with weights {found[:12]}: "
            f"{directory} was made for another model"
        )
    return StackedModel(base.to(device), config)


def load_base(directory: str | Path) -> PreTrainedModel:
    """A model of transformers from a local directory, as the class that its configuration names.

    Raises:
        ValueError: naming the file that is missing or damaged, or what does not fit.
    """
    directory = Path(directory)
    own = read_json(directory / CONFIG)
    if own.get("model_type") == StackedConfig.model_type:
        raise ValueError(f"model: {directory} is stacked already")
    return _built(directory, own)


def tokenizer_of(directory: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer beside a model; bytes where there is none and the model knows all of them.

    Raises:
        ValueError: if there is none that can be read.
    """
    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        return load_tokenizer(directory)
    if vocab_size < ByteTokenizer.vocab_size or any((directory / f).exists() for f in TOKENIZERS):
        raise ValueError(
            f"{directory}: expected a tokenizer.json (AutoTokenizer.from_pretrained(...)."
            "save_pretrained(...) writes one)"
        )
    return ByteTokenizer()


def is_stacked(directory: str | Path) -> bool:
    """Whether it is the directory of a stacked model."""
    return (Path(directory) / LEVELS).is_file()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: naming the file.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: damaged: expected an object, got {type(found).__name__}")
    return found


def _base(directory: Path) -> PreTrainedModel:
    outer = read_json(directory / CONFIG)
    if outer.get("model_type") != StackedConfig.model_type:
        raise ValueError(
            f"{directory / CONFIG}: expected model_type {StackedConfig.model_type!r}, "
            f"got {outer.get('model_type')!r}"
        )
    if not isinstance(outer.get("base"), dict):
        raise ValueError(f"{directory / CONFIG}: damaged: expected an object under 'base'")
    return _built(directory, outer["base"])


def _built(directory: Path, own: dict[str, Any]) -> PreTrainedModel:
    names = own.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or "model_type" not in own:
        raise ValueError(f"{directory / CONFIG}: names no architecture, or several")
    kind = getattr(transformers, str(names[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ValueError(f"{directory / CONFIG}: transformers {transformers.__version__} has no "
                         f"model {names[0]!r}")  # fmt: skip
    config = AutoConfig.for_model(**own)
    try:
        loaded: Any = kind.from_pretrained(
            directory, config=config, dtype="auto", use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{directory}: its weights cannot be read: {told}") from error
    model, info = loaded
    wrong = {name: found for name, found in info.items() if found}
    if wrong:
        raise ValueError(f"{directory}: its weights do not fit {names[0]}: {wrong}")
    return model


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()

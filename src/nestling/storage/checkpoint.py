"""Checkpoints that are there whole or not at all.

    RUN/step-00000200/   model.safetensors  optimizer.safetensors  state.safetensors
                         checkpoint.json    (step, config, sizes and digests of the others)
    RUN/latest           the name of the newest

A checkpoint is written under a hidden name next to its place, every file is flushed to the disk,
and one rename makes it visible. At whatever moment the process is killed, every visible
``step-*`` is complete, and the ones before it are untouched. Tensors are safetensors, the rest is
JSON: reading a checkpoint never runs code from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import nestling
from nestling.shapes import Tensor
from nestling.storage.durable import appearing, cause, remove, replace, seal, sync
from nestling.storage.packing import pack, unpack, unshared

FORMAT = "nestling-checkpoint"
SCHEMA = 1
MANIFEST = "checkpoint.json"
POINTER = "latest"
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors", "state.safetensors")
_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says why and what is intact."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps done.
        tokens: tokens seen.
        config: plain JSON: what was built, and how it is trained.
        model: weights by name.
        optimizer: nested tensors and plain values: moments, clocks, unfinished gradients.
        state: the same: random numbers, position in the text, the carried inner state.
        attachments: small text files by name, for example ``tokenizer.json``.
    """

    step: int
    tokens: int
    config: dict[str, Any]
    model: Mapping[str, Tensor]
    optimizer: Any = None
    state: Any = None
    attachments: Mapping[str, str] = field(default_factory=dict)


def write(root: str | Path, checkpoint: Checkpoint, *, keep: int | None = None) -> Path:
    """Save a checkpoint under ``root`` and remove all but the newest ``keep``.

    Returns:
        Its directory, complete and on the disk.

    Raises:
        CheckpointError: if the step is there already, or the disk is full or fails. What was
            there before is as it was.
    """
    root = Path(root)
    name = f"step-{checkpoint.step:08d}"
    final = root / name
    if final.exists():
        raise CheckpointError(f"{final}: exists already")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with appearing(final) as hidden:
            _fill(hidden, checkpoint)
    except (OSError, SafetensorError) as error:
        newest = latest(root)
        intact = f"{newest.name} is intact" if newest else "no earlier checkpoint was there"
        raise CheckpointError(
            f"{root}: step {checkpoint.step} could not be saved: {cause(error)}; {intact}"
        ) from error
    try:
        sync(root)
        replace(root / POINTER, f"{name}\n".encode())
        for old in steps(root)[: -max(1, keep)] if keep is not None else []:
            remove(old)
    except OSError as error:
        raise CheckpointError(
            f"{final}: is saved, but the run's directory could not be put in order: {cause(error)}"
        ) from error
    return final


def read(path: str | Path) -> Checkpoint:
    """Load a checkpoint: a ``step-*`` directory, a ``latest`` file, or a run (its newest).

    Raises:
        CheckpointError: if it is missing, foreign, of a newer version, truncated or damaged,
            naming the file.
    """
    return _read(resolve(path), TENSOR_FILES)


def read_model(path: str | Path) -> Checkpoint:
    """Like :func:`read`, but only what the model needs: ``optimizer`` and ``state`` are ``None``.

    Raises:
        CheckpointError: as :func:`read`.
    """
    return _read(resolve(path), TENSOR_FILES[:1])


def _read(path: Path, wanted: Sequence[str]) -> Checkpoint:
    manifest = read_manifest(path)
    attached = [name for name in manifest["files"] if name not in TENSOR_FILES]
    for name in (*wanted, *attached):
        _verify(path, name, manifest["files"][name])
    try:
        tensors = {name: load_file(path / name) for name in wanted}
        model, optimizer, state = (tensors.get(name) for name in TENSOR_FILES)
        return Checkpoint(
            step=manifest["step"],
            tokens=manifest["tokens"],
            config=manifest["config"],
            model=model or {},
            optimizer=None if optimizer is None else unpack(manifest["optimizer"], optimizer),
            state=None if state is None else unpack(manifest["state"], state),
            attachments={name: (path / name).read_text(encoding="utf-8") for name in attached},
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What ``checkpoint.json`` says, without loading any tensor.

    Raises:
        CheckpointError: if it is missing, not ours, or of a newer version.
    """
    path = resolve(path)
    file = path / MANIFEST
    if not file.is_file():
        found = sorted(entry.name for entry in path.iterdir())[:4]
        raise CheckpointError(
            f"{path}: not a nestling checkpoint: it has no {MANIFEST} (found {found or 'nothing'})"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{file}: truncated or damaged ({file.stat().st_size} bytes): {error}{_before(path)}"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file}: not a nestling checkpoint: 'format' is not {FORMAT!r}")
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{file}: schema {manifest.get('schema')!r} of nestling {manifest.get('nestling')}; "
            f"this version reads schema {SCHEMA}"
        )
    missing = {"step", "tokens", "config", "optimizer", "state", "files"} - manifest.keys()
    if missing:
        raise CheckpointError(f"{file}: damaged: no {sorted(missing)}")
    files = manifest["files"]
    if not set(TENSOR_FILES) <= set(files) or any(Path(name).name != name for name in files):
        raise CheckpointError(f"{file}: damaged: it lists the files {sorted(files)}")
    return manifest


def resolve(path: str | Path) -> Path:
    """The directory of a checkpoint, given itself, a run directory or a ``latest`` file.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(path)
    if path.name == POINTER and path.is_file():
        path = path.parent / path.read_text(encoding="utf-8", errors="replace").strip()
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: not a nestling checkpoint: expected a step-* directory, got a file"
        )
    if _NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        return path
    newest = latest(path)
    if newest is None:
        raise CheckpointError(f"{path}: not a nestling checkpoint: it holds no step-* directory")
    return newest


def latest(root: str | Path) -> Path | None:
    """The newest checkpoint of a run, or ``None``."""
    found = steps(Path(root))
    return found[-1] if found else None


def steps(root: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    if not root.is_dir():
        return []
    found = [entry for entry in root.iterdir() if _NAME.fullmatch(entry.name) and entry.is_dir()]
    return sorted(found, key=lambda entry: int(entry.name.removeprefix("step-")))


def _fill(folder: Path, checkpoint: Checkpoint) -> None:
    optimizer: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    manifest = {
        "format": FORMAT,
        "schema": SCHEMA,
        "nestling": nestling.__version__,
        "step": checkpoint.step,
        "tokens": checkpoint.tokens,
        "config": checkpoint.config,
        "optimizer": pack(checkpoint.optimizer, optimizer),
        "state": pack(checkpoint.state, state),
        "files": {},
    }
    for name, tensors in zip(TENSOR_FILES, (checkpoint.model, optimizer, state), strict=True):
        save_file(unshared(tensors), folder / name, metadata={"format": "pt"})
        manifest["files"][name] = seal(folder / name)
    for name, text in checkpoint.attachments.items():
        (folder / name).write_text(text, encoding="utf-8")
        manifest["files"][name] = seal(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    seal(folder / MANIFEST)


def _verify(path: Path, name: str, expected: Mapping[str, Any]) -> None:
    file = path / name
    if not file.is_file():
        raise CheckpointError(f"{file}: missing{_before(path)}")
    size = file.stat().st_size
    if size != expected["bytes"]:
        kind = "truncated" if size < expected["bytes"] else "damaged"
        raise CheckpointError(
            f"{file}: {kind}: {size} bytes, expected {expected['bytes']}{_before(path)}"
        )
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != expected["sha256"]:
        raise CheckpointError(f"{file}: damaged: its content has changed{_before(path)}")


def _before(path: Path) -> str:
    """Advice: the checkpoint before a broken one."""
    earlier = [other for other in steps(path.parent) if other.name < path.name]
    if not earlier:
        return ""
    return f"; the one before is {earlier[-1].name}: remove {path.name} to go on from there"

"""A model that reads on from a state, and the two files that a state becomes.

moment = (position, state, logits of the next token)  <->  header, tensors
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import nestling
from nestling.data import ByteTokenizer, Tokenizer
from nestling.memory import flatten
from nestling.session.identity import identify, version_of
from nestling.session.outline import Outline, settled
from nestling.session.readable import Readable
from nestling.session.save import Identity, Save, digest_of
from nestling.session.sealed import SessionError
from nestling.shapes import Tensor
from nestling.storage.checkpoint import CheckpointError, resolve
from nestling.storage.load import load_model

_STATE, _LOGITS = "state.", "logits"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a session stands: replaced as a whole, so that it is never half of two.

    Attributes:
        position: tokens read and written since the session began.
        state: the model's inner state, one row.
        logits: of the next token, ``(V,)``; ``None`` before the first.
    """

    position: int
    state: Any
    logits: Tensor | None


class Reader:
    """A model with its tokenizer, and what it takes to write and read its states.

    Args:
        model: only read; training it while its states are in use is an error.
        tokenizer: of the texts; bytes where none is given.
        checkpoint: where the model came from, to find it again.

    Raises:
        SessionError: if the tokenizer has ids that the model does not know.
    """

    def __init__(
        self,
        model: Readable,
        tokenizer: Tokenizer | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer or ByteTokenizer()
        known = model.vocab_size
        if self.tokenizer.vocab_size > known:
            raise SessionError(
                f"tokenizer: {self.tokenizer.name} has {self.tokenizer.vocab_size} ids, "
                f"the model knows {known}"
            )
        place = None if checkpoint is None else str(Path(checkpoint).resolve())
        self.identity: Identity = identify(model, self.tokenizer, place)
        self.outline = Outline(model)
        self._version = version_of(model)

    def start(self) -> Moment:
        """Before the first token."""
        return Moment(position=0, state=settled(self.model.initial_state(1)), logits=None)

    @torch.no_grad()
    def read(self, moment: Moment, ids: Tensor) -> Moment:
        """Where a session stands after ``(T,)`` more tokens."""
        row = ids.long()[None].to(self.outline.device)
        logits, state = self.model.read_on(row, moment.state)
        return Moment(
            position=moment.position + len(ids),
            state=settled(state),
            logits=settled(logits[0]),
        )

    def pack(self, moment: Moment, note: str) -> tuple[Save, bytes]:
        """The two files of a save.

        Raises:
            SessionError: if the state is not finite, or the weights are no longer the same.
        """
        if version_of(self.model) != self._version:
            raise SessionError(
                "model: its weights have been written since the session was opened, so its state "
                "is no longer theirs"
            )
        tensors = {_STATE + path: tensor.cpu() for path, tensor in flatten(moment.state).items()}
        if moment.logits is not None:
            tensors[_LOGITS] = moment.logits.cpu()
        check_finite(tensors)
        data = save(tensors, metadata={"format": "pt"})
        return Save(
            number=1,  # the journal gives it its own
            identity=self.identity,
            position=moment.position,
            clocks=_clocks(tensors),
            entries=_entries(tensors),
            bytes=len(data),
            sha256=digest_of(data),
            parts=self.outline.parts(moment.state, position=moment.position),
            saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            note=note,
            nestling=nestling.__version__,
        ), data

    def unpack(self, header: Save, data: bytes) -> Moment:
        """Where the session stood at a save.

        Raises:
            SessionError: if it is not this model's, or does not fit it in every detail.
        """
        self.check(header)
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise SessionError(f"state: not a safetensors file: {error}") from error
        if _entries(tensors) != header.entries or _clocks(tensors) != header.clocks:
            raise SessionError("state: its tensors are not those that the header lists")
        tensors = settled(tensors)
        logits, own = tensors.pop(_LOGITS, None), self.outline.logits
        if (logits is None) != (header.position == 0):
            raise SessionError("state: expected a prediction if and only if something was read")
        if logits is not None:
            if logits.dtype != own.dtype or logits.shape != own.shape:
                raise SessionError(
                    f"state: prediction: expected {own.dtype} {tuple(own.shape)}, "
                    f"got {logits.dtype} {tuple(logits.shape)}"
                )
            check_finite({_LOGITS: logits})
            logits = logits.to(own.device)
        foreign = [name for name in tensors if not name.startswith(_STATE)]
        if foreign:
            raise SessionError(f"state: unknown tensor {min(foreign)!r}")
        paths = {name.removeprefix(_STATE): tensor for name, tensor in tensors.items()}
        state = self.outline.restore(paths, position=header.position)
        return Moment(position=header.position, state=state, logits=logits)

    def check(self, header: Save) -> None:
        """Refuse the state of another model or of texts in other tokens.

        Raises:
            SessionError: saying whose it is.
        """
        theirs, own = header.identity, self.identity
        if theirs.model != own.model:
            raise SessionError(
                f"model: the session belongs to another: {theirs.preset}, "
                f"{theirs.parameters:,} parameters, {theirs.model[:12]}; this is {own.preset}, "
                f"{own.parameters:,} parameters, {own.model[:12]}"
            )
        if theirs.tokenizer != own.tokenizer:
            raise SessionError(
                f"tokenizer: the session has read in tokens of {theirs.tokenizer_name!r} "
                f"({theirs.tokenizer[:12]}), not of {own.tokenizer_name!r} ({own.tokenizer[:12]})"
            )


def find_reader(
    directory: Path,
    known: Save | None,
    *,
    model: Readable | None = None,
    checkpoint: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device = "cpu",
) -> Reader:
    """The model that is given, or the one of the checkpoint, or the one the session began with.

    Raises:
        SessionError: if there is none of them.
        CheckpointError: if the checkpoint cannot be read.
    """
    remembered = known.identity.checkpoint if known else None
    if model is not None:
        return Reader(model, tokenizer, checkpoint or remembered)
    if tokenizer is not None:
        raise SessionError(
            "tokenizer: expected one together with a model; a checkpoint has its own"
        )
    place = checkpoint or remembered
    if place is None:
        what = "was begun with a model" if known else "is no session yet"
        raise SessionError(f"{directory}: {what}: give the model or its checkpoint")
    try:
        path = resolve(place)
        model, tokenizer = load_model(path, device=device)
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise SessionError(
            f"{directory}: its model is not where it was: {error}; give its checkpoint"
        ) from error
    return Reader(model, tokenizer, path)


def check_finite(tensors: Mapping[str, Tensor | None]) -> None:
    """Refuse NaN and infinity.

    Raises:
        SessionError: naming the first tensor that holds one.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise SessionError(f"state: {name} is not finite")


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    return {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in tensors.items()
    }


def _clocks(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {
        name: tensor.flatten().tolist()
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() and not tensor.is_complex()
    }

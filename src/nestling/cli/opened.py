"""A session with its model, whichever kind of directory that comes from.

step-*, a run                       a model of ours
config.json and nestling.json       a pre-trained model with levels (extra ``hf``)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nestling.session import Save, Session, read_saves
from nestling.session.journal import JOURNAL
from nestling.session.reader import Reader, find_reader

LEVELS = "nestling.json"
"""The file that makes a directory one of a stacked model."""


def open_session(
    directory: Path, *, checkpoint: Path | None, device: torch.device, keep: int | None = None
) -> Session:
    """:meth:`nestling.session.Session.open`, also for stacked models.

    Raises:
        ValueError: if the session or its model cannot be used.
        ImportError: if the model needs an extra that is not installed.
    """
    known = read_saves(directory)[-1:] if (directory / JOURNAL).exists() else []
    given = _given(known[0] if known else None, checkpoint, device)
    return Session.open(directory, keep=keep, **given)


def open_reader(
    directory: Path, known: Save | None, *, checkpoint: Path | None, device: torch.device
) -> Reader:
    """The model of a session, also a stacked one.

    Raises:
        ValueError: if it is not to be found.
        ImportError: if it needs an extra that is not installed.
    """
    return find_reader(directory, known, **_given(known, checkpoint, device))


def _given(known: Save | None, checkpoint: Path | None, device: torch.device) -> dict[str, Any]:
    remembered = known.identity.checkpoint if known else None
    place = checkpoint or remembered
    if place is None or not (Path(place) / LEVELS).is_file():
        return {"checkpoint": checkpoint, "device": device}
    from nestling.hf.stack_files import load_stacked, tokenizer_of

    model = load_stacked(place, device=device)
    tokenizer = tokenizer_of(place, model.vocab_size)
    return {"model": model, "tokenizer": tokenizer, "checkpoint": place}

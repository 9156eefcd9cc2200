"""Reading text: files, folders and JSONL, with errors that name the file and the place in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.data.tokenizer import Tokenizer
from nestling.shapes import Tensor

JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    name: str
    text: str


def read_documents(paths: Iterable[str | Path], *, field: str = "text") -> list[Document]:
    """Every document of some files and folders, in a fixed order.

    Folders are read recursively, sorted by path, hidden entries left out. A ``.jsonl`` file holds
    one document per line, under ``field``; any other file is one document. UTF-8, with or without
    a byte order mark.

    Raises:
        ValueError: naming the file (and the byte or line) if a path is missing, a folder holds no
            file, a file is empty or is not UTF-8, or a line of JSONL has no text under ``field``.
    """
    documents: list[Document] = []
    for path in map(Path, paths):
        for file in _files(path):
            text = _read(file)
            if file.suffix.lower() in JSON_LINES:
                documents.extend(_json_lines(file, text, field))
            else:
                documents.append(Document(str(file), text))
    if not documents:
        raise ValueError("paths: expected at least one text file or folder, got none")
    return documents


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> Tensor:
    """Ids of all documents, one after the other, with the tokenizer's separator in between.

    >>> from nestling.data.tokenizer import ByteTokenizer
    >>> encode_documents([Document("a", "hi"), Document("b", "yo")], ByteTokenizer())
    tensor([104, 105,   0, 121, 111], dtype=torch.uint8)
    """
    pieces: list[Tensor] = []
    for document in documents:
        try:
            ids = tokenizer.encode(document.text)
        except ValueError as error:
            raise ValueError(f"{document.name}: {error}") from error
        if pieces and tokenizer.separator is not None:
            pieces.append(ids.new_tensor([tokenizer.separator]))
        pieces.append(ids)
    return torch.cat(pieces)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found: list[Path] = []
        for folder, names, files in os.walk(path):
            names[:] = sorted(name for name in names if not name.startswith("."))
            found += [Path(folder) / name for name in files if not name.startswith(".")]
        if not found:
            raise ValueError(f"{path}: the folder holds no text file")
        return sorted(found)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return [path]


def _read(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    if not data.strip():
        raise ValueError(f"{file}: the file is empty ({len(data)} bytes, no text)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.start counts from after a byte order mark
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        hint = "; it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(
            f"{file}: not UTF-8: byte 0x{data[offset]:02x} at offset {offset}{hint}"
        ) from error


def _json_lines(file: Path, text: str, field: str) -> Iterator[Document]:
    empty = True
    # Not str.splitlines(): JSON strings may hold U+2028 and other separators unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            got = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{place}: expected an object with a string {field!r}, got {got}")
        if row[field]:
            empty = False
            yield Document(place, row[field])
    if empty:
        raise ValueError(f"{file}: no line has any text under {field!r}")

"""Text to numbers and back: bytes by default, any Hugging Face ``tokenizer.json`` on request."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from nestling.shapes import Tensor

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Special tokens that end a document, in the order in which they are looked for."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the library knows of a tokenizer."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of different ids; every id is below it."""
        ...

    @property
    def separator(self) -> int | None:
        """The id between two documents, if there is one."""
        ...

    def encode(self, text: str) -> Tensor:
        """Ids of a text, one axis, an integer dtype."""
        ...

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of some ids."""
        ...

    def count_bytes(self, ids: Tensor) -> int:
        """UTF-8 bytes that ``ids`` stand for: what turns bits per token into bits per byte."""
        ...

    def to_json(self) -> str | None:
        """What :func:`tokenizer_from_json` needs to rebuild it; ``None`` for plain bytes."""
        ...


class ByteTokenizer:
    """A text is its UTF-8 bytes: 256 ids, no training, no word it cannot spell.

    Byte 0, which text does not use, separates documents.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("né")
    tensor([110, 195, 169], dtype=torch.uint8)
    >>> tokenizer.decode([110, 195, 169])
    'né'
    """

    name = "bytes"
    vocab_size = 256
    separator = 0

    def encode(self, text: str) -> Tensor:
        """The bytes of ``text`` as a uint8 tensor ``(T,)``.

        Raises:
            ValueError: if ``text`` holds half of a surrogate pair, which is not a character.
        """
        try:
            data = bytearray(text, "utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text: character {error.start} is a lone surrogate, which UTF-8 cannot encode"
            ) from error
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0).byte()

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of some bytes; what is not UTF-8 becomes U+FFFD."""
        return bytes(_integers(ids)).decode("utf-8", errors="replace")

    def count_bytes(self, ids: Tensor) -> int:
        """One byte per id."""
        return ids.numel()

    def to_json(self) -> str | None:
        """``None``: there is nothing to save."""
        return None


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` of the Hugging Face ``tokenizers`` library (extra ``hf``).

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        name: what a person calls it.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        found = (tokenizer.token_to_id(token) for token in END_OF_TEXT)
        self.separator: int | None = next((i for i in found if i is not None), None)

    def encode(self, text: str) -> Tensor:
        """Ids of ``text`` without special tokens, int32 ``(T,)``."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return torch.tensor(ids, dtype=torch.int32)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        return self._tokenizer.decode(_integers(ids), skip_special_tokens=True)

    def count_bytes(self, ids: Tensor) -> int:
        """Length in UTF-8 of the decoded ``ids``."""
        return len(self.decode(ids).encode("utf-8", errors="replace"))

    def to_json(self) -> str | None:
        """The whole ``tokenizer.json``."""
        return self._tokenizer.to_str()


class Decoder:
    """Turns ids into text as they come, holding back a character until all its bytes are there.

    >>> decoder = Decoder(ByteTokenizer())
    >>> [decoder.push(byte) for byte in "né".encode()]
    ['n', '', 'é']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # Ids whose text is out (kept because decoding depends on the neighbours), then the others.
        self._out: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that ``token`` completes, which may be none."""
        if isinstance(self._tokenizer, ByteTokenizer):
            return self._bytes.decode(bytes([token]))
        self._held.append(token)
        return self._complete(final=False)

    def flush(self) -> str:
        """What was held back, incomplete as it is."""
        if isinstance(self._tokenizer, ByteTokenizer):
            return self._bytes.decode(b"", True)
        return self._complete(final=True)

    def _complete(self, final: bool) -> str:
        before = self._tokenizer.decode(self._out)
        text = self._tokenizer.decode(self._out + self._held)
        if len(text) <= len(before) or (text.endswith("\ufffd") and not final):
            return ""
        self._out, self._held = self._held, []
        return text[len(before) :]


def load_tokenizer(name_or_path: str | Path = "bytes") -> Tokenizer:
    """``"bytes"``, or the path of a ``tokenizer.json`` (or of a folder that holds one).

    Raises:
        ValueError: if the file is missing or is not a tokenizer.
        ImportError: if the extra ``hf`` is not installed.

    >>> load_tokenizer("bytes").vocab_size
    256
    """
    if str(name_or_path) == "bytes":
        return ByteTokenizer()
    path = Path(name_or_path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            "tokenizer: expected 'bytes' or the path of a tokenizer.json, "
            f"got {str(name_or_path)!r}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer: {path} is not a tokenizer.json: {error}") from error
    return tokenizer_from_json(text, str(path))


def tokenizer_from_json(text: str | None, name: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer whose ``to_json()`` is ``text``.

    Raises:
        ValueError: if ``text`` is not a tokenizer.
        ImportError: if the extra ``hf`` is not installed.
    """
    if text is None:
        return ByteTokenizer()
    try:
        from tokenizers import Tokenizer as Backend  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "tokenizer: a tokenizer.json needs the extra 'hf': pip install 'nestling[hf]'"
        ) from error
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # the backend raises bare Exception
        raise ValueError(f"tokenizer: {name} is not a tokenizer.json: {error}") from error
    return HuggingFaceTokenizer(backend, name)


def _integers(ids: Tensor | Sequence[int]) -> list[int]:
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)

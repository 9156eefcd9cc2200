"""Subwords of several languages, for sequences that a small model can learn to translate.

    text = piece piece ...,    the pairs of pieces that are frequent joined first (Sennrich 2016)

Every byte is a piece, so any text can be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

START, BETWEEN = 0, 1
"""Begins and ends a row; stands between source and target."""


class Subwords:
    """A vocabulary of pieces.

    Args:
        texts: from which it is learned.
        size: pieces, with every byte and the two marks.

    Raises:
        ImportError: naming the extra, if tokenizers is not installed.

    >>> pieces = Subwords(["and he said, and they said"] * 9, 300)
    >>> ids = pieces.encode("and né")
    >>> pieces.decode(ids), len(ids) < 6
    ('and né', True)
    """

    def __init__(self, texts: Iterable[str], size: int) -> None:
        try:
            import tokenizers as library
        except ImportError as error:
            raise ImportError(
                "translation needs tokenizers: pip install 'nestling[reproduce]'"
            ) from error
        self._pieces = library.Tokenizer(library.models.BPE())
        self._pieces.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._pieces.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<start>", "<between>"],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._pieces.train_from_iterator(texts, trainer)
        self.size = size

    def encode(self, text: str) -> list[int]:
        """Pieces of a text."""
        return self._pieces.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of pieces; marks are left out."""
        return self._pieces.decode(list(ids)).removeprefix(" ")

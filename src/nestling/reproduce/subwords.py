"""Pairs of texts as rows of subwords, and what a model writes behind a source.

    text = piece piece ...,    the pairs of pieces that are frequent joined first (Sennrich 2016)
    row  = 0 ... 0  source  1  target  0

Every byte is a piece, so any text can be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from nestling.continual.protocol import IGNORED, Batch, Experience
from nestling.reproduce.verses import Pair

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


def experience(
    name: str, found: Sequence[Pair], pieces: Subwords, *, length: int, only_target: bool = False
) -> Experience:
    """One row for each pair; those longer than a row are left out.

    Args:
        name: of the experience.
        found: pairs.
        pieces: the vocabulary.
        length: subwords of a row.
        only_target: only the target and its end count, as for measuring.

    >>> pieces = Subwords([], 300)
    >>> row = experience("a", [Pair("b", "c")], pieces, length=8).items
    >>> row.targets.tolist()[0][:3], int(row.inputs[0, 5]) == BETWEEN
    ([-100, -100, 222], True)
    """
    inputs, targets = [], []
    for pair in found:
        source, target = pieces.encode(pair.source), pieces.encode(pair.target)
        tail = [*source, BETWEEN, *target, START]
        if len(tail) > length:
            continue
        row = [START] * (length + 1 - len(tail)) + tail
        ignored = length - (len(target) + 1 if only_target else len(tail))
        inputs.append(row[:-1])
        targets.append([IGNORED] * ignored + row[1 + ignored :])
    return Experience(name, Batch(torch.tensor(inputs), torch.tensor(targets)))


def references(items: Batch, pieces: Subwords) -> list[str]:
    """The targets of rows of which only the target counts."""
    return [pieces.decode(row[row != IGNORED][:-1].tolist()) for row in items.targets]


@torch.no_grad()
def translations(model: nn.Module, items: Batch, pieces: Subwords, *, most: int) -> list[str]:
    """What a model writes behind the sources of rows, the likeliest subword at a time.

    Args:
        model: of this library, or any that has ``read_on``.
        items: rows as :func:`experience` makes them; what stands behind the source is not read.
        pieces: the vocabulary.
        most: subwords of a translation.
    """
    ends = (items.inputs == BETWEEN).int().argmax(1) + 1
    prompts = items.inputs.new_full((len(items), int(ends.max())), START)
    for prompt, row, end in zip(prompts, items.inputs, ends.tolist(), strict=True):
        prompt[len(prompt) - end :] = row[:end]
    token, state, written = prompts, None, []
    for _ in range(most):
        logits, state = model.read_on(token, state)  # pyright: ignore[reportCallIssue]
        token = logits.argmax(-1, keepdim=True)
        written.append(token)
    rows = torch.cat(written, dim=1).tolist()
    return [pieces.decode(row[: row.index(START)] if START in row else row) for row in rows]


def chrf_loss(written: Sequence[str], wanted: Sequence[str]) -> float:
    """``100 - chrF``.

    Raises:
        ImportError: naming the extra, if sacrebleu is not installed.

    >>> chrf_loss(["in the beginning"], ["in the beginning"])
    0.0
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("chrF needs sacrebleu: pip install 'nestling[reproduce]'") from error
    return 100.0 - sacrebleu.corpus_chrf(list(written), [list(wanted)]).score

from __future__ import annotations

import io
import random
from itertools import pairwise

import pytest
import torch

from nestling.data import ByteTokenizer
from nestling.session.text import blocks, in_pieces, token_ids


def test_blocks_are_the_text_cut_at_line_ends_wherever_the_reads_end():
    chance = random.Random(0)
    for _ in range(200):
        words = chance.choices(["né", "日本", "\n", "\n\n", " ", "\r\n", "x" * 50, "🙂"], k=60)
        text = "".join(words)
        size = chance.choice((1, 2, 3, 7, 64, 1 << 14))
        found = list(blocks(io.BytesIO(text.encode()), "here", size=size))
        assert "".join(found) == text
        for before, after in pairwise(found):
            if len(before) <= 16 * size:
                assert before.endswith("\n")
                assert not after[0].isspace()


def test_long_lines_are_cut_and_a_mark_at_the_beginning_is_not_text():
    found = list(blocks(io.BytesIO(b"\xef\xbb\xbf" + b"x" * 1000), "here", size=4))
    assert "".join(found) == "x" * 1000
    assert max(map(len, found)) <= 17 * 4
    assert list(blocks(io.BytesIO(b""), "here")) == []


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("data", "byte", "place"),
    [(b"abc\xff", "ff", 3), (b"n\xc3\xa9 \xc3", "c3", 4), (b"\xef\xbb\xbfab\xe2\x82x", "e2", 5)],
)
def test_what_is_not_utf8_is_named_with_its_place(data, byte, place, size):
    with pytest.raises(ValueError, match=f"here: not UTF-8: byte 0x{byte} at offset {place}"):
        list(blocks(io.BytesIO(data), "here", size=size))


def test_pieces_are_the_same_ids_whatever_they_come_in():
    chance, whole = random.Random(0), torch.arange(500) % 256
    for size in (1, 3, 64, 499, 500, 501):
        cuts = sorted(chance.sample(range(501), 9))
        bounds = zip([0, *cuts], [*cuts, 500], strict=True)
        pieces = list(in_pieces([whole[a:b].to(torch.uint8) for a, b in bounds], size))
        assert torch.equal(torch.cat(pieces), whole)
        assert {len(piece) for piece in pieces[:-1]} <= {size}
        assert len(pieces[-1]) <= size
    with pytest.raises(ValueError, match="piece: expected a whole number >= 1, got 0"):
        next(in_pieces([whole], 0))
    with pytest.raises(ValueError, match="text: expected at least one token, got none"):
        list(in_pieces([whole[:0]], 5))


def test_ids_are_checked_part_by_part():
    parts = token_ids(iter(["ab", torch.tensor([3, 300])]), ByteTokenizer(), 256)
    assert next(parts).tolist() == [97, 98]
    with pytest.raises(ValueError, match="text: expected ids from 0 to 255, got 300"):
        next(parts)

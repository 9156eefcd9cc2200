from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace

import pytest
import torch

from nestling.data import (
    ByteTokenizer,
    Decoder,
    HuggingFaceTokenizer,
    load_tokenizer,
    tokenizer_from_json,
)

TEXT = "naïve \u13a1 \U0001d54f \u2028 end"


def test_bytes_are_the_utf8_of_the_text():
    ids = ByteTokenizer().encode(TEXT)
    assert ids.tolist() == list(TEXT.encode())
    assert ids.dtype == torch.uint8
    assert ByteTokenizer().decode(ids) == TEXT
    assert ByteTokenizer().count_bytes(ids) == len(TEXT.encode())
    assert ByteTokenizer().encode("").tolist() == []


def test_bytes_that_are_no_text_decode_to_replacement_characters():
    assert ByteTokenizer().decode([0xFF, 65]) == "\ufffdA"


def test_lone_surrogate_is_refused_by_position():
    with pytest.raises(ValueError, match="character 2 is a lone surrogate"):
        ByteTokenizer().encode("ab\ud800")


def test_decoder_never_shows_half_a_character():
    decoder = Decoder(ByteTokenizer())
    shown = [decoder.push(byte) for byte in TEXT.encode()]
    assert "".join(shown) + decoder.flush() == TEXT
    assert "\ufffd" not in "".join(shown)
    decoder = Decoder(ByteTokenizer())
    assert decoder.push("é".encode()[0]) == ""
    assert decoder.flush() == "\ufffd"


class Syllables:
    """Stands in for the ``tokenizers`` backend: ids are pairs of bytes, like no real one."""

    def get_vocab_size(self, with_added_tokens):
        assert with_added_tokens
        return 65536

    def token_to_id(self, token):
        return 7 if token == "</s>" else None

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        data = text.encode() + b" " * (len(text.encode()) % 2)
        pairs = zip(data[::2], data[1::2], strict=True)
        return SimpleNamespace(ids=[a * 256 + b for a, b in pairs])

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return bytes(b for i in ids for b in divmod(i, 256)).decode(errors="replace")

    def to_str(self):
        return "{}"


def test_hugging_face_backend_is_wrapped():
    tokenizer = HuggingFaceTokenizer(Syllables(), "pairs")
    ids = tokenizer.encode("héllo")
    assert ids.tolist() == [ord("h") * 256 + 0xC3, 0xA9 * 256 + ord("l"), ord("l") * 256 + ord("o")]
    assert tokenizer.decode(ids) == "héllo"
    assert tokenizer.count_bytes(ids) == 6
    assert tokenizer.separator == 7
    assert tokenizer.vocab_size == 65536
    decoder = Decoder(tokenizer)
    assert [decoder.push(i) for i in ids.tolist()] == ["", "hél", "lo"]


def test_missing_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "tokenizers", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ImportError, match=r"pip install 'nestling\[hf\]'"):
        load_tokenizer(file)


def test_unknown_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected 'bytes' or the path .* got 'byts'"):
        load_tokenizer("byts")
    with pytest.raises(ValueError, match="expected 'bytes' or the path"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_real_tokenizer_json_round_trip(tmp_path):
    backend = pytest.importorskip("tokenizers")
    bpe = backend.Tokenizer(backend.models.BPE())
    bpe.pre_tokenizer = backend.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = backend.decoders.ByteLevel()
    trainer = backend.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=backend.pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(["the cat and the dog and the naïve hen"] * 4, trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.count_bytes(ids) == len(TEXT.encode())
    assert len(tokenizer.encode("the dog")) < len("the dog")
    assert tokenizer.separator == 0
    decoder = Decoder(tokenizer)
    assert "".join(decoder.push(i) for i in ids.tolist()) + decoder.flush() == TEXT
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.encode(TEXT).tolist() == ids.tolist()
    with pytest.raises(ValueError, match=r"broken is not a tokenizer\.json"):
        tokenizer_from_json("{}", "broken")

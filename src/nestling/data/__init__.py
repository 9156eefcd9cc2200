"""Text as streams of numbers: tokenizers, files, resumable batches."""

from nestling.data.files import Document, encode_documents, read_documents
from nestling.data.text import TextStream, hold_out
from nestling.data.tokenizer import (
    ByteTokenizer,
    Decoder,
    HuggingFaceTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_json,
)

__all__ = [
    "ByteTokenizer",
    "Decoder",
    "Document",
    "HuggingFaceTokenizer",
    "TextStream",
    "Tokenizer",
    "encode_documents",
    "hold_out",
    "load_tokenizer",
    "read_documents",
    "tokenizer_from_json",
]

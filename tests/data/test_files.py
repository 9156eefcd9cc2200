from __future__ import annotations

import json

import pytest

from nestling.data import ByteTokenizer, Document, encode_documents, read_documents


def test_folder_is_read_sorted_recursive_and_without_hidden_entries(tmp_path):
    for name in ("b.txt", "a/z.md", "a/c.txt", ".hidden", ".git/config"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    documents = read_documents([tmp_path])
    assert [document.text for document in documents] == ["a/c.txt", "a/z.md", "b.txt"]
    assert documents[2].name == str(tmp_path / "b.txt")


def test_json_lines_give_one_document_each(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "one\u2028line"}, {"text": ""}, {"text": "two"}]
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_documents([file]) == [
        Document(f"{file}, line 1", "one\u2028line"),
        Document(f"{file}, line 5", "two"),
    ]
    file.write_text(json.dumps({"body": "x"}))
    assert read_documents([str(file)], field="body")[0].text == "x"


def test_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_documents([tmp_path / "a.txt"])[0].text == "hello"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.txt: the file is empty \(0 bytes"),
        (b" \n\n", r"a\.txt: the file is empty \(3 bytes"),
        (b"abc\xffdef", r"a\.txt: not UTF-8: byte 0xff at offset 3$"),
        (b"\xef\xbb\xbfa\xe9 b", r"not UTF-8: byte 0xe9 at offset 4$"),
        ("hello".encode("utf-16"), r"not UTF-8: byte 0xff at offset 0; it looks like UTF-16"),
    ],
)
def test_bad_file_is_named_with_the_place(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_documents([tmp_path / "a.txt"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text"', r"a\.jsonl, line 2: not JSON: .* at column 8"),
        ('{"body": "a", "id": 1}', r"line 1: expected an object with a string 'text'.*body.*id"),
        ('{"text": 3}', "expected an object with a string 'text'"),
        ("[1]", "expected an object with a string 'text', got list"),
        ('{"text": ""}', "no line has any text under 'text'"),
    ],
)
def test_bad_json_lines_are_named_by_line(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_documents([tmp_path / "a.jsonl"])


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.txt: no such file or folder"):
        read_documents([tmp_path / "nowhere.txt"])
    with pytest.raises(ValueError, match="the folder holds no text file"):
        read_documents([tmp_path])
    with pytest.raises(ValueError, match="expected at least one text file"):
        read_documents([])


def test_lone_surrogate_in_json_is_named_by_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud800"}')
    documents = read_documents([tmp_path / "a.jsonl"])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: text: character 2 is a lone"):
        encode_documents(documents, ByteTokenizer())

"""The documents of a text: which files are read, in which order, and what is said of those that cannot be."""

import json

import pytest

from launcher.core.errors import ConfigError
from launcher.data import documents
from launcher.data.documents import find_documents, has_rows


def test_pieces_of_a_file_are_whole_lines_and_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 10)
    lines = [f"line {i} naïve\n" for i in range(20)]
    (tmp_path / "a").write_text("".join(lines), encoding="utf-8")
    found = list(find_documents(str(tmp_path / "a"), None).pieces())
    assert "".join(text for text, _ in found) == "".join(lines)
    assert all(text.endswith("\n") for text, _ in found) and len(found) > 5
    assert [begins for _, begins in found] == [True] + [False] * (len(found) - 1)


def test_rows_are_documents_whatever_ends_a_line_within_one(tmp_path):
    texts = ["one", "two\nlines", "a\u2028b\x85c\rd", "", "{}", "last"]
    rows = "\r\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    found = list(find_documents([str(tmp_path / "a.json")], "text").pieces())
    assert found == [(text, True) for text in texts if text]


def test_of_a_directory_the_rows_alone_are_read_where_a_field_is_named(tmp_path):
    for name in ("b.jsonl", "a.NDJSON", "c.jsonl.gz", "readme.md"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    assert [file.name for file in find_documents(str(tmp_path), "text").files] == ["a.NDJSON", "b.jsonl", "c.jsonl.gz"]
    assert len(find_documents(str(tmp_path), None).files) == 4
    assert has_rows(tmp_path / "x.jsonl.xz") and not has_rows(tmp_path / "jsonl")


@pytest.mark.parametrize(
    ("files", "field", "words"),
    [
        ({}, None, ["data.path", "has no text"]),
        ({"a.txt": b"a"}, "text", ["data.path", ".jsonl", "data.field=text"]),
        ({"a.txt": b"a\n", "b.bin": b"abc\0d"}, None, ["data.path", "b.bin is binary", "byte 3"]),
        ({"a.txt": "ä".encode(), "b.txt": "n\nä".encode("latin-1")}, None, ["b.txt is no text", "(byte 2", "iconv"]),
        ({"a.txt": b"a", "b.txt": "text".encode("utf-16")}, None, ["b.txt", "binary"]),
        ({"a.jsonl": b'{"text": "a"}\n\n{"body": "b"}'}, "text", ["data.field", "row 2", "a.jsonl lacks", "body"]),
        ({"a.jsonl": b'{"text": 7}'}, "text", ["data.field", "row 1", "a.jsonl has no text in"]),
        ({"a.jsonl": b"[1]"}, "text", ["data.field", "row 1", "lacks", "list"]),
        ({"a.jsonl": b"text"}, "text", ["data.path", "row 1", "no JSON"]),
        ({"a.jsonl": rb'{"text": "\ud800"}'}, "text", ["data.field", "row 1", "half a character"]),
        ({"a.txt": b"a"}, "", ["data.field", "''"]),
        ({"a.txt": b"a", "b.gz": b"\x1f\x8b damaged"}, None, ["data.path", "b.gz is packed and damaged"]),
        ({"a.txt": b"a", "b.zst": b"\x28\xb5\x2f\xfd"}, None, ["data.path", "b.zst is packed by zstd", "unzstd"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(files, field, words, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        list(find_documents(str(tmp_path), field).pieces())
    assert all(word in str(caught.value) for word in words), caught.value
    assert str(caught.value).count("data.path: ") <= 1


@pytest.mark.parametrize("path", [[], None, ["none.txt"], [7], 7])
def test_a_path_that_names_nothing_is_refused(path):
    with pytest.raises(ConfigError, match=r"data\.path: "):
        find_documents(path, None)

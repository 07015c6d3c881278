import json

import pytest

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.manifest import MANIFEST
from shared_tokenizer.sources.documents import (
    Document,
    Rejected,
    cut_document,
    is_validation,
    read_documents,
    read_file,
)
from shared_tokenizer.sources.files import STDLIB, find_files


def test_a_folder_is_read_in_a_stable_order(tmp_path):
    for name, text in (
        ("b.txt", "two"),
        ("a.md", "one"),
        ("empty.txt", ""),
        ("image.png", "no"),
        ("c/d.py", "three"),
        ("e.jsonl", '{"text": "four"}\n'),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [
        (document.name.removeprefix(f"{tmp_path}/"), document.text) for document in read_documents([str(tmp_path)])
    ]
    assert found == [("a.md", "one"), ("b.txt", "two"), ("c/d.py", "three"), ("e.jsonl:1", "four")]
    left = [file.name for file in find_files([str(tmp_path)], leave_out=[tmp_path.resolve() / "c"]).files]
    assert left == ["a.md", "b.txt", "e.jsonl", "empty.txt"]


def test_the_embedded_corpus_is_large_and_the_same_each_time():
    documents = list(read_documents([STDLIB]))
    assert sum(len(document.text) for document in documents) > 5_000_000
    assert documents == list(read_documents([STDLIB]))
    assert not any("/test/" in document.name for document in documents)


def test_sources_without_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="missing: no such file or folder"):
        list(read_documents([str(tmp_path / "missing")]))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(
        ValueError, match=r"no readable file \(left out: 1 of unknown kind \(1 \.png\)\), expected a text"
    ):
        list(read_documents([str(tmp_path)]))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt: found no text"):
        list(read_documents([str(tmp_path / "empty.txt")]))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 at byte 3"):
        list(read_documents([str(tmp_path / "latin.txt")]))


def test_files_without_a_known_column_and_what_is_our_own(tmp_path):
    (tmp_path / "package.json").write_text('{"name": "x", "version": 1}')
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / MANIFEST).write_text("")
    files = find_files([str(tmp_path)]).files
    assert [file.name for file in files] == ["a.txt", "package.json"]
    (rejected,) = read_file(files[1])
    assert isinstance(rejected, Rejected) and rejected.where == str(tmp_path / "package.json")
    assert rejected.loses_rest and rejected.reason == (
        "found the columns name, version, expected a known name; set text_column, or leave the file out with "
        "--exclude 'package.json'"
    )


def test_what_is_no_document_says_where_and_why(tmp_path):
    rows = [
        {"text": "good"},
        {"text": "nul \0 byte"},
        {"text": "half \ud800"},
        {"text": 3},
        {"messages": []},
        {"text": ""},
        {"text": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (file,) = find_files([str(tmp_path)]).files
    found = list(read_file(file))
    path = tmp_path / "a.jsonl"
    assert found[0] == Document(f"{path}:1", "good")
    assert found.pop(5) == Document(f"{path}:6", "")
    assert all(isinstance(row, Rejected) for row in found[1:])
    assert [row.where for row in found[1:]] == [f"{path}:{line}" for line in (2, 3, 4, 5, 7)]
    words = ["NUL byte", "surrogate", "found a int", "no column 'text'", "found a chat, expected a text"]
    assert all(word in row.reason for word, row in zip(words, found[1:], strict=True))


def test_cutting_loses_nothing_and_cuts_at_line_ends():
    text = "".join(f"line {i}\n" * (i % 3) for i in range(200)) + "no end"
    pieces = [piece.text for piece in cut_document(Document("a", text), 100)]
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert all(100 < len(piece) < 120 for piece in pieces[:-1])
    columns = [piece.unused for piece in cut_document(Document("a", text, unused=("id",)), 100)]
    assert columns == [("id",), *[()] * (len(pieces) - 1)]  # counted once a row
    one_line = Document("c", "x" * 1000)  # no line end to cut at
    assert [len(piece.text) for piece in cut_document(one_line, 100)] == [200] * 5
    assert list(cut_document(one_line, 0)) == [one_line]
    chat = Document("d", (Message("user", "x" * 1000), Message("assistant", "y")))
    assert list(cut_document(chat, 100)) == [chat]


def test_the_held_out_share_is_as_asked_and_each_document_keeps_its_side():
    documents = [Document(str(i), f"document {i}") for i in range(4000)]
    held_out = {document.name for document in documents if is_validation(document, 0.1)}
    assert 300 < len(held_out) < 500
    assert held_out <= {document.name for document in documents if is_validation(document, 0.2)}


def test_texts_and_chats_differ_by_their_digest():
    chat = Document("a", (Message("user", "x"), Message("assistant", "y")))
    swapped = Document("a", (Message("assistant", "x"), Message("user", "y")))
    assert len({chat.digest, swapped.digest, Document("a", "x\ny").digest}) == 3
    assert chat.size_bytes == 2

import pytest

from shared_tokenizer.documents import STDLIB, Document, cut_documents, is_validation, read_documents


def test_a_folder_is_read_in_a_stable_order(tmp_path):
    for name, text in (
        ("b.txt", "two"),
        ("a.md", "one"),
        ("empty.txt", ""),
        ("image.png", "no"),
        ("c/d.py", "three"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [(document.name, document.text) for document in read_documents([str(tmp_path)])]
    assert found == [("a.md", "one"), ("b.txt", "two"), ("c/d.py", "three")]


def test_the_embedded_corpus_is_large_and_the_same_each_time():
    documents = list(read_documents([STDLIB]))
    assert sum(len(document.text) for document in documents) > 5_000_000
    assert documents == list(read_documents([STDLIB]))
    assert not any("/test/" in document.name for document in documents)


def test_sources_without_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="missing: no such file or folder"):
        list(read_documents([str(tmp_path / "missing")]))
    with pytest.raises(ValueError, match="found no text"):
        list(read_documents([str(tmp_path)]))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt: found no text"):
        list(read_documents([str(tmp_path / "empty.txt")]))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 at byte 3"):
        list(read_documents([str(tmp_path / "latin.txt")]))


def test_cutting_loses_nothing_and_cuts_at_line_ends():
    text = "".join(f"line {i}\n" * (i % 3) for i in range(200)) + "no end"
    pieces = list(cut_documents([Document("a", text), Document("b", "short")], 100))
    assert "".join(piece.text for piece in pieces) == text + "short"
    assert all(piece.text.endswith("\n") for piece in pieces[:-2])
    assert all(100 < len(piece.text) < 120 for piece in pieces[:-2])
    one_line = [Document("c", "x" * 1000)]  # no line end to cut at
    assert [len(piece.text) for piece in cut_documents(one_line, 100)] == [200] * 5


def test_the_held_out_share_is_as_asked_and_each_document_keeps_its_side():
    texts = [f"document {i}" for i in range(4000)]
    held_out = {text for text in texts if is_validation(text, 0.1)}
    assert 300 < len(held_out) < 500
    assert held_out <= {text for text in texts if is_validation(text, 0.2)}

"""Files in other encodings are read by their mark or by name, or refused with the way out."""

import gzip
import io
import json
import tarfile

import pytest

from shared_tokenizer.readers.encodings import checked_encoding
from shared_tokenizer.readers.readers import read_rows
from shared_tokenizer.readers.rows import BadRow, Row
from shared_tokenizer.sources.documents import Rejected, read_documents, read_file
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.files import find_files

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5\nsize 12345\n"
LINES = [f"Zeile {i}: über die Brücke \u2013 „schön“." for i in range(200)]


def write(path, encoding, mark=""):
    """Write the lines in the format that the name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "jsonl":
        content = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\r\n" for line in LINES)
    elif kind == "json":
        content = json.dumps([{"text": line} for line in LINES], ensure_ascii=False, indent=1)
    elif kind == "csv":
        content = "text\r\n" + "".join(f'"{line}"\r\n' for line in LINES)
    else:
        content = "\r\n".join(LINES)
    raw = (mark + content).encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


NAMES = ["a.txt", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
def test_a_mark_names_the_encoding(tmp_path, name, encoding):
    write(tmp_path / name, encoding, "\ufeff")
    texts = [document.text for document in read_documents([str(tmp_path)])]
    assert texts == (["\r\n".join(LINES)] if name == "a.txt" else LINES)


@pytest.mark.parametrize("name", NAMES)
def test_an_encoding_is_named_for_files_that_need_it(tmp_path, name):
    write(tmp_path / name, "cp1252")
    write(tmp_path / f"b{name[1:]}", "utf-8")
    texts = [document.text for document in read_documents([str(tmp_path)], None, FileRules(encoding="cp1252"))]
    assert texts == (["\r\n".join(LINES)] if name == "a.txt" else LINES) * 2
    (tmp_path / name).unlink()
    found = find_files([str(tmp_path)], None, FileRules(encoding="cp1252"))
    assert found.lines == ["encoding cp1252: not used, because every file is UTF-8 or says what it is"]


def test_marks_within_a_file_are_no_text(tmp_path):
    half = "".join(json.dumps({"text": f"row {i}"}) + "\r\n" for i in range(200))
    (tmp_path / "a.jsonl").write_text(f"\ufeff{half}\ufeff{half}", "utf-8", newline="")
    assert len(list(read_documents([str(tmp_path / "a.jsonl")]))) == 400
    (tmp_path / "a.txt").write_text("\ufeffone\r\n\ufefftwo\n\ufeffthree", "utf-8", newline="")
    assert [document.text for document in read_documents([str(tmp_path / "a.txt")])] == ["one\r\ntwo\nthree"]
    (tmp_path / "a.csv").write_text("\ufefftext\n1\n\ufefftext\n2\n", "utf-8")
    assert [document.text for document in read_documents([str(tmp_path / "a.csv")])] == ["1", "2"]


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [
        (
            "cp1252",
            "Über die Brücke, señor",
            "looks like WINDOWS-1252; read it with --encoding cp1252, or convert it: ",
        ),
        ("cp1251", "Привет, это длинный русский текст", "iconv -f WINDOWS-1251 -t UTF-8 OLD > NEW"),
        ("koi8-r", "Привет, это длинный русский текст", "looks like KOI8-R"),
        ("shift_jis", "これは日本語のテキストです。", "--encoding cp932"),
        ("euc_jp", "これは日本語のテキストです。", "--encoding euc_jp"),
        ("gb18030", "这是一个中文的文本,我们在这里。", "looks like GB18030"),
        ("big5", "這是一個中文的文本,我們在這裡。", "looks like BIG5"),
        ("cp949", "이것은 한국어 텍스트입니다.", "--encoding cp949"),
    ],
)
def test_the_message_names_what_a_file_looks_like(tmp_path, encoding, text, expected):
    (tmp_path / "a.txt").write_bytes((text * 5).encode(encoding))
    (row,) = read_rows(tmp_path / "a.txt", "text")
    assert isinstance(row, BadRow) and expected in row.reason


def test_utf_16_without_a_mark_and_files_that_are_no_text_are_named(tmp_path):
    write(tmp_path / "a.csv", "utf-16-le")
    (file,) = find_files([str(tmp_path)]).files
    (rejected,) = read_file(file)
    assert isinstance(rejected, Rejected) and "--encoding utf-16-le" in rejected.reason
    (file,) = find_files([str(tmp_path)], None, FileRules(encoding="utf-16-le")).files
    assert len(list(read_file(file))) == 200
    (tmp_path / "b.txt").write_bytes(b"%PDF-1.7 \xff\xff")
    (row,) = read_rows(tmp_path / "b.txt", "text")
    assert isinstance(row, BadRow) and "looks like a PDF file; extract its text" in row.reason


def test_what_a_wrong_encoding_cannot_decode_loses_the_rest(tmp_path):
    write(tmp_path / "a.jsonl", "cp1252")
    found = list(read_rows(tmp_path / "a.jsonl", "jsonl", encoding="ascii"))
    assert isinstance(found[-1], BadRow) and found[-1].loses_rest and not any(isinstance(row, Row) for row in found)
    for name in ("klingon", "base64", "rot13"):
        with pytest.raises(ValueError, match=f"encoding: found '{name}', expected an encoding that Python knows"):
            checked_encoding(name)
    assert checked_encoding("UTF8") is None and checked_encoding("Latin-1") == "iso8859-1"


def _tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return gzip.compress(content.getvalue(), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xlsx", b"PK\x03\x04\x14\0\x06\0", "looks like a zip archive"),
        ("a.zip", b"PK\x03\x04\x14\0\x06\0", "looks like a zip archive"),
        ("a.pdf", b"%PDF-1.4\nonly letters", "looks like a PDF file; extract its text"),
        ("a.rtf", b"{\\rtf1\\ansi only letters}", "looks like a document of an office program"),
        ("a.tar.gz", _tar(), "looks like a tar archive; unpack it"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "looks like an Arrow file; save the table as parquet"),
        *((f"a.{kind}", LFS, "git lfs pull") for kind in ("txt", "jsonl", "json", "csv", "parquet")),
    ],
)
@pytest.mark.parametrize("encoding", [None, "utf-16-le", "cp1252"])
def test_a_file_that_is_no_text_is_refused_by_its_kind(tmp_path, name, content, expected, encoding):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=expected) as found:
        list(read_documents([str(tmp_path / name)], None, FileRules(encoding=encoding)))
    assert "iconv" not in str(found.value)


def test_a_text_may_begin_like_a_kind_of_file(tmp_path):
    texts = ["GGUF is a format.", "Rar! Boom", "version https is newer"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    assert [document.text for document in read_documents([str(tmp_path)])] == texts


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "cp500"])
def test_files_in_ascii_stay_so_whatever_the_others_are(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("plain, and of an even length\n")
    (tmp_path / "b.txt").write_bytes("Notes in another encoding\n".encode(encoding))
    texts = [document.text for document in read_documents([str(tmp_path)], None, FileRules(encoding=encoding))]
    assert texts == ["plain, and of an even length\n", "Notes in another encoding\n"]

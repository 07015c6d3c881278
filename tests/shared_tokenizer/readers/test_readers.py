import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_tokenizer.readers import rows as rows_module
from shared_tokenizer.readers.readers import format_of, read_rows
from shared_tokenizer.readers.rows import BadRow, Piece, Row

OBJECTS = [{"text": "one"}, {"text": "two\nlines"}, {"text": "caf\u00e9 \u4f60"}]


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


def write(path, objects):
    """Write objects in the format of the file name."""
    kind = path.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), path, row_group_size=2)
        return
    if kind == "jsonl":
        content = "".join(json.dumps(value) + "\n" for value in objects)
    elif kind == "json":
        content = json.dumps(objects, indent=1)
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        rows = [["id", "text"], *([str(i), value["text"]] for i, value in enumerate(objects))]
        content = "".join(
            separator.join('"' + field.replace('"', '""') + '"' for field in row) + "\r\n" for row in rows
        )
    compress = {".gz": gzip.compress, ".zst": zstd}.get(path.suffix, bytes)
    path.write_bytes(compress(content.encode()))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.parquet", "a.csv", "a.tsv", "a.jsonl.gz", "a.json.zst", "a.csv.gz", "a.tsv.zst"]
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    write(tmp_path / name, OBJECTS)
    rows = list(read_rows(tmp_path / name, format_of(tmp_path / name)))
    assert [row.value["text"] for row in rows] == [value["text"] for value in OBJECTS]
    assert all(row.number > 0 for row in rows)


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8))
def test_no_row_is_lost_in_any_format(tmp_path_factory, texts):
    for name in ("a.jsonl", "a.json", "a.parquet", "a.csv.gz"):
        path = tmp_path_factory.mktemp("rows") / name
        write(path, [{"text": text} for text in texts])
        assert [row.value["text"] for row in read_rows(path, format_of(path))] == texts


def test_the_format_is_known_by_the_name_and_parquet_by_its_content(tmp_path):
    write(tmp_path / "a.parquet", OBJECTS)
    (tmp_path / "a.parquet").rename(tmp_path / "data.bin")
    for name, expected in (("a.TXT", "text"), ("b.py.gz", "text"), ("c.ndjson", "jsonl"), ("d.png", None)):
        (tmp_path / name).write_bytes(b"\x89PNG")
        assert format_of(tmp_path / name) == expected
    assert format_of(tmp_path / "data.bin") == "parquet"


@pytest.mark.parametrize(
    "content",
    ['{"text": "a"}\n\n{"text": "b"}', '\ufeff{"text": "a"}\r\n{"text": "b"}\r\n', '[{"text": "a"},\n {"text": "b"}]'],
)
def test_json_comes_in_lines_or_in_an_array(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content, "utf-8")
    assert [row.value for row in read_rows(path, "json")] == [{"text": "a"}, {"text": "b"}]


def test_one_object_over_several_lines_is_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n "text":\n "a"\n}\n')
    assert list(read_rows(path, "json")) == [Row(1, {"text": "a"})]


def test_a_text_file_is_one_row_and_a_long_one_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_TEXT_BYTES", 100)
    text = "".join(f"line {i} \u4f60\n" for i in range(60))
    for name, compress in (("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.txt.zst", zstd)):
        path = tmp_path / name
        path.write_bytes(compress(text.encode()))
        rows = list(read_rows(path, "text"))
        assert "".join(row.value for row in rows) == text and len(rows) > 5
        assert all(row.value.endswith("\n") for row in rows)
    (tmp_path / "b.txt").write_text("\u4f60" * 500)  # no line end, and no cut within a character
    rows = list(read_rows(tmp_path / "b.txt", "text"))
    assert "".join(row.value for row in rows) == "\u4f60" * 500


def reasons(path, file_format):
    return [(row.number, row.reason) for row in read_rows(path, file_format) if isinstance(row, BadRow)]


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 100)
    path = tmp_path / "a.jsonl"
    bad = [b'{"text": "trunc', b'{"text": "\xff"}', b"[1]", b'{"text": "' + b"x" * 300 + b'"}', b"[" * 90]
    path.write_bytes(b"\n".join([b'{"text": "first"}', *bad, b'{"text": "last"}']))
    rows = list(read_rows(path, "jsonl"))
    assert [row.value["text"] for row in rows if isinstance(row, Row)] == ["first", "last"]
    found = reasons(path, "jsonl")
    assert [number for number, _ in found] == [2, 3, 4, 5, 6]
    for (_, reason), word in zip(
        found, ["not JSON", "not UTF-8", "a JSON list", "longer than", "not JSON"], strict=True
    ):
        assert word in reason


def test_a_piece_of_a_file_knows_its_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "b"}\nbroken\n{"text": "c"}\n')
    rows = list(read_rows(path, "jsonl", Piece(14, 35, 2)))
    assert [row.number for row in rows] == [2, 3]
    assert rows[0] == Row(2, {"text": "b"}) and isinstance(rows[1], BadRow)


def test_a_truncated_array_gives_what_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "b"}, {"tex')
    rows = list(read_rows(path, "json"))
    assert [row.value for row in rows[:2]] == [{"text": "a"}, {"text": "b"}]
    assert isinstance(rows[2], BadRow) and "not JSON from here on" in rows[2].reason


def test_an_array_that_is_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, ' + "[" * 100_000)
    rows = list(read_rows(path, "json"))
    assert rows[0] == Row(1, {"text": "a"}) and "nested more than" in rows[1].reason


def test_ragged_and_broken_csv_rows_are_named(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,a\n2\n3,c,d\n4,"two\nlines"\n5,\xff\n6,f\n')
    rows = list(read_rows(path, "csv"))
    assert [row.value["text"] for row in rows if isinstance(row, Row)] == ["a", "two\nlines", "f"]
    assert [number for number, _ in reasons(path, "csv")] == [3, 4, 7]
    path.write_text('id,text\n1,a\n2,"never closed\n3,b\n4,c\n')
    assert [number for number, _ in reasons(path, "csv")] == [3]
    path.write_text("id;text\n1;a\n")
    assert "separated by ';', expected ','" in reasons(path, "csv")[0][1]
    path.write_text("id|text\n1|a\n")
    assert "separated by '|', expected ','" in reasons(path, "csv")[0][1]
    path.write_text("id\ttext\n1\ta\n")
    assert reasons(path, "csv")[0][1].endswith("expected ','; save the file with that separator, or name it NAME.tsv")
    path.write_text("id,text\n1,a\n")
    assert reasons(path, "tsv")[0][1].endswith("expected '\\t'; save the file with that separator, or name it NAME.csv")
    path.write_text("a,a\n1,2\n")
    assert reasons(path, "csv") == [(1, "found a column name twice in the header ['a', 'a'], expected each name once")]
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 100)
    path.write_text('id,text\n1,"' + "x\n" * 300)  # a quote that is never closed
    assert "field larger" in reasons(path, "csv")[0][1]


def test_columns_of_a_table_without_a_name_have_a_number_and_names_have_no_spaces_around_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",v1, v2 ,,\n0,ham, hello,,\n\ufeff,v1, v2 ,,\n1,spam,win,more,\n", "utf-8")  # two files, joined
    names = ["Unnamed: 0", "v1", "v2", "Unnamed: 3", "Unnamed: 4"]
    cells = [["0", "ham", " hello", "", ""], ["1", "spam", "win", "more", ""]]
    assert [row.value for row in read_rows(path, "csv")] == [dict(zip(names, row, strict=True)) for row in cells]


def test_the_spaces_after_the_commas_of_a_header_are_not_those_of_its_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id, question , answer\n1, "Two, and two?",  Four.\n2, a, b\n')
    cells = [{"id": "1", "question": "Two, and two?", "answer": "Four."}, {"id": "2", "question": "a", "answer": "b"}]
    assert [row.value for row in read_rows(path, "csv")] == cells


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.parquet", "a.txt.gz"])
def test_files_that_are_cut_or_are_something_else_are_named(tmp_path, name):
    path = tmp_path / name
    if name == "a.txt.gz":
        path.write_bytes(gzip.compress(b"text " * 1000)[:-20])
    else:
        write(path, OBJECTS * 1000)
        path.write_bytes(path.read_bytes()[:-100])
    file_format = format_of(path) or "text"
    assert reasons(path, file_format)
    path.write_bytes(b"")
    assert [type(row) for row in read_rows(path, file_format)] == ([BadRow] if file_format == "parquet" else [])
    path.write_bytes(b"PAR1 but nothing more")
    assert all(isinstance(row, BadRow) for row in read_rows(path, "parquet"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_an_object_holds_twice_makes_a_bad_row(tmp_path, name):
    values = [
        '{"text": "one"}',
        '{"text": "lost", "text": "two"}',
        '{"text": "x", "a": [{"b": 1, "b": 2}]}',
        '{"c": 3}',
    ]
    text = "\n".join(values) if name == "a.jsonl" else f"[{','.join(values)}]"
    (tmp_path / name).write_text(text)
    found = list(read_rows(tmp_path / name, name.rpartition(".")[2]))
    assert [row.value for row in found if isinstance(row, Row)] == [{"text": "one"}, {"c": 3}]
    assert [(row.number, row.reason) for row in found if isinstance(row, BadRow)] == [
        (2, "found the key 'text' twice in an object, expected it once"),
        (3, "found the key 'b' twice in an object, expected it once"),
    ]


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path):
    columns = [pyarrow.array(["one"]), pyarrow.array(["two"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
    ((_, reason),) = reasons(tmp_path / "a.parquet", "parquet")
    assert "found the column 'text' twice" in reason


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([10**15, 1], pyarrow.timestamp("s")),
        ([1700000000000000001, 1], pyarrow.timestamp("ns")),
        ([1, 2], pyarrow.timestamp("us", tz="Mars/Olympus")),
        ([1, 2], pyarrow.date32()),
        ([1, 2], pyarrow.time32("ms")),
        ([2**62, 2], pyarrow.duration("s")),
    ],
)
def test_times_that_python_cannot_hold_stop_nothing(tmp_path, values, kind):
    table = pyarrow.table({"text": ["a", "b"], "when": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = list(read_rows(tmp_path / "a.parquet", "parquet"))
    assert [row.value["text"] for row in found if isinstance(row, Row)] == ["a", "b"]


def test_a_parquet_cell_that_is_not_utf8_is_one_bad_row(tmp_path):
    cells = pyarrow.array([b"ok", b"caf\xe9", b"z"])
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, cells.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    found = list(read_rows(tmp_path / "a.parquet", "parquet"))
    assert [row.value["text"] for row in found if isinstance(row, Row)] == ["ok", "z"]
    bad = [row for row in found if isinstance(row, BadRow)]
    assert [row.number for row in bad] == [2] and not bad[0].loses_rest and "column 'text': 'utf-8'" in bad[0].reason


def test_a_cut_parquet_file_has_the_reason_of_the_library(tmp_path):
    write(tmp_path / "whole.parquet", OBJECTS)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:200])
    ((_, reason),) = reasons(tmp_path / "a.parquet", "parquet")
    assert "magic bytes not found" in reason and "name it" not in reason


@pytest.mark.parametrize("before", ["", "0,z\n"])
def test_a_quote_that_swallows_rows_is_found_in_the_first_record_too(tmp_path, before):
    (tmp_path / "a.csv").write_text(f'id,text\n{before}1,"Hello\n2,world"\n3,c\n')
    found = list(read_rows(tmp_path / "a.csv", "csv"))
    assert [row.value["id"] for row in found if isinstance(row, Row)] == ([*before[:1], "3"])
    assert sum(isinstance(row, BadRow) for row in found) == 2


def test_lines_of_a_first_text_that_are_no_rows_stay_in_it(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"Hello\nto you, world"\n3,c\n')
    assert [row.value["text"] for row in read_rows(tmp_path / "a.csv", "csv")] == ["Hello\nto you, world", "c"]


def test_a_frame_that_zstd_skips_may_come_first(tmp_path):
    content = zstd(b'{"text": "one"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size" + content)
    assert [row.value for row in read_rows(tmp_path / "a.jsonl.zst", "jsonl")] == [{"text": "one"}]

"""One bad row stands for one row: where more is lost, the reader says so, how much, and since where."""

import gzip
import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from shared_tokenizer.readers import rows
from shared_tokenizer.readers.readers import read_rows
from shared_tokenizer.readers.rows import BadRow, Row

ROWS = [{"text": f"row {i}"} for i in range(400)]
ARRAY = json.dumps(ROWS)
TABLE = "id,text\n" + "".join(f"{i},Sentence {i} about the kettle.\n" for i in range(400))
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def read(path, content, kind):
    """Return the good and the bad rows of a file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = list(read_rows(path, kind))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadRow)]


@pytest.mark.parametrize("bare", ["NaN", "Infinity", "-Infinity"])
def test_an_array_takes_what_json_dump_writes_for_a_number_that_is_none(tmp_path, bare):
    good, bad = read(tmp_path / "a.json", ARRAY.replace('"row 50"', f'"row 50", "score": {bare}'), "json")
    assert len(good) == 400 and not bad


@pytest.mark.parametrize(
    ("content", "kept", "word"),
    [
        (ARRAY.replace('"row 50"', "row 50"), 50, "bytes from byte"),
        (ARRAY.replace('"row 50"', '"row 50'), 50, "bytes from byte"),
        (ARRAY[:-4], 399, "Unterminated string"),
        (ARRAY[:-1], 400, "the array has no end"),
        (f"{ARRAY} and more", 400, "the 8 bytes from byte"),
        ('[{"text": "a"}, {"text": ' + "[" * 100_000, 1, "nested more than"),
    ],
)
def test_what_follows_an_error_in_an_array_is_lost(tmp_path, content, kept, word):
    good, bad = read(tmp_path / "a.json", content, "json")
    assert len(good) == kept and len(bad) == 1
    assert bad[0].loses_rest and bad[0].number == kept + 1 and word in bad[0].reason


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (f"{ARRAY}\n{ARRAY}", 800),
        ("\n".join(json.dumps(row, indent=2) for row in ROWS[:50]), 50),
        (f"{ARRAY[:-1]},]", 400),
        (json.dumps([CHAT, CHAT]), 2),
        (json.dumps(CHAT, indent=1), 1),
        (f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}\n", 2),
        ("[]", 0),
    ],
)
def test_json_comes_in_every_shape(tmp_path, content, count):
    good, bad = read(tmp_path / "a.json", content, "json")
    assert len(good) == count and not bad
    if "role" in content:
        assert all(row.value == {"messages": CHAT} for row in good)


def test_several_objects_on_a_line_are_several_rows(tmp_path):
    line = "".join(map(json.dumps, ROWS))
    assert len(read(tmp_path / "a.jsonl", line, "jsonl")[0]) == 400
    assert len(read(tmp_path / "a.jsonl", line.replace("}{", "}\r{"), "jsonl")[0]) == 400
    good, bad = read(tmp_path / "a.jsonl", line.replace('"row 50"', "row 50"), "jsonl")
    assert len(good) == 50 and bad[0].loses_rest
    good, bad = read(tmp_path / "a.jsonl", f"{json.dumps(ROWS[0])} garbage\n{json.dumps(ROWS[1])}\n", "jsonl")
    assert [row.number for row in good] == [2] and not bad[0].loses_rest  # a row is lost, no more


def test_a_quote_that_is_not_closed_loses_the_rest(tmp_path):
    good, bad = read(tmp_path / "a.csv", TABLE.replace("\n50,Sen", '\n50,"Sen'), "csv")
    assert len(good) == 50 and bad == [
        BadRow(52, "not CSV: a quote that opens in line 52 is never closed, so 350 lines are lost", loses_rest=True)
    ]


@pytest.mark.parametrize("end", ['kettle."', '"kettle".', 'the "kettle.'])
def test_a_quote_that_closes_later_counts_as_the_lines_that_it_swallows(tmp_path, end):
    lines = TABLE.replace("\n50,Sen", '\n50,"Sen').splitlines(keepends=True)
    lines[101] = f"100,Sentence 100 about {end}\n"
    good, bad = read(tmp_path / "a.csv", "".join(lines), "csv")
    assert len(good) == 400 - 51 and [row.number for row in bad] == list(range(52, 103))
    assert "line 52" in bad[0].reason


def test_lines_in_a_field_are_no_rows_where_they_do_not_look_like_it(tmp_path):
    good, bad = read(tmp_path / "a.csv", 'id,text\n1,"one, two\nthree, four\n"\n2,"a\n\nb"\n', "csv")
    assert len(good) == 2 and not bad


def test_a_header_that_cannot_be_read_loses_all(tmp_path):
    for header in ("a,a", "id;text", "caf\udce9,b"):
        _, bad = read(tmp_path / "a.csv", f"{header}\n1,2\n".encode(errors="surrogateescape"), "csv")
        assert bad[0].loses_rest


def test_compressed_files_that_are_cut_and_damaged_row_groups_lose_the_rest(tmp_path):
    lines = (json.dumps({"text": hashlib.sha256(bytes([i % 256, i // 256])).hexdigest()}) + "\n" for i in range(9000))
    content = gzip.compress("".join(lines).encode())
    good, bad = read(tmp_path / "a.jsonl.gz", content[: len(content) // 2], "jsonl")
    assert good and bad[0].loses_rest and bad[0].number == good[-1].number + 1
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"row {i} " + "z" * 50 for i in range(2000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 300] = b"\xff" * 300
    good, bad = read(path, bytes(damaged), "parquet")
    assert len(bad) == 1 and bad[0].loses_rest and f"{2000 - len(good):,} of 2,000 rows are lost" in bad[0].reason


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(rows, "FREE_BYTES", 100_000)


def test_a_long_row_of_an_array_is_skipped_and_a_longer_one_ends_it(tmp_path, small_limits):
    good, bad = read(tmp_path / "a.json", json.dumps([{"text": "x" * 1500}, *ROWS]), "json")
    assert len(good) == 400 and bad == [BadRow(1, "longer than 0 MiB")]
    content = json.dumps([ROWS[0], {"text": "x" * 5_000_000}, *ROWS])
    good, bad = read(tmp_path / "a.json", content, "json")
    assert len(good) == 1 and bad[0].loses_rest


@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "csv"])
@pytest.mark.parametrize("unit", [b"\n", b"a", b"[", b'"'])
def test_small_files_stand_for_little(tmp_path, small_limits, kind, unit):
    header = {"csv": b"text\n", "json": b'[{"text": "', "jsonl": b"", "text": b""}[kind]
    for compress in (gzip.compress, lambda content: pyarrow.compress(content, "zstd", asbytes=True)):
        path = tmp_path / "bomb"
        path.write_bytes(compress(header + unit * 1_000_000))
        bad = [row for row in read_rows(path, kind) if isinstance(row, BadRow)]
        most = rows.most_content_bytes(path.stat().st_size)
        if len(unit) * 1_000_000 > most or kind == "json" or (kind == "csv" and unit != b"\n"):
            assert bad and bad[-1].loses_rest


def test_a_parquet_file_decodes_to_a_bounded_size(tmp_path, small_limits):
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 400, pyarrow.int32()), ["x" * 100_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet", compression="zstd")
    found = list(read_rows(tmp_path / "a.parquet", "parquet"))
    assert all(isinstance(row, BadRow) for row in found)
    assert found[-1].loses_rest and "times the size of the file" in found[-1].reason
    nothing = pyarrow.table({"text": pyarrow.nulls(1_000_000, pyarrow.string())})
    pyarrow.parquet.write_table(nothing, tmp_path / "b.parquet")
    found = list(read_rows(tmp_path / "b.parquet", "parquet"))
    assert found[-1].loses_rest and len(found) < 500_000

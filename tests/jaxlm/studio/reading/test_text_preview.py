import json

import pytest

from jaxlm.studio.reading.text_preview import Turn, preview


def test_files_rows_and_chats_are_shown(tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi <script>"}, {"role": "assistant", "content": "Hello\u202e"}]}
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps(chat)] * 3 + ["{bad"]) + "\n")
    (tmp_path / "rows.csv").write_text("text,label\nfirst,1\nsecond,0\n")
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = preview([str(tmp_path)])
    assert dict(found.kinds) == {"jsonl": 1, "csv": 1, "text": 1} and found.total_files == 3
    files = {file.name: file for file in found.files}
    assert files["chats.jsonl"].rows[0] == (
        Turn("user", "Hi <script>", False),
        Turn("assistant", "Hello<U+202E>", True),
    )
    assert files["rows.csv"].columns == "text" and files["rows.csv"].unused == ("label",)
    assert files["rows.csv"].rows == ("first", "second")
    assert found.documents == 6 and found.chats == 3 and found.duplicates == 2 and found.unreadable == 1
    assert any("unknown kind" in line for line in found.lines) and found.problems


def test_a_million_characters_are_cut(tmp_path):
    (tmp_path / "long.txt").write_text("x" * 1_000_000)
    (row,) = preview([str(tmp_path)]).files[0].rows
    assert isinstance(row, str) and len(row) < 1000 and "1,000,000 characters" in row


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    assert "expected a known name" in str(preview([str(tmp_path)]).files[0].problem)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="found no readable file"):
        preview([str(tmp_path)])

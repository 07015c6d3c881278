"""Folders as people have them: what is no text of theirs is left out and named."""

import json
import os

import pytest

from shared_tokenizer.manifest import MANIFEST
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.files import find_files

ROW = '{"text": "a"}\n'
CARD = "---\nlicense: mit\n---\n# My dataset\n"


def names(folder, **rules):
    """Return the names of the files of a folder, and the lines."""
    found = find_files([str(folder)], None, FileRules(**rules))
    return [file.name for file in found.files], [line.removeprefix(f"{folder}: ") for line in found.lines]


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def test_what_systems_leave_in_a_folder_is_no_text(tmp_path):
    write(
        tmp_path,
        {
            "notes.txt": "text",
            "._notes.txt": b"\0\5\26\7\xb0",
            "__MACOSX/._chat.jsonl": b"\0",
            ".DS_Store": b"\0",
            ".git/config.txt": "x",
            ".ipynb_checkpoints/a.md": "x",
            "~$notes.txt": b"\x05abc\0",
        },
    )
    found, lines = names(tmp_path)
    assert found == ["notes.txt"]
    assert lines == ["left out: 6 hidden (.DS_Store, ._notes.txt, .git/, ...)"]


def test_a_clone_of_a_data_set_is_its_rows(tmp_path):
    infos = json.dumps({"default": {"features": {}}})
    described = {"README.md": CARD, "dataset_infos.json": infos, ".gitattributes": "x", "LICENSE.txt": "MIT"}
    write(tmp_path, {"data/part.jsonl": ROW, **described, "data/_SUCCESS": "", "data/_common_metadata": b"PAR1"})
    found, lines = names(tmp_path)
    assert found == ["data/part.jsonl"]
    described = "5 that describe a data set (LICENSE.txt, README.md, data/_SUCCESS, ...)"
    assert lines == [f"left out: 1 hidden (.gitattributes), {described}"]
    assert names(tmp_path, include=("README.md", "*.jsonl"))[0] == ["README.md", "data/part.jsonl"]


def test_a_readme_among_texts_is_a_text(tmp_path):
    write(tmp_path, {"README.md": "# How to", "guide.md": "text", "rows.jsonl": ROW})
    assert names(tmp_path) == (["README.md", "guide.md", "rows.jsonl"], [])
    write(tmp_path, {"README.md": CARD})
    assert names(tmp_path)[0] == ["guide.md", "rows.jsonl"]


def test_kinds_that_cannot_be_read_are_counted(tmp_path):
    write(tmp_path, {"a.txt": "text", "b.png": "", "c.png": "", "d.docx": "", "Makefile": "x"})
    assert names(tmp_path) == (["a.txt"], ["left out: 4 of unknown kind (2 .png, 1 without extension, 1 .docx)"])
    (tmp_path / "a.txt").unlink()
    with pytest.raises(
        ValueError, match=r"found no readable file \(left out: 4 of unknown kind \(2 \.png, .*expected a"
    ):
        names(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"found no readable file \(the folder is empty\), expected a text file"):
        names(tmp_path / "empty")


def test_patterns_choose_files_and_each_has_to_match(tmp_path):
    write(tmp_path, {"a.txt": "x", "b.log": "x", "old/c.txt": "x", "old/d.jsonl": ROW, "2024/e.txt": "x"})
    assert names(tmp_path, exclude=("old",))[0] == ["2024/e.txt", "a.txt"]
    assert names(tmp_path, exclude=("*.jsonl", "a.txt"))[0] == ["2024/e.txt", "old/c.txt"]
    assert names(tmp_path, include=("2024/*",))[0] == ["2024/e.txt"]
    assert names(tmp_path, include=("*.log",))[0] == ["b.log"]  # its kind is named
    assert names(tmp_path, include=("old/*",), exclude=("c.txt",)) == (
        ["old/d.jsonl"],
        ["left out: 3 by --include (2024/e.txt, a.txt, b.log), 1 by --exclude (old/c.txt)"],
    )
    for setting in ("include", "exclude"):
        with pytest.raises(ValueError, match=f"{setting}: 'nothing\\*' matches no file"):
            names(tmp_path, **{setting: ("nothing*", "*.txt")})


def test_links_and_sealed_directories_are_named(tmp_path):
    write(tmp_path, {"a.txt": "x", "set/tokenizer/a.txt": "x", f"set/{MANIFEST}": ""})
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    found, lines = names(tmp_path)
    assert found == ["a.txt"]
    assert lines == ["left out: 1 links to folders (link/), 1 broken links (broken.txt), 1 sealed directories (set/)"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    write(tmp_path, {"a.txt": "x", "secret/b.txt": "x"})
    (tmp_path / "secret").chmod(0)
    try:
        with pytest.raises(OSError, match="secret"):
            names(tmp_path)
    finally:
        (tmp_path / "secret").chmod(0o755)


@pytest.mark.parametrize(
    "name", ["a [1].txt", "[x].txt", 'it\'s "q".txt', "-x.txt", "new\nline.txt", "a*b?.txt", "null"]
)
def test_any_name_names_a_file_and_patterns_are_for_what_is_none(tmp_path, name):
    write(tmp_path, {name: "x", "other.txt": "x"})
    assert [file.path.name for file in find_files([str(tmp_path / name)]).files] == [name]
    assert name == "null" or name in [file.name for file in find_files([str(tmp_path)]).files]
    assert len(find_files([str(tmp_path / "*.txt")]).files) == (1 if name == "null" else 2)
    with pytest.raises(ValueError, match="no such file or folder"):
        find_files([str(tmp_path / "*.csv")])

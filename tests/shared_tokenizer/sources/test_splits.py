"""The splits of a data set are found by name, and only where the names are those of a layout."""

import pytest

from shared_tokenizer.data.evaluation_text import EvaluationText
from shared_tokenizer.sources.documents import Document, is_validation, read_documents
from shared_tokenizer.sources.file_rules import FileRules
from shared_tokenizer.sources.files import find_files


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}\n' if "json" in name else "text")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        (["train.jsonl"], ["valid.jsonl"], ["test.jsonl"]),
        (["train.txt"], ["val.txt"], ["test.txt"]),
        (["a-train.txt"], ["a-valid.txt"], []),
        (["wiki.train.txt"], ["wiki.valid.txt"], ["wiki.test.txt"]),
        (["train-v1.1.json"], ["dev-v1.1.json"], []),
        (["x/train_data.csv"], ["x/validation_data.csv"], ["x/test_data.csv"]),
        (
            ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
            ["data/validation-00000-of-00001.jsonl"],
            ["data/test-00000-of-00001.jsonl"],
        ),
        (["train_sft-00000-of-00003.jsonl"], ["val_sft-00000-of-00001.jsonl"], ["test_gen-00000-of-00001.jsonl"]),
        (["train/a.txt", "train/b/c.txt"], ["validation/a.txt"], ["test/a.txt", "test/b/c.txt"]),
        (["split=train/a.jsonl"], ["split=validation/a.jsonl"], ["split=test/a.jsonl"]),
        (["Train/a.py"], ["Valid/a.py"], ["Test/a.py"]),
        (["train.jsonl", "more.jsonl"], ["eval.jsonl"], []),
    ],
)
def test_validation_is_held_out_and_test_left_out_aloud(tmp_path, train, val, test):
    write(tmp_path, [*train, *val, *test])
    found = find_files([str(tmp_path)])
    assert {file.name: file.split for file in found.files} == {
        **dict.fromkeys(train, "train"),
        **dict.fromkeys(val, "val"),
    }
    (line,) = found.lines
    assert line.startswith(f"{tmp_path}: holds the splits of a data set: trains on ") and f"holds out {val[0]}" in line
    assert line.endswith("; --splits ignore reads all of it")
    assert not test or f"leaves out {test[0]}" in line
    found = find_files([str(tmp_path)], None, FileRules(splits="ignore"))
    assert sorted(file.name for file in found.files) == sorted([*train, *val, *test]) and not found.lines
    assert all(file.split is None for file in found.files)


@pytest.mark.parametrize(
    "names",
    [
        ["test.txt"],
        ["test.txt", "notes.txt"],
        ["src/a.py", "tests/b.py", "test/c.py", "train/d.py"],
        ["train.py", "test.py", "validation.md"],
        ["driving-test.txt", "train-journey.txt"],
        ["a/train.txt", "b/test.txt"],
    ],
)
def test_other_names_are_no_splits(tmp_path, names):
    write(tmp_path, names)
    found = find_files([str(tmp_path)])
    assert sorted(file.name for file in found.files) == sorted(names)
    assert all(file.split is None for file in found.files)


def test_test_without_train_is_read_and_said(tmp_path):
    write(tmp_path, ["test.jsonl", "valid.jsonl"])
    found = find_files([str(tmp_path)])
    assert len(found.files) == 2
    assert found.lines == [
        "test.jsonl, valid.jsonl: read as any other file, because no file or folder next to it is named train"
    ]


def test_without_a_validation_file_the_hash_decides(tmp_path):
    write(tmp_path, ["train.jsonl", "test.jsonl"])
    (file,) = find_files([str(tmp_path)]).files
    assert (file.name, file.split) == ("train.jsonl", None)


def test_files_that_are_named_are_split_among_each_other(tmp_path):
    write(tmp_path, ["train.jsonl", "valid.jsonl", "d/train/a.txt", "d/valid/b.txt"])
    named = [str(tmp_path / name) for name in ("train.jsonl", "valid.jsonl")]
    assert [file.split for file in find_files(named).files] == ["train", "val"]
    assert [file.split for file in find_files(named[1:]).files] == [None]
    folders = [str(tmp_path / "d" / name) for name in ("train", "valid")]
    assert [file.split for file in find_files(folders).files] == ["train", "val"]
    assert [file.split for file in find_files(folders[:1]).files] == [None]


def test_the_evaluated_text_is_what_was_held_out(tmp_path):
    write(tmp_path, ["train.txt", "test.txt"])
    (tmp_path / "valid.txt").write_text("held out")
    assert EvaluationText(held_out=0.5).read([str(tmp_path)]) == ["held out"]
    documents = list(read_documents([str(tmp_path)]))
    assert [is_validation(document, 0.5) for document in documents] == [False, True]
    assert is_validation(Document("a", "b", "val"), 1e-9) and not is_validation(Document("a", "b", "train"), 1.0)

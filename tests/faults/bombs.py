"""Small files that grow when they are read: refused in two seconds and little memory."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from tests.faults.mutated_files import (
    Format,
    bounded_memory,
    read_one,
    read_tensors,
    read_text,
    read_tokenizer,
)
from tests.faults.trial import Kind, Outcome
from tests.faults.workplace import Workplace

# Addresses, of which the allocator of Arrow takes a gigabyte at once.
MOST_MEMORY = 3 << 30


def _row_of_an_array(path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(b'[{"text": "')
        for _ in range(100):
            file.write(b"a" * (1 << 20))
        file.write(b'"}]')


def _line(path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(b'{"text": "' + b"a" * (40 << 20) + b'"}\n{"text": "b"}\n')


def _many_names(path: Path) -> None:
    header = json.dumps(
        {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def _same_names(path: Path) -> None:
    header = (
        "{" + ",".join('"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' for _ in range(20_000)) + "}"
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def _parquet_dictionary(path: Path) -> None:
    text = pyarrow.array(["a" * (24 << 20)])
    indices = pyarrow.array(np.zeros(400, np.int32))
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(indices, text)})
    pyarrow.parquet.write_table(table, path, compression="zstd")


def _doubling(path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [replace] * 24},
    }
    definition |= {"truncation": None, "padding": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    path.write_text(json.dumps(definition | {"model": model}), "utf-8")


def _deep(path: Path) -> None:
    path.write_bytes(b'{"text": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}\n")


def _wide_csv(path: Path) -> None:
    path.write_text(",".join(f"c{number}" for number in range(200_000)) + "\n" + "a," * 199_999 + "a\n", "utf-8")


def _numbers(path: Path) -> None:
    path.write_text('[{"text": ' + "9" * 5_000_000 + "}]", "utf-8")


_BOMBS: tuple[tuple[str, str, Callable[[Path], None], Callable[[Path], object]], ...] = (
    ("one row of 100 MB in an array", "rows.json.gz", _row_of_an_array, read_text),
    ("a line of 40 MB", "rows.jsonl.gz", _line, read_text),
    ("20,000 tensors", "model.safetensors", _many_names, read_tensors),
    ("20,000 times one tensor", "model.safetensors", _same_names, read_tensors),
    ("400 rows of 24 MB", "rows.parquet", _parquet_dictionary, read_text),
    ("a normalizer that doubles 24 times", "tokenizer.json", _doubling, read_tokenizer),
    ("a million brackets", "rows.jsonl", _deep, read_text),
    ("a million brackets in an array", "rows.json", _deep, read_text),
    ("200,000 columns", "rows.csv", _wide_csv, read_text),
    ("a number of 5 million digits", "rows.json", _numbers, read_text),
)


def read_bombs(workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Read each of the files that somebody could make on purpose."""
    outcome = Outcome()
    for name, file, write, read in _BOMBS:
        path = folder / file
        write(path)
        with bounded_memory(MOST_MEMORY):
            read_one(Format(name, file, lambda _: [], read), path, outcome, name)
        path.unlink()
    return outcome


KINDS = [Kind("bombs", read_bombs, 1.0, limit_s=200, once=True)]

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from shared_tokenizer.readers.parquet_footer import dictionary_bytes
from shared_tokenizer.readers.readers import read_rows
from shared_tokenizer.readers.rows import BadRow

ROWS = [{"text": word * 3, "id": number, "tags": [word, "x"]} for number, word in enumerate(["a", "bc", "a", "é"])]


def test_the_dictionaries_of_each_row_group_are_counted(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 9, pyarrow.int32()), pyarrow.array(["a" * 50_000]))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", row_group_size=5)
    assert dictionary_bytes(path) == [50_004, 50_004]  # with the length of the text
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, use_dictionary=False, row_group_size=3)
    assert dictionary_bytes(path) == [0, 0]


def test_any_damaged_byte_of_the_footer_is_an_error_and_not_the_end_of_the_process(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    rng, refused = np.random.default_rng(0), 0
    for position in range(len(whole) - footer, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        refused += any(isinstance(row, BadRow) for row in read_rows(path, "parquet"))
    assert refused > footer // 4


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        b"\x19\xfc\xff\xff\xff\xff\x0f",  # a list of four thousand million structs
        b"\x1c" * 100_000,  # a struct in a struct in a struct
        b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x1e\x00",
    ],
)
def test_a_hostile_footer_is_refused(tmp_path, footer):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match="found"):
        dictionary_bytes(path)
    path.write_bytes(b"PAR1" + footer + b"\xff\xff\xff\x7fPAR1")
    with pytest.raises(ValueError, match="found no footer"):
        dictionary_bytes(path)

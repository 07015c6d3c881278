"""The bounded reader of GGUF: files of the gguf library are read, damaged files are refused at once."""

import struct
import time

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, GGUFValueType
from gguf.gguf_writer import GGUFWriter
from gguf.quants import dequantize, quantize

from jaxlm.common.gguf import file as gguf_file
from jaxlm.common.gguf.file import GGUFFile

SCALARS = {
    GGUFValueType.UINT8: 200,
    GGUFValueType.INT8: -100,
    GGUFValueType.UINT16: 60000,
    GGUFValueType.INT16: -30000,
    GGUFValueType.UINT32: 4000000000,
    GGUFValueType.INT32: -2000000000,
    GGUFValueType.FLOAT32: 0.5,
    GGUFValueType.BOOL: True,
    GGUFValueType.UINT64: 2**63,
    GGUFValueType.INT64: -(2**62),
    GGUFValueType.FLOAT64: 1e300,
    GGUFValueType.STRING: "ein schöner Tag",
}
LISTS = {
    "tokens": [f"token {n}" for n in range(40)] + ["", "ü"],
    "scores": [0.5, -2.0, 3.0],
    "types": [1, 3, -6],
    "flags": [True, False],
    "nested": [[1, 2], ["a"]],
}
TENSORS = {
    "matrix": ((4, 256), GGMLQuantizationType.F32),
    "vector": ((5,), GGMLQuantizationType.F32),
    "half": ((3, 6), GGMLQuantizationType.F16),
    "brain": ((2, 3, 8), GGMLQuantizationType.BF16),
    "eight_bits": ((2, 64), GGMLQuantizationType.Q8_0),
    "ternary": ((2, 512), GGMLQuantizationType.TQ2_0),
}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, (shape, _) in TENSORS.items()}


@pytest.fixture(scope="module")
def whole(arrays, tmp_path_factory):
    """Write a small file with every type of value, by the gguf library."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    writer = GGUFWriter(path, "llama")
    for kind, value in SCALARS.items():
        writer.add_key_value(f"a.{kind.name}", value, kind)
    for key, value in LISTS.items():
        writer.add_array(f"a.{key}", value)
    for name, array in arrays.items():
        kind = TENSORS[name][1]
        writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_of_the_library_is_read(whole, arrays):
    file = GGUFFile(whole)
    assert file.metadata == (
        {"general.architecture": "llama"}
        | {f"a.{kind.name}": value for kind, value in SCALARS.items()}
        | {f"a.{key}": value for key, value in LISTS.items()}
    )
    assert type(file.metadata["a.BOOL"]) is bool and type(file.metadata["a.flags"][0]) is bool
    assert {name: (t.shape, t.type.number) for name, t in file.tensors.items()} == TENSORS
    for name, array in arrays.items():
        kind = TENSORS[name][1]
        np.testing.assert_array_equal(file.read(name), dequantize(quantize(array, kind), kind))


def test_tensors_are_dequantized_in_chunks(whole, monkeypatch):
    file = GGUFFile(whole)
    at_once = {name: file.read(name) for name in file.tensors}
    monkeypatch.setattr(gguf_file, "CHUNK", 8)
    for name, array in at_once.items():
        np.testing.assert_array_equal(file.read(name), array)


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def pair(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def entry(name, row_first, kind, offset):
    return string(name) + struct.pack(f"<I{len(row_first)}QIQ", len(row_first), *row_first, kind, offset)


def content(pairs=(), entries=(), data=b"", *, magic=b"GGUF", version=3, tensor_count=None, pair_count=None):
    """Return the bytes of a file made of the given parts."""
    counts = [len(entries) if tensor_count is None else tensor_count, len(pairs) if pair_count is None else pair_count]
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(entries)
    return header + bytes(-len(header) % 32) + data if entries else header


def array(kind, count, elements=b""):
    return struct.pack("<IQ", kind, count) + elements


ROW = entry("a", [8], 0, 0)
REFUSED = {
    "empty": (b"", "the file has 0"),
    "magic": (content(magic=b"GGML"), "starts with b'GGML', expected b'GGUF'"),
    "old": (content(version=1), "found version 1, expected 2 or 3"),
    "big_endian": (content(version=3 << 24), "big-endian"),
    "tensor_count": (content(tensor_count=2**40), "count of 1,099,511,627,776 tensors"),
    "pair_count": (content(pair_count=1), "the file has"),
    "type_of_value": (content([pair("k", 13, b"")]), "metadata k: 13 is not a valid GGUFValueType"),
    "long_string": (content([pair("k", 8, struct.pack("<Q", 2**50))]), "metadata k: .* the file has"),
    "not_utf8": (content([pair("k", 8, struct.pack("<Q", 1) + b"\xff")]), "metadata k: 'utf-8'"),
    "long_array": (content([pair("k", 9, array(4, 2**20))]), "metadata k: .* the file has"),
    "many_strings": (content([pair("k", 9, array(8, 2**20, string("a")))]), "string 1 of 1,048,576 ends beyond"),
    "too_many_elements": (content([pair("k", 9, array(4, 2**60))]), "expected at most 4,194,304 elements"),
    "deep_array": (content([pair("k", 9, array(9, 1) * 9)]), "a depth of 4"),
    "same_key": (content([pair("k", 7, b"\1")] * 2), "metadata key 'k' is in the file twice"),
    "empty_key": (content([pair("", 7, b"\1")]), "metadata key '' is empty"),
    "alignment": (content([pair("general.alignment", 4, struct.pack("<I", 48))]), "found 48, expected a power of two"),
    "alignment_type": (content([pair("general.alignment", 9, array(4, 0))]), r"found \[\], expected a power of two"),
    "same_tensor": (content(entries=[ROW, ROW], data=bytes(64)), "tensor 'a' is in the file twice"),
    "dimensions": (content(entries=[entry("a", [1] * 5, 0, 0)]), "found 5 dimensions, expected 1..4"),
    "no_dimension": (content(entries=[entry("a", [], 0, 0)]), "found 0 dimensions, expected 1..4"),
    "no_element": (content(entries=[entry("a", [0, 4], 0, 0)]), r"found shape \[4, 0\]"),
    "tensor_type": (content(entries=[entry("a", [8], 99, 0)]), "tensor a: 99 is not a type of the gguf library"),
    "part_of_a_block": (content(entries=[entry("a", [48], 8, 0)]), r"shape \[48\], expected rows of Q8_0 blocks of 32"),
    "product_of_dimensions": (content(entries=[entry("a", [2**32, 2**32, 4], 0, 0)]), "tensor a: ends at byte 295,147"),
    "short_data": (content(entries=[ROW], data=bytes(31)), "tensor a: ends at byte 96, the file has 95"),
    "long_data": (content(entries=[ROW], data=bytes(33)), "its tensors end at byte 96, the file has 97"),
    "misaligned": (content(entries=[ROW, entry("b", [8], 0, 40)], data=bytes(72)), "found offset 40, expected 32"),
    "overlapping": (content(entries=[ROW, entry("b", [8], 0, 0)], data=bytes(64)), "found offset 0, expected 32"),
    "a_gap": (content(entries=[ROW, entry("b", [8], 0, 64)], data=bytes(96)), "found offset 64, expected 32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_incomplete_file_is_refused(what, tmp_path):
    path = tmp_path / f"{what}.gguf"
    path.write_bytes(REFUSED[what][0])
    with pytest.raises(ValueError, match=f"{what}.gguf: not a complete GGUF file: .*{REFUSED[what][1]}"):
        GGUFFile(path)


def test_a_tensor_that_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "file.gguf"
    path.write_bytes(content(entries=[ROW], data=np.float32([0, 1, 2, 3, np.nan, 5, 6, 7]).tobytes()))
    with pytest.raises(ValueError, match="tensor a: found a number that is not finite"):
        GGUFFile(path).read("a")
    path.write_bytes(content(entries=[entry("a", [8], 26, 0)], data=bytes(32)))
    with pytest.raises(ValueError, match="tensor a: the gguf library cannot dequantize I32"):
        GGUFFile(path).read("a")


def mutate(whole: bytes, header: int, rng: np.random.Generator) -> bytes:
    """Return the file with a bit flipped, a run of bytes replaced, a number made huge or its end cut off."""
    found = bytearray(whole)
    # Mostly in the header: the rest is numbers, and any number is valid.
    place = int(rng.integers(header if rng.random() < 0.9 else len(whole) - 8))
    match rng.integers(5):
        case 0:
            found[place] ^= 1 << int(rng.integers(8))
        case 1:
            length = int(rng.integers(1, 16))
            found[place : place + length] = rng.bytes(len(found[place : place + length]))
        case 2:
            found[place : place + 8] = struct.pack("<Q", int(2 ** rng.uniform(0, 64)))
        case 3:
            del found[place:]
        case 4:
            del found[place : place + int(rng.integers(1, 16))]
    return bytes(found)


def test_a_mutated_file_is_refused_or_harmless(whole, tmp_path):
    original = whole.read_bytes()
    places = [(tensor.offset, tensor.nbytes) for tensor in GGUFFile(whole).tensors.values()]
    rng = np.random.default_rng(0)
    path = tmp_path / "mutated.gguf"
    accepted = 0
    for _ in range(2000):
        path.unlink(missing_ok=True)  # overwriting it would wait for the disk
        path.write_bytes(mutate(original, places[0][0], rng))
        start = time.process_time()
        try:
            file = GGUFFile(path)
            # Only a name, a value or a number may differ: every tensor is at its old position.
            assert [(tensor.offset, tensor.nbytes) for tensor in file.tensors.values()] == places
            accepted += 1
            for name in file.tensors:
                file.read(name)
        except ValueError:
            pass
        assert time.process_time() - start < 2
    assert 100 < accepted < 1900

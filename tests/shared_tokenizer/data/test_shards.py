import json

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_tokenizer.data.shards import MANIFEST, ShardWriter, TokenShards, read_manifest
from tests.conftest import prepare_texts

TEXTS = [f"text number {i} " * (i % 7 + 1) for i in range(60)]


@pytest.fixture
def shards_dir(tmp_path, tokenizer):
    return prepare_texts(tmp_path / "shards", TEXTS, tokenizer, shard_tokens=500)


def test_shards_are_plain_arrays_of_the_smallest_type(shards_dir, tokenizer):
    ids, ends = np.load(shards_dir / "train-00000-00.npy"), np.load(shards_dir / "train-00000-00.ends.npy")
    assert ids.dtype == np.uint16 and ends.dtype == np.int64
    assert (ids[ends - 1] == tokenizer.eos_id).all() and ends[-1] == len(ids) >= 500
    assert read_manifest(shards_dir)["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert not list(shards_dir.glob("*.mask.npy"))


@given(
    documents=st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=9), min_size=1),
    shard_tokens=st.integers(1, 20),
    where=st.tuples(st.integers(0, 50), st.integers(1, 30)),
)
def test_what_is_written_is_read_across_shard_borders(tmp_path_factory, documents, shard_tokens, where):
    directory = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(fsspec.filesystem("file"), str(directory), "train-00000", "uint16", shard_tokens, masked=True)
    for document in documents:
        ids, learned = zip(*document, strict=True)
        writer.add(np.array(ids), np.array(learned))
    writer.close()
    manifest = {"format_version": 2, "dtype": "uint16", "tokenizer_fingerprint": "", "options": {}, "masked": True}
    manifest["splits"] = {"train": {"shards": writer.shards}, "val": {"shards": []}}
    (directory / MANIFEST).write_text(json.dumps(manifest))
    shards = TokenShards.open(directory, "train")
    ids = [token for document in documents for token, _ in document]
    learned = [flag for document in documents for _, flag in document]
    begins = [place == 0 for document in documents for place in range(len(document))]
    assert len(shards) == len(ids)
    assert shards.document_ends.tolist() == np.cumsum([len(document) for document in documents]).tolist()
    start = min(where[0], len(ids) - 1)
    span = shards.read(start, where[1])
    stop = start + where[1]
    assert span.ids.tolist() == ids[start:stop]
    assert span.loss_mask.tolist() == learned[start:stop]
    assert span.is_document_start.tolist() == begins[start:stop]


def test_what_is_not_a_shard_set_is_refused(shards_dir, tmp_path):
    with pytest.raises(ValueError, match=r"found no manifest\.json"):
        read_manifest(tmp_path / "elsewhere")
    (tmp_path / "my texts").mkdir()
    with pytest.raises(ValueError, match=r"prepare them first: jaxlm prepare --input '.*/my texts' --vocab_size 4096"):
        read_manifest(tmp_path / "my texts")
    (tmp_path / "my texts.partial").mkdir()
    with pytest.raises(ValueError, match="its preparation is not finished: give its command once more"):
        read_manifest(tmp_path / "my texts")
    for name in ("train-00000-00.npy", "train-00000-00.ends.npy"):
        whole = (shards_dir / name).read_bytes()
        (shards_dir / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name}: not a token shard"):
            TokenShards.open(shards_dir, "train")
        np.save(shards_dir / name, np.zeros(3, np.uint16))
        with pytest.raises(ValueError, match=r"found uint16 \[3\], expected \w+ \[\d+\]"):
            TokenShards.open(shards_dir, "train")
        (shards_dir / name).write_bytes(whole)
    manifest = json.loads((shards_dir / MANIFEST).read_text()) | {"format_version": 1}
    (shards_dir / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="found format_version 1, expected 2"):
        read_manifest(shards_dir)
    for content in ("{bad", "[]", '{"format_version": 2}'):
        (shards_dir / MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=r"manifest\.json: .*prepare the data again"):
            read_manifest(shards_dir)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"splits": None}, "splits: found None, expected dict"),
        ({"splits": {"train": {"shards": []}}}, r"splits\.val: found None, expected its shards"),
        ({"splits": {"train": {"shards": [{"name": "../x", "tokens": 1, "documents": 1}]}}}, ".*expected name, tokens"),
        ({"splits": {"train": {"shards": [{"name": "x", "tokens": "1", "documents": 1}]}}}, ".*expected name, tokens"),
        ({"options": []}, r"options: found \[\], expected dict"),
        ({"tokenizer_fingerprint": 5}, "tokenizer_fingerprint: found 5, expected str"),
    ],
)
def test_a_manifest_of_another_structure_is_refused_by_name(shards_dir, change, words):
    path = shards_dir / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"manifest\.json: {words}"):
        TokenShards.open(shards_dir, "train")


def test_a_manifest_nested_without_end_is_refused(shards_dir):
    (shards_dir / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"manifest\.json: not JSON"):
        read_manifest(shards_dir)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(100),  # an archive to numpy
        b"\x80\x04K\x05.",  # a pickle
        b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((\n",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f",
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<u2', 'fortran_order': False, 'shape': (5L,), }".ljust(117) + b"\n",
    ],
)
def test_a_file_that_is_no_array_is_refused_by_name(shards_dir, content):
    (shards_dir / "train-00000-00.npy").write_bytes(content.ljust(4000))
    with pytest.raises(ValueError, match=r"train-00000-00\.npy: not a token shard"):
        TokenShards.open(shards_dir, "train")


@pytest.mark.parametrize(
    "changed", [lambda ends: ends + 1, lambda ends: ends - 1, lambda ends: ends[::-1], lambda ends: -ends]
)
def test_documents_that_end_elsewhere_are_refused(shards_dir, changed):
    name = "train-00000-00.ends.npy"
    ends = np.load(shards_dir / name)
    assert len(ends) > 2
    np.save(shards_dir / name, changed(ends))
    with pytest.raises(
        ValueError, match=rf"{name}: found documents up to token -?\d+, expected them in order up to \d+"
    ):
        TokenShards.open(shards_dir, "train")

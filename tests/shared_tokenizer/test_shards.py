import json

import numpy as np
import pytest

from shared_tokenizer.documents import Document, is_validation
from shared_tokenizer.shards import MANIFEST, TokenShards, read_manifest, write_shards

DOCUMENTS = [Document(f"{i}", f"text number {i} " * (i % 7 + 1)) for i in range(60)]


@pytest.fixture
def shards_dir(tmp_path, tokenizer):
    write_shards(tmp_path, DOCUMENTS, tokenizer, val_fraction=0.2, shard_tokens=500, options={"a": 1})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_document_is_there_once_whole_and_in_order(shards_dir, tokenizer, split):
    texts = [d.text for d in DOCUMENTS if is_validation(d.text, 0.2) == (split == "val")]
    expected = [i for text in texts for i in (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)]
    shards = TokenShards.open(shards_dir, split)
    assert shards.read(0, len(shards)).tolist() == expected
    summary = read_manifest(shards_dir)["splits"][split]
    assert summary["tokens"] == len(expected) == sum(shard["tokens"] for shard in summary["shards"])
    assert (summary["documents"], summary["bytes"]) == (len(texts), sum(len(text) for text in texts))


def test_reading_crosses_shard_borders(shards_dir):
    shards = TokenShards.open(shards_dir, "train")
    assert len(shards.arrays) > 2
    everything = np.concatenate(shards.arrays)
    for start, count in ((0, 10), (495, 10), (499, 1), (500, 1), (490, 600), (len(shards) - 3, 3)):
        np.testing.assert_array_equal(shards.read(start, count), everything[start : start + count])


def test_shards_are_plain_arrays_of_the_smallest_type(shards_dir, tokenizer):
    assert np.load(shards_dir / "train-00000.npy").dtype == np.uint16
    assert read_manifest(shards_dir)["tokenizer_fingerprint"] == tokenizer.fingerprint


def test_what_is_not_a_shard_set_is_refused(shards_dir, tmp_path):
    with pytest.raises(ValueError, match=r"found no manifest\.json"):
        read_manifest(tmp_path / "elsewhere")
    (shards_dir / "train-00000.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-00000\.npy: not a token shard"):
        TokenShards.open(shards_dir, "train")
    np.save(shards_dir / "train-00000.npy", np.zeros(3, np.uint16))
    with pytest.raises(ValueError, match=r"found uint16 \[3\], expected uint16 \[500\]"):
        TokenShards.open(shards_dir, "train")
    manifest = json.loads((shards_dir / MANIFEST).read_text()) | {"format_version": 2}
    (shards_dir / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="found format_version 2, expected 1"):
        read_manifest(shards_dir)
    for content in ("{bad", "[]", '{"format_version": 1}'):
        (shards_dir / MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=r"manifest\.json: .*prepare the data again"):
            read_manifest(shards_dir)

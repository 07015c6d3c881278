import numpy as np
import pytest

from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.template import read_chat_format, write_chat_template
from shared_tokenizer.data.batches import BatchOrder, training_batches
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.manifest import DamagedError, write_manifest
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.conftest import flipped_bit, prepare_texts

TEXTS = [f"number {i} " * 20 for i in range(40)]


def test_several_sets_of_one_tokenizer_are_opened_together(tmp_path, tokenizer):
    paths = [prepare_texts(tmp_path / name, TEXTS[:size], tokenizer) for name, size in (("a", 40), ("b", 20))]
    sets = DataSets.open(paths, 8)
    assert len(sets.train) == len(sets.val) == 2
    assert next(iter(training_batches(sets.train, BatchOrder(4, seed=0))))["inputs"].shape == (4, 8)
    assert len(sets.evaluation_batches(4, 6)) == 6
    assert sets.fingerprint == DataSets.open(paths, 16).fingerprint != DataSets.open(paths[:1], 8).fingerprint
    assert sets.packing_reports() == []
    packed = DataSets.open(paths, 64, packing="best_fit").packing_reports()
    assert len(packed) == 4 and packed[0].startswith(f"{paths[0]} (train): ")


def test_sets_of_two_tokenizers_are_refused(tmp_path, tokenizer):
    other = train_tokenizer(TEXTS, 300)
    paths = [prepare_texts(tmp_path / name, TEXTS, each) for name, each in (("a", tokenizer), ("b", other))]
    with pytest.raises(ValueError, match=r"b: shards were made with tokenizer .*prepare one of them with"):
        DataSets.open(paths, 8)


def test_damaged_shards_are_found_before_training(tmp_path, tokenizer):
    data = prepare_texts(tmp_path / "data", TEXTS, tokenizer)
    DataSets.open([data], 8, verify=True)
    file = data / "train-00000-00.npy"
    rng = np.random.default_rng(0)
    for _ in range(200):
        with flipped_bit([file], rng), pytest.raises(DamagedError, match=r"train-00000-00\.npy: damaged"):
            DataSets.open([data], 8, verify=True)


def test_of_texts_and_chats_the_tokenizer_is_the_one_that_knows_how_chats_are_written(tmp_path, tokenizer):
    paths = [prepare_texts(tmp_path / name, [f"number {i} " * 20 for i in range(20)], tokenizer) for name in "ab"]
    assert DataSets.open(paths, 8).tokenizer_dir == paths[0] / "tokenizer"
    write_chat_template(paths[1] / "tokenizer", CHATML, tokenizer)
    write_manifest(paths[1])
    sets = DataSets.open(paths, 8)
    assert sets.tokenizer_dir == paths[1] / "tokenizer"
    sets.tokenizer.save(tmp_path)
    assert read_chat_format(tmp_path) is CHATML

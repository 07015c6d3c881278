import numpy as np
import pytest

from jaxlm.data import Windows, evaluation_batches, open_windows, to_example, training_batches
from jaxlm.spec.manifest import DamagedError, sealed_directory
from shared_tokenizer.documents import Document
from shared_tokenizer.shards import TokenShards, write_shards
from tests.conftest import flipped_bit


@pytest.fixture
def windows():
    return Windows(TokenShards((np.arange(1, 1002, dtype=np.uint16),)), 10, eos_id=0, what="test")


def test_documents_are_separated_and_nothing_is_predicted_across_their_end():
    example = to_example(np.array([5, 6, 2, 1, 7, 8, 2, 1, 9]), eos_id=2)
    assert example["inputs"].tolist() == [5, 6, 2, 1, 7, 8, 2, 1]
    assert example["targets"].tolist() == [6, 2, 1, 7, 8, 2, 1, 9]
    assert example["segment_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert example["positions"].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert example["loss_mask"].tolist() == [True, True, False, True, True, True, False, True]


def test_windows_cover_every_token_once(windows):
    assert len(windows) == 100
    targets = np.concatenate([windows[i]["targets"] for i in range(len(windows))])
    np.testing.assert_array_equal(targets, np.arange(2, 1002))


def take(dataset, count):
    iterator = iter(dataset)
    return [next(iterator)["inputs"] for _ in range(count)]


def test_an_epoch_is_a_permutation_and_epochs_differ(windows):
    batches = take(training_batches(windows, 10, seed=3), 20)
    first, second = np.concatenate(batches[:10]), np.concatenate(batches[10:])
    expected = np.arange(1, 1001)
    np.testing.assert_array_equal(np.sort(first.ravel()), expected)
    np.testing.assert_array_equal(np.sort(second.ravel()), expected)
    assert (first != second).any()


def test_batches_depend_on_the_seed_alone(windows):
    again = take(training_batches(windows, 8, seed=3), 5)
    for found, expected in zip(take(training_batches(windows, 8, seed=3), 5), again, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (take(training_batches(windows, 8, seed=4), 1)[0] != again[0]).any()


def test_a_restored_iterator_goes_on_where_it_was(windows):
    dataset = training_batches(windows, 8, seed=3)
    iterator = iter(dataset)
    for _ in range(15):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)["inputs"] for _ in range(10)]
    restored = iter(dataset)
    restored.set_state(state)
    for batch in expected:
        np.testing.assert_array_equal(next(restored)["inputs"], batch)


def test_evaluation_is_in_order_and_the_last_batch_is_filled_with_masked_rows(windows):
    batches = evaluation_batches(windows, 8, max_batches=100)
    assert len(batches) == 13
    assert sum(batch["loss_mask"].sum() for batch in batches) == 1000
    assert all(batch["inputs"].shape == (8, 10) for batch in batches)
    assert len(evaluation_batches(windows, 8, max_batches=3)) == 3


def test_too_little_text_is_refused(windows):
    with pytest.raises(ValueError, match="test: found 10 tokens, expected more than one window of seq_len 10"):
        Windows(TokenShards((np.zeros(10, np.uint16),)), 10, 0, "test")
    with pytest.raises(ValueError, match="batch_size: found 101, but the training split holds only 100 windows"):
        training_batches(windows, 101, seed=0)


def test_damaged_shards_are_found_before_training(tmp_path, tokenizer):
    with sealed_directory(tmp_path / "data") as directory:
        documents = [Document(str(i), f"number {i} " * 20) for i in range(20)]
        write_shards(directory, documents, tokenizer, val_fraction=0.3, shard_tokens=10**6, options={})
    open_windows(tmp_path / "data", "train", 8, tokenizer.eos_id)
    file = tmp_path / "data" / "train-00000.npy"
    rng = np.random.default_rng(0)
    for _ in range(200):
        with flipped_bit([file], rng), pytest.raises(DamagedError, match=r"train-00000\.npy: damaged"):
            open_windows(tmp_path / "data", "train", 8, tokenizer.eos_id)

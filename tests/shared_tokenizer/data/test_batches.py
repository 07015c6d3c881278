import itertools

import numpy as np
import pytest

from shared_tokenizer.data.batches import BatchOrder, evaluation_batches, open_examples, training_batches
from shared_tokenizer.data.examples import PackedDocuments, Windows
from shared_tokenizer.data.shards import TokenShards
from tests.conftest import prepare_texts


def windows(first, count=100):
    return Windows(TokenShards.from_documents([np.arange(first, first + 10 * count + 1)]), 10, "test")


@pytest.fixture
def one_set():
    return [windows(1)]


def take(sets, order, count, weights=None):
    return [batch["inputs"] for batch in itertools.islice(training_batches(sets, order, weights), count)]


def test_an_epoch_is_a_permutation_and_epochs_differ(one_set):
    batches = take(one_set, BatchOrder(8, seed=3), 25)
    everything = np.concatenate(batches)
    first, second = everything[:100], everything[100:]
    np.testing.assert_array_equal(np.sort(first.ravel()), np.arange(1, 1001))
    np.testing.assert_array_equal(np.sort(second.ravel()), np.arange(1, 1001))
    assert (first != second).any()


def test_batches_depend_on_the_seed_alone(one_set):
    again = take(one_set, BatchOrder(8, seed=3), 5)
    for found, expected in zip(take(one_set, BatchOrder(8, seed=3), 5), again, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (take(one_set, BatchOrder(8, seed=4), 1)[0] != again[0]).any()


def test_a_batch_may_be_one_example(one_set):
    assert take(one_set, BatchOrder(1, seed=3), 1)[0].shape == (1, 10)


def test_a_batch_is_the_same_however_many_hosts_share_it(one_set):
    whole = take(one_set, BatchOrder(12, seed=3), 20)
    for num_hosts in (2, 3, 4):
        shares = [take(one_set, BatchOrder(12, 3, host, num_hosts), 20) for host in range(num_hosts)]
        for step, batch in enumerate(whole):
            together = np.concatenate([share[step] for share in shares])
            assert sorted(together[:, 0].tolist()) == sorted(batch[:, 0].tolist())


def test_another_number_of_hosts_goes_on_without_repeating_or_skipping(one_set):
    iterators = [iter(training_batches(one_set, BatchOrder(4, 3, host, 2))) for host in range(2)]
    seen = [next(iterator)["inputs"] for _ in range(10) for iterator in iterators]
    states = [iterator.get_state() for iterator in iterators]
    assert states[0] == states[1]
    alone = iter(training_batches(one_set, BatchOrder(4, 3)))
    alone.set_state(states[0])
    seen += [next(alone)["inputs"] for _ in range(15)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen).ravel()), np.arange(1, 1001))


def test_a_restored_iterator_goes_on_where_it_was():
    sets = [windows(1), windows(5000, 30)]
    dataset = training_batches(sets, BatchOrder(8, seed=3))
    iterator = iter(dataset)
    for _ in range(15):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)["inputs"] for _ in range(10)]
    restored = iter(dataset)
    restored.set_state(state)
    for batch in expected:
        np.testing.assert_array_equal(next(restored)["inputs"], batch)


def test_sets_are_mixed_by_their_weights():
    sets = [windows(1), windows(5000)]
    starts = np.concatenate(take(sets, BatchOrder(10, seed=0), 40, [3, 1]))[:, 0]
    assert (starts < 5000).mean() == pytest.approx(0.75, abs=0.01)
    first_set = starts[starts < 5000]
    assert len(set(first_set[:100].tolist())) == 100  # an epoch of it before anything comes again
    by_size = np.concatenate(take([windows(1, 90), windows(5000, 10)], BatchOrder(10, seed=0), 20))[:, 0]
    assert (by_size < 5000).mean() == pytest.approx(0.9, abs=0.01)


def test_weights_and_batches_that_do_not_fit_are_refused(one_set):
    for weights in ([1, 2], [0], [-1], [float("nan")]):
        with pytest.raises(ValueError, match=r"data_weights: found .* expected 1 positive numbers"):
            training_batches(one_set, BatchOrder(4, 0), weights)
    with pytest.raises(ValueError, match="batch_size: found 101, but the training data holds only 100 examples"):
        training_batches(one_set, BatchOrder(101, 0))
    with pytest.raises(ValueError, match="batch_size: found 10, expected a multiple of the 3 hosts"):
        BatchOrder(10, 0, 0, 3)


def test_evaluation_is_in_order_and_the_last_batch_is_filled_with_masked_rows(one_set):
    batches = evaluation_batches(one_set, 8, max_batches=100)
    assert len(batches) == 13
    assert sum(batch["loss_mask"].sum() for batch in batches) == 1000
    assert all(batch["inputs"].shape == (8, 10) for batch in batches)
    assert len(evaluation_batches(one_set, 8, max_batches=3)) == 3
    two = evaluation_batches([windows(1), windows(5000)], 8, max_batches=4)
    assert [int(batch["inputs"][0, 0]) for batch in two] == [1, 81, 5000, 5080]


def test_chats_are_packed_and_texts_cut_into_windows(tmp_path, tokenizer):
    texts = prepare_texts(tmp_path / "texts", [f"text {i} " * 9 for i in range(20)], tokenizer)
    assert isinstance(open_examples(texts, "train", 16), Windows)
    assert isinstance(open_examples(texts, "train", 16, packing="best_fit"), PackedDocuments)
    with pytest.raises(ValueError, match="document_mask: false is not possible with packing best_fit"):
        open_examples(texts, "train", 16, packing="best_fit", document_mask=False)

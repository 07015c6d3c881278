"""Pairs of conversations as examples of two rows."""

import numpy as np
import pytest

from shared_tokenizer.data.batches import BatchOrder, evaluation_batches, training_batches
from shared_tokenizer.data.pairs import Pairs
from shared_tokenizer.data.shards import TokenShards


def shards(*documents: tuple[int, int]) -> TokenShards:
    """Return documents of (context, answer) tokens: context counts 1, 2, ..., answers count 101, 102, ..."""
    ids = [[*range(1, context + 1), *range(101, 101 + answer)] for context, answer in documents]
    masks = [[False] * context + [True] * answer for context, answer in documents]
    ends = np.cumsum([len(document) for document in ids])
    return TokenShards((np.concatenate(ids).astype(np.uint16),), (ends,), (np.concatenate(masks),))


def test_a_pair_is_two_rows_that_begin_at_their_first_token():
    example = Pairs(shards((3, 2), (3, 1)), 6, "x", first=5)[0]
    assert example["inputs"].tolist() == [[1, 2, 3, 101, 102, 0], [1, 2, 3, 101, 0, 0]]
    assert example["targets"].tolist() == [[2, 3, 101, 102, 0, 0], [2, 3, 101, 0, 0, 0]]
    assert example["loss_mask"].tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]]
    assert example["positions"].tolist() == [list(range(6))] * 2 and example["pair"] == 5


def test_a_long_question_loses_its_beginning_in_both_rows_and_keeps_its_first_token():
    pairs = Pairs(shards((6, 3), (6, 1)), 6, "x")
    example = pairs[0]
    assert example["inputs"].tolist() == [[1, 4, 5, 6, 101, 102], [1, 4, 5, 6, 101, 0]]
    assert example["targets"].tolist() == [[4, 5, 6, 101, 102, 103], [4, 5, 6, 101, 0, 0]]
    assert (pairs.report.cut, pairs.report.dropped) == (1, 0)


def test_a_pair_whose_answer_does_not_fit_is_dropped_and_counted():
    pairs = Pairs(shards((2, 2), (2, 2), (3, 7), (3, 2), (3, 6), (3, 2)), 6, "x")
    assert len(pairs) == 2 and pairs.report.dropped == 1 and pairs[1]["pair"] == 1
    assert pairs[1]["targets"][0].tolist() == [101, 102, 103, 104, 105, 106]
    assert "1 dropped because an answer does not fit; seq_len" in str(pairs.report)
    with pytest.raises(ValueError, match="no pair whose answers fit into seq_len 3; set a longer seq_len"):
        Pairs(shards((2, 5), (2, 2)), 3, "x")


def test_documents_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="found 1 documents, expected masked ones two by two"):
        Pairs(shards((2, 2)), 8, "x")
    with pytest.raises(ValueError, match="expected masked ones"):
        Pairs(TokenShards.from_documents([[1, 2], [3, 4]]), 8, "x")


def test_batches_of_pairs_hold_each_once_an_epoch_in_an_order_that_resumes():
    pairs = Pairs(shards(*[(2 + i, 2) for i in range(8) for _ in "ab"]), 16, "x")
    stream = iter(training_batches([pairs], BatchOrder(4, seed=1)))
    first, state = next(stream), stream.get_state()
    second = next(stream)
    assert first["inputs"].shape == (4, 2, 16) and first["pair"].shape == (4,)
    assert sorted([*first["pair"], *second["pair"]]) == list(range(8))
    stream.set_state(state)
    assert next(stream)["pair"].tolist() == second["pair"].tolist()


def test_the_last_batch_of_an_evaluation_is_filled_with_pairs_that_count_nothing():
    pairs = Pairs(shards(*[(2, 2)] * 6), 4, "x")
    batches = evaluation_batches([pairs], 2, 9)
    assert [batch["loss_mask"].any(axis=(1, 2)).tolist() for batch in batches] == [[True, True], [True, False]]

import numpy as np
import pytest

from jaxlm.common.evaluation.scoring import ScoredPlaces, padded_length, score_rows


class Recorder:
    """A model that gives token t after token s the log-probability -(s + t / 100), and records its batches."""

    def __init__(self, top=0):
        self.shapes, self.top = [], top

    def __call__(self, inputs, places, targets):
        self.shapes.append((*inputs.shape, len(places)))
        before = inputs.reshape(-1)[places]
        top = np.repeat(before[:, None], self.top, axis=1)
        return ScoredPlaces(
            -(before + targets / 100).astype(np.float32), before == targets, top, -top.astype(np.float32)
        )


def scored(rows, contexts, top=0, **options):
    model = Recorder(top)
    options = {"vocab_size": 100, "max_seq_len": 64} | options
    return score_rows(rows, contexts, model, top=top, **options), model


def test_each_row_gets_its_own_scores_in_the_order_given():
    rows = [[1, 2], [5, 5, 6, 7], [9, 8, 7]]
    found, model = scored(rows, [1, 2, 1])
    assert [scores.logprobs.tolist() for scores in found] == [
        pytest.approx([-1.02]),
        pytest.approx([-5.06, -6.07]),
        pytest.approx([-9.08, -8.07]),
    ]
    assert [scores.is_greedy.tolist() for scores in found] == [[False], [False, False], [False, False]]
    assert model.shapes == [(4, 32, 32)]


def test_likeliest_tokens_are_given_for_the_place_after_the_row_too():
    found, _ = scored([[1, 2, 3], [4]], [2, 1], top=2)
    assert found[0].top_ids.tolist() == [[2, 2], [3, 3]] and found[0].logprobs.tolist() == pytest.approx([-2.03])
    assert found[1].top_ids.tolist() == [[4, 4]] and len(found[1].logprobs) == 0


def test_rows_of_similar_length_share_a_batch_of_few_shapes():
    rows = [[1] * (2 + number % 60) for number in range(100)]
    found, model = scored(rows, [1] * 100, tokens_per_batch=256)
    assert [len(scores.logprobs) for scores in found] == [len(row) - 1 for row in rows]
    assert {(count, length) for count, length, _ in model.shapes} <= {
        (4, 64),
        (4, 48),
        (8, 32),
        (2, 32),
        (1, 32),
        (4, 32),
    }
    assert [padded_length(length) for length in (1, 32, 33, 48, 49, 65, 97)] == [32, 32, 48, 48, 64, 96, 128]


@pytest.mark.parametrize(
    ("row", "context", "words"),
    [
        ([], 1, "row 0: found a context of 1 tokens in a row of 0"),
        ([1, 2], 0, "row 0: found a context of 0 tokens"),
        ([1] * 66, 1, "row 0: found 66 tokens, expected at most 65 in the model's context of 64; cut the row"),
        ([1, 100], 1, "row 0: found token 100, expected 0..99; it belongs to another tokenizer"),
        ([-1, 2], 1, "row 0: found token -1"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_by_number(row, context, words):
    with pytest.raises(ValueError, match=words):
        scored([row], [context])


def test_no_more_likeliest_tokens_than_there_are():
    with pytest.raises(ValueError, match="top: found 101, expected 0 to 100"):
        scored([[1, 2]], [1], top=101)

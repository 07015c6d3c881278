import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_tokenizer.data.examples import PackedDocuments, Windows, best_fit
from shared_tokenizer.data.shards import TokenShards

# A document is a list of (token, learned); tokens are all different, so that each can be found again.
DOCUMENTS = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=12)


def to_shards(flags, masked=True):
    """Return documents of these masks in two shards; their tokens count up from 1."""
    documents, token = [], 1
    for document in flags:
        documents.append((np.arange(token, token + len(document)), np.array(document)))
        token += len(document)
    halves = [half for half in (documents[: len(documents) // 2], documents[len(documents) // 2 :]) if half]
    return TokenShards(
        tuple(np.concatenate([ids for ids, _ in half]) for half in halves),
        tuple(np.cumsum([len(ids) for ids, _ in half]) for half in halves),
        tuple(np.concatenate([mask for _, mask in half]) for half in halves) if masked else None,
    ), documents


def learned_targets(examples):
    return [
        int(token) for i in range(len(examples)) for token in examples[i]["targets"][examples[i]["loss_mask"]].tolist()
    ]


def check_segments(examples, documents):
    """Check that no target, segment or position crosses the border of a document."""
    owner = {int(token): number for number, (ids, _) in enumerate(documents) for token in ids}
    for i in range(len(examples)):
        example = examples[i]
        for segment in np.unique(example["segment_ids"]):
            inside = example["segment_ids"] == segment
            tokens = example["inputs"][inside & (example["inputs"] > 0)]
            assert len({owner[int(token)] for token in tokens}) <= 1
            assert example["positions"][inside].tolist() == list(range(inside.sum()))
        learned = example["loss_mask"]
        pairs = zip(example["inputs"][learned].tolist(), example["targets"][learned].tolist(), strict=True)
        assert all(target == token + 1 and owner[target] == owner[token] for token, target in pairs)


@given(flags=DOCUMENTS, seq_len=st.integers(1, 9), masked=st.booleans())
def test_windows_predict_every_learned_token_once_and_cross_no_border(flags, seq_len, masked):
    shards, documents = to_shards(flags, masked)
    if len(shards) < 2:
        return
    windows = Windows(shards, seq_len, "test")
    expected = [int(t) for ids, mask in documents for t in (ids[1:][mask[1:]] if masked else ids[1:])]
    assert learned_targets(windows) == expected
    check_segments(windows, documents)


@given(flags=DOCUMENTS, seq_len=st.integers(1, 9))
def test_packed_texts_are_all_there_once_and_cross_no_border(flags, seq_len):
    shards, documents = to_shards(flags, masked=False)
    if all(len(ids) < 2 for ids, _ in documents):
        return
    packed = PackedDocuments(shards, seq_len, "test")
    assert sorted(learned_targets(packed)) == [int(t) for ids, _ in documents for t in ids[1:]]
    check_segments(packed, documents)


@given(flags=DOCUMENTS, seq_len=st.integers(1, 9))
def test_packed_chats_end_at_a_turn_and_cross_no_border(flags, seq_len):
    shards, documents = to_shards(flags)
    try:
        packed = PackedDocuments(shards, seq_len, "test")
    except ValueError as error:
        assert "nothing to learn" in str(error)
        return
    found = learned_targets(packed)
    assert len(found) == len(set(found))
    check_segments(packed, documents)
    for ids, mask in documents:
        kept = [int(token) for token in ids[1:][mask[1:]] if token in found]
        if len(ids) <= seq_len + 1:
            assert kept == ids[1:][mask[1:]].tolist()
        elif not mask.all():
            # A turn of the assistant is kept whole or not at all, and what is kept comes first.
            ends = [i + 1 for i in range(len(mask) - 1) if mask[i] and not mask[i + 1] and i < seq_len + 1]
            assert kept == (ids[1 : ends[-1]][mask[1 : ends[-1]]].tolist() if ends else [])


def test_a_window_over_two_documents_by_hand():
    shards = TokenShards.from_documents([[5, 6, 2], [7, 8, 9]])
    example = Windows(shards, 8, "test")[0]
    assert example["inputs"].tolist() == [5, 6, 2, 7, 8, 0, 0, 0]
    assert example["targets"].tolist() == [6, 2, 7, 8, 9, 0, 0, 0]
    assert example["segment_ids"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert example["positions"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert example["loss_mask"].tolist() == [True, True, False, True, True, False, False, False]
    open_border = Windows(shards, 8, "test", document_mask=False)[0]
    assert "segment_ids" not in open_border and open_border["positions"].tolist() == list(range(8))
    assert open_border["loss_mask"].tolist() == example["loss_mask"].tolist()


def test_what_packing_did_is_counted():
    chat = [False, True, True, False]
    shards, _ = to_shards([chat * 4, [False] * 3, chat, [False] * 20 + chat])
    report = PackedDocuments(shards, 10, "test").report
    assert (report.documents, report.cut, report.dropped) == (4, 1, 2)
    assert report.examples == 2 and report.fill == pytest.approx((10 + 3) / 20)
    assert str(report) == (
        "4 documents packed into 2 examples, 65.0% full; 1 cut to fit, 2 dropped "
        "because none of their answers fits; seq_len 22 would hold 95 % of all uncut"
    )


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_holds_each_item_once_and_is_not_wasteful(lengths):
    order, starts = best_fit(np.array(lengths), 20)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    sums = [sum(lengths[item] for item in order[a:b]) for a, b in itertools.pairwise(starts)]
    assert max(sums) <= 20 and min(sums) > 0
    # Two bins that would fit into one cannot both be open: the bound of any best fit.
    assert len(sums) < 2 or sorted(sums)[0] + sorted(sums)[1] > 20
    assert len(sums) <= 11 / 9 * -(-sum(lengths) // 20) + 1 or max(lengths) > 10


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="test: found 1 tokens, expected at least two"):
        Windows(TokenShards.from_documents([[1]]), 4, "test")
    with pytest.raises(ValueError, match="test: found nothing to learn in 1 documents of at most seq_len 4"):
        PackedDocuments(to_shards([[False] * 3])[0], 4, "test")

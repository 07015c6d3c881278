import pytest

from jaxlm.common.evaluation.continuations import encode_pair, loglikelihoods
from tests.jaxlm.common.evaluation.fake_models import fake_model


def test_a_pair_is_encoded_as_one_text_and_cut_after_the_tokens_of_the_context(tokenizer):
    context, continuation = encode_pair("def add(first", ", second):", tokenizer)
    assert context == tokenizer.encode_prompt("def add(first")
    assert context + continuation == tokenizer.encode_prompt("def add(first, second):")


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(tokenizer):
    assert encode_pair("one \n", "two", tokenizer) == encode_pair("one", " \ntwo", tokenizer)


def test_a_text_without_context_follows_the_begin_token(tokenizer):
    assert encode_pair("", "word", tokenizer) == ([tokenizer.bos_id], tokenizer.encode("word"))


def test_special_tokens_in_a_text_stay_text(tokenizer):
    context, continuation = encode_pair("<s>", "</s>", tokenizer)
    assert tokenizer.eos_id not in continuation and tokenizer.bos_id not in context[1:]


def test_without_a_begin_token_the_end_of_another_text_stands_before_an_empty_context():
    class NoBegin:
        start_ids, eos_id = [], 9

        def encode_prompt(self, text):
            return [ord(letter) for letter in text]

    assert encode_pair("", "ab", NoBegin()) == ([9], [97, 98])
    assert encode_pair("\n", "a", NoBegin()) == ([9], [10, 97])


def test_at_least_one_token_is_scored_where_the_tokenizer_joins_both_texts():
    class Joins:
        start_ids, eos_id = [1], 2

        def encode_prompt(self, text):
            return [1, 5] if text.endswith("ab") else [1, 3]

    assert encode_pair("a", "b", Joins()) == ([1], [5])


def test_an_empty_continuation_is_refused(tokenizer):
    with pytest.raises(ValueError, match="continuation: found no text after 'one'"):
        encode_pair("one", "", tokenizer)


def test_log_likelihoods_are_sums_and_long_contexts_lose_their_start(tokenizer):
    model, seen = fake_model(tokenizer, lambda before, token: -float(token), max_seq_len=4)
    lines = []
    found = loglikelihoods(model, [([5, 6], [7, 8]), ([1, 2, 3, 4], [5, 6])], log=lines.append)
    assert [each.nats for each in found] == [-15.0, -11.0]
    assert seen == [[5, 6, 7, 8], [2, 3, 4, 5, 6]]
    assert lines == [
        "1 of 2 rows are longer than the context of 4 tokens of fake: the start of their contexts is left out"
    ]


def test_a_continuation_longer_than_the_model_is_refused(tokenizer):
    model, _ = fake_model(tokenizer, lambda before, token: 0.0, max_seq_len=4)
    with pytest.raises(ValueError, match="row 0: found a continuation of 5 tokens, expected at most 4"):
        loglikelihoods(model, [([1], [5] * 5)], log=print)

import numpy as np
import pytest

from shared_tokenizer.data.evaluation import Evaluation, evaluate_batches, text_batches


def test_totals_are_those_of_all_batches_and_of_the_text(tokenizer):
    texts = ["def add(a, b):\n" * 9, "return caf\u00e9\n" * 5]
    batches = text_batches(tokenizer, texts, 16, 3, 300)

    def two_nats_each(batch):
        return 2.0 * batch["loss_mask"].sum(), batch["loss_mask"].sum()

    found = evaluate_batches(two_nats_each, batches, tokenizer.token_bytes)
    ids = [token for text in texts for token in tokenizer.encode(text)]
    assert found.text_bytes == len("".join(texts).encode())
    assert found.tokens == len(ids) + 2  # an end each
    assert found.loss == pytest.approx(2.0)
    assert found.perplexity == pytest.approx(np.exp(2.0))


def test_bits_per_byte():
    assert Evaluation(nats=8 * np.log(2), tokens=3, text_bytes=4).bits_per_byte == pytest.approx(2.0)


def test_tokens_outside_the_model_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"tokenizer: found token \d+, expected 0\.\.2; it belongs to another model"):
        text_batches(tokenizer, ["def"], 16, 2, vocab_size=3)

import math

import jax
import numpy as np
import pytest

from jaxlm.evaluate import evaluate, evaluate_text, make_loss_function, unigram_evaluation
from jaxlm.model.language_model import LanguageModel, init_params
from shared_tokenizer.data.batches import evaluation_batches
from shared_tokenizer.data.examples import Windows
from shared_tokenizer.data.shards import TokenShards


@pytest.fixture
def params(tiny_config):
    return jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(0))


def test_a_model_with_uniform_logits_has_the_entropy_of_the_vocabulary(tiny_config, params, tokenizer):
    params["embed_tokens"]["weight"] = params["embed_tokens"]["weight"] * 0
    found = evaluate_text(LanguageModel(tiny_config), params, tokenizer, ["a short text, " * 30], 16, 4)
    assert found.loss == pytest.approx(math.log(300), abs=1e-5)
    assert found.perplexity == pytest.approx(300, rel=1e-4)


def test_bytes_are_those_of_the_text(tiny_config, params, tokenizer):
    text = "def add(first, second):\n    return first + second  # caf\u00e9\n" * 10
    found = evaluate_text(LanguageModel(tiny_config), params, tokenizer, [text], 16, 4)
    ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    assert found.tokens == len(ids) - 1
    assert found.text_bytes == len(text.encode())
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / found.text_bytes)


def test_the_batch_size_does_not_change_the_loss(tiny_config, params, tokenizer):
    model = LanguageModel(tiny_config)
    losses = [evaluate_text(model, params, tokenizer, ["some words here " * 40], 16, size).loss for size in (1, 3, 8)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)


def test_the_unigram_model_is_the_entropy_of_the_frequencies():
    tokens = np.tile(np.array([3, 3, 3, 4], np.uint16), 5000)
    windows = Windows(TokenShards.from_documents([tokens]), 16, "test")
    batches = evaluation_batches([windows], 8, 100)
    found = unigram_evaluation([TokenShards.from_documents([tokens])], 5, batches, np.array([0, 0, 0, 2, 1]))
    assert found.loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-3)


def test_a_stop_is_noticed_between_batches(tiny_config, params):
    windows = Windows(TokenShards.from_documents([np.ones(1000)]), 16, "test")
    batches = evaluation_batches([windows], 8, 100)

    class Stop(Exception):
        pass

    def check():
        raise Stop

    with pytest.raises(Stop):
        evaluate(make_loss_function(LanguageModel(tiny_config)), params, batches, np.ones(300), check)


def test_text_shorter_than_a_window_is_evaluated_and_none_is_refused(tiny_config, params, tokenizer):
    found = evaluate_text(LanguageModel(tiny_config), params, tokenizer, ["short"], 64, 4)
    assert found.text_bytes == 5
    with pytest.raises(ValueError, match="text: found 0 tokens, expected at least two"):
        evaluate_text(LanguageModel(tiny_config), params, tokenizer, [], 64, 4)

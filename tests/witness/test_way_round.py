"""A model that went the whole way round is the same model in transformers."""

import numpy as np
import pytest

import jaxlm.evaluate
import jaxlm.load
from tests.integration.way_round import SEQ_LEN, TEXT, evaluate_elsewhere, go_round
from tests.witness.transformers_models import load_in_transformers, transformers_logits


def test_bits_per_byte_are_the_same_in_transformers(tmp_path, tokenizer, caplog):
    last = go_round(tmp_path, tokenizer)
    expected = jaxlm.evaluate.evaluate_text(*jaxlm.load.load_model(last), [TEXT], SEQ_LEN, 8)
    model = load_in_transformers(last / "artifact", caplog)
    found = evaluate_elsewhere(lambda ids: transformers_logits(model, np.asarray(ids)), tokenizer)
    assert (found.tokens, found.text_bytes) == (expected.tokens, expected.text_bytes)
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-4)

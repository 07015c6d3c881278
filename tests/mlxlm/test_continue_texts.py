"""Texts in a batch of mlx-lm's generator, and each alone."""

import json
from pathlib import Path

import pytest

from jaxlm.common.generation.texts import Text
from jaxlm.common.sampling import Sampling
from mlxlm.continue_texts import continue_texts
from mlxlm.generate import generate, main
from mlxlm.generate_config import AdaptedGenerateConfig
from mlxlm.load import load_model
from tests.mlxlm.small_models import save_model

PROMPTS = [[1, 5], [1, 9, 33, 7, 8, 120], [4], [1] * 124, [17, 3, 250]]


@pytest.fixture
def place(tmp_path, tiny_config, tokenizer):
    return save_model(tmp_path / "model", tiny_config, tokenizer)


def continued(model, texts, sampling, ends=(), **settings):
    found, order = [[] for _ in texts], []

    def add(number, token):
        found[number].append(token)
        return token in ends

    for number in continue_texts(model, texts, sampling, add, **settings):
        order.append(number)
    assert sorted(order) == list(range(len(texts)))
    return found


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2}])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_text_is_the_one_it_is_alone(place, settings, batch_size):
    model, _ = load_model(place)
    texts = [Text(prompt, 5 + number, seed=40 + number) for number, prompt in enumerate(PROMPTS)]
    found = continued(model, texts, Sampling(**settings), batch_size=batch_size)
    for text, tokens in zip(texts, found, strict=True):
        alone = Sampling(**settings, max_tokens=text.max_tokens, seed=text.seed)
        assert tokens == list(generate(model, text.prompt, alone))
    assert [len(tokens) for tokens in found] == [5, 6, 7, 4, 9]  # the fourth fills the context of 128


def test_texts_end_where_they_are_told_to(place):
    model, _ = load_model(place)
    texts = [Text(prompt, 8) for prompt in PROMPTS]
    whole = continued(model, texts, Sampling(), batch_size=1)
    ends = {whole[0][2], whole[1][4]}
    for tokens, before in zip(continued(model, texts, Sampling(), ends, batch_size=2), whole, strict=True):
        cut = next((count for count, token in enumerate(before, 1) if token in ends), len(before))
        assert tokens == before[:cut]


def test_a_prompt_that_cannot_be_continued_is_refused_before_any_text(place):
    model, _ = load_model(place)
    with pytest.raises(ValueError, match="found 128 tokens, expected fewer"):
        next(continue_texts(model, [Text([1], 2), Text([1] * 128, 2)], Sampling(), lambda *_: False))


def test_the_command_writes_the_texts_that_the_seeds_give_alone(place, tmp_path, tokenizer, capsys):
    (tmp_path / "prompts.txt").write_text("def f\nx\n")
    output = tmp_path / "texts.jsonl"
    settings = {"model": str(place), "max_tokens": 6}
    many = {"prompts": str(tmp_path / "prompts.txt"), "output": str(output), "num_samples": 2}
    main(AdaptedGenerateConfig(**settings, **many))
    rows = [json.loads(line) for line in Path(output).read_text("utf-8").splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [("def f", 0), ("def f", 1), ("x", 0), ("x", 1)]
    for row in rows:
        capsys.readouterr()
        main(AdaptedGenerateConfig(**settings, prompt=row["prompt"], seed=row["seed"]))
        assert capsys.readouterr().out == f"{row['prompt']}{row['completion']}\n"

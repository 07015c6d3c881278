"""One answer out of several, with a model that needs no framework."""

import pytest

from jaxlm.common.generation.choice import choose_answer, sample_answers
from jaxlm.common.generation.completions import CompletingModel, seed_of
from jaxlm.common.sampling import GenerateConfig

ANSWERS = ["a", "bb", " c", "c", "bb", "c\n"]


@pytest.fixture
def model(tokenizer):
    """A model whose answers are those above, by their seeds."""
    numbers = {seed_of(0, 0, number): number for number in range(len(ANSWERS))}

    def continue_texts(texts, sampling, add):
        for number, text in enumerate(texts):
            for token in [*tokenizer.encode(ANSWERS[numbers[text.seed]]), tokenizer.eos_id]:
                if add(number, token):
                    break
            yield number

    return CompletingModel(tokenizer, tokenizer.vocab_size, 64, "weights", tokenizer.stop_ids, continue_texts)


@pytest.fixture
def verifier(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("def longest(prompt, answer, row):\n    assert row == {'prompt': prompt}\n    return len(answer)\n")
    return f"{path}:longest"


def config(**settings):
    return GenerateConfig(model="none", prompt="def", **settings)


def test_answers_have_seeds_of_their_own(model):
    assert sample_answers(config(), model, 6) == ANSWERS


def test_the_majority_is_chosen(model, capsys):
    assert choose_answer(config(majority=6), model) == " c"
    assert "majority: 3 of 6 answers" in capsys.readouterr().err


def test_the_best_by_a_verifier_of_ones_own_is_chosen(model, verifier, capsys):
    assert choose_answer(config(best_of=6, verifier=verifier), model) == "bb"
    assert "best of 6: reward 2, the mean is 1.67" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"best_of": 4}, "verifier: found none with best_of"),
        ({"verifier": "f.py:g"}, "best_of: found none with verifier"),
        ({"best_of": 4, "verifier": "f.py:g", "majority": 3}, "best_of, majority: found both"),
        ({"majority": 4, "temperature": 0.0}, "found temperature 0, where all answers are the same"),
        ({"majority": 1}, "majority: found 1, expected at least 2"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, reason):
    with pytest.raises(ValueError, match=reason):
        config(**settings)


def test_a_file_of_prompts_has_no_choice():
    with pytest.raises(ValueError, match="have no effect on a file of prompts"):
        GenerateConfig(model="none", prompts="p.jsonl", output="o.jsonl", majority=4)

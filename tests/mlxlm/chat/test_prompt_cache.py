import dataclasses

import pytest

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.sampling import Sampling
from mlxlm.chat.prompt_cache import PromptCache
from mlxlm.generate import generate
from mlxlm.load import load_model
from tests.conftest import VARIANTS

GREEDY = Sampling()


class Counted:
    """A model that counts the tokens it runs."""

    def __init__(self, model):
        self._model = model
        self.config, self.make_cache = model.config, model.make_cache
        self.tokens = 0

    def __call__(self, inputs, cache):
        self.tokens += inputs.size
        return self._model(inputs, cache)


@pytest.fixture(params=["dense", "mlgru", "hybrid"])
def model(request, tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, **VARIANTS[request.param] | {"num_layers": 3, "sub_norm": False})
    save_blank_artifact(tmp_path / "artifact", config, seed=1)
    return load_model(tmp_path / "artifact")[0]


def test_a_longer_prompt_costs_only_what_is_new(model):
    counted = Counted(model)
    cache = PromptCache(counted)
    prompt = [1, 17, 250, 3, 99, 12, 7]
    reply = list(cache.generate(prompt, GREEDY, 4))
    before = counted.tokens
    longer = [*prompt, *reply, 5, 6, 7]
    found = list(cache.generate(longer, GREEDY, 4))
    assert counted.tokens - before == 3 + 4
    assert found == list(generate(model, longer, Sampling(max_tokens=4)))


def test_another_prompt_is_answered_as_if_there_had_been_none(model):
    cache = PromptCache(model)
    list(cache.generate([1, 17, 250, 3, 99, 12, 7], GREEDY, 4))
    for other in ([1, 17, 250, 4, 4], [1, 17], [1, 17], [200]):
        assert list(cache.generate(other, GREEDY, 4)) == list(generate(model, other, Sampling(max_tokens=4)))


def test_a_repetition_penalty_does_not_depend_on_what_is_cached(model):
    texts = set()
    for penalty in (0.01, 1.0, 5.0):  # the first repeats, the last avoids
        cache, penalized = PromptCache(model), Sampling(repetition_penalty=penalty, max_tokens=8)
        prompt = [1, 17, 250, 3, 99, 12, 7]
        longer = [*prompt, *cache.generate(prompt, penalized, 6), 5, 6]
        found = list(cache.generate(longer, penalized, 8))
        assert found == list(generate(model, longer, penalized))
        texts.add(tuple(found))
    assert len(texts) > 1


def test_an_interruption_leaves_nothing_half_computed(model):
    class Interrupted(Counted):
        def __call__(self, inputs, cache):
            logits = super().__call__(inputs, cache)
            if self.tokens > 8:
                self.tokens = 0
                raise KeyboardInterrupt
            return logits

    cache = PromptCache(Interrupted(model))
    prompt = [1, 17, 250, 3, 99]
    with pytest.raises(KeyboardInterrupt):
        list(cache.generate(prompt, GREEDY, 20))
    assert list(cache.generate([*prompt, 8], GREEDY, 2)) == list(generate(model, [*prompt, 8], Sampling(max_tokens=2)))

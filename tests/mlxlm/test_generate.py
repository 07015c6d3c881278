"""Text of the command; tokens are compared with JAX's in tests/parity."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model as stock_load_model

from jaxlm.common.formats.mlx import write_mlx
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.sampling import LARGEST_TEMPERATURE, SMALLEST_TEMPERATURE, SMALLEST_TOP_P, Sampling
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.adapters.adapters import add_adapters
from mlxlm.generate import generate, main, sample_tokens
from mlxlm.generate_config import AdaptedGenerateConfig
from mlxlm.load import load_model
from mlxlm.model.model_file import model_file_source
from shared_tokenizer.manifest import sealed_directory
from tests.mlxlm.small_models import save_model

LENGTH = 24


@pytest.fixture
def latent(tmp_path, tiny_config, tokenizer):
    return save_model(tmp_path / "latent", tiny_config, tokenizer)


@pytest.fixture
def adapters(tmp_path, latent):
    model, _ = load_model(latent)
    config = add_adapters(model, AdapterConfig(rank=4, scale=2.0))
    keys = iter(mx.random.split(mx.random.key(0), 100))
    model.update(tree_map(lambda x: 0.3 * mx.random.normal(x.shape, key=next(keys)), model.trainable_parameters()))
    save_adapters(tmp_path / "adapters", model, config)
    return tmp_path / "adapters"


def stock_text(latent, adapters, tokenizer, prompt):
    """Return the text of `mlx_lm.generate --adapter-path` for the exported MLX directory."""
    opened, place = open_model(latent), latent.with_name("mlx")
    with sealed_directory(place) as directory:
        read = opened.tensors.__getitem__
        write_mlx(directory, opened.config, read, form="float", model_file=model_file_source())
    model = load_adapters(stock_load_model(place, trust_remote_code=True)[0], str(adapters))
    ids = []
    for token, _ in generate_step(mx.array(tokenizer.encode_prompt(prompt)), model, max_tokens=LENGTH):
        if token == tokenizer.eos_id:
            break
        ids.append(int(token))
    return prompt + tokenizer.decode(ids)


def test_text_with_an_adapter_is_that_of_stock_mlx_lm(latent, adapters, tokenizer, capsys):
    def said(**settings):
        main(
            AdaptedGenerateConfig(
                model=str(latent), prompt="def", max_tokens=LENGTH, temperature=0, top_p=1, **settings
            )
        )
        return capsys.readouterr().out.removesuffix("\n")

    adapted = said(adapter_path=str(adapters))
    assert adapted == stock_text(latent, adapters, tokenizer, "def")
    assert adapted != said()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": SMALLEST_TEMPERATURE},
        {"temperature": LARGEST_TEMPERATURE, "top_k": 1},
        {"temperature": 1.0, "top_p": SMALLEST_TOP_P},
    ],
)
def test_the_ends_of_the_ranges_still_choose_the_likeliest(latent, settings):
    model, _ = load_model(latent)
    greedy = list(generate(model, [1, 5], Sampling(max_tokens=4)))
    assert list(generate(model, [1, 5], Sampling(max_tokens=4, **settings))) == greedy


def test_a_repetition_penalty_sees_what_is_in_the_cache_too(latent):
    model, _ = load_model(latent)
    prompt = [1, *range(40, 52)]
    settings = Sampling(max_tokens=12, repetition_penalty=4.0)
    whole = list(sample_tokens(model, prompt, settings, 12))
    assert whole != list(sample_tokens(model, prompt, Sampling(max_tokens=12), 12))
    cache = model.make_cache()
    mx.eval(model(mx.array([prompt[:-1]]), cache=cache))
    assert list(sample_tokens(model, prompt[-1:], settings, 12, cache, earlier=prompt[:-1])) == whole


def test_a_text_stops_at_any_of_several_ids(latent):
    model, _ = load_model(latent)
    whole = list(generate(model, [1, 5], Sampling(max_tokens=10)))
    first = min(whole.index(whole[3]), whole.index(whole[6]))
    assert list(generate(model, [1, 5], Sampling(max_tokens=10), (whole[6], whole[3]))) == whole[:first]

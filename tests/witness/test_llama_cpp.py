"""llama.cpp runs the GGUF files written here: `make gguf-test` builds it. Skipped where it is not installed."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.rotary import RopeScaling
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.sampling import Sampling
from jaxlm.conversion.compare import LogitComparison, compare_logits
from jaxlm.conversion.convert import Conversion, convert
from jaxlm.generate import generate
from jaxlm.load import load_model
from tests.golden.golden_models import golden_weights

llama_cpp = pytest.importorskip("llama_cpp")

CONTEXT = 256
# Wide enough for ternary blocks.
LLAMA = ModelConfig(
    vocab_size=300,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_seq_len=CONTEXT,
    rope_theta=500.0,
    tie_word_embeddings=False,
    initializer_range=0.05,
)
TERNARY_LLAMA = dataclasses.replace(LLAMA, linear="ternary", tie_word_embeddings=True)
BITNET = dataclasses.replace(TERNARY_LLAMA, sub_norm=True)
# Scales that float16 cannot hold, kept in tensors of their own.
BITNET_IMPORTED = dataclasses.replace(BITNET, scale_dtype="float32")
RELU2 = dataclasses.replace(BITNET, activation="relu2")
DENSE_BITNET = dataclasses.replace(BITNET, linear="dense")
LINEAR = RopeScaling(type="linear", factor=2.0)
LLAMA3 = RopeScaling(type="llama3", factor=8.0, original_max_seq_len=64)
YARN = RopeScaling(type="yarn", factor=4.0, original_max_seq_len=64)
QWEN2 = dataclasses.replace(LLAMA, attention_bias=True)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True, head_dim=32, tie_word_embeddings=True)


@pytest.fixture
def write(tmp_path, tokenizer):
    """A function that writes a golden model as a GGUF."""

    def written(config: ModelConfig, **options) -> Path:
        (tmp_path / "tokenizer").mkdir()
        tokenizer.save(tmp_path / "tokenizer")
        read = golden_weights(config).__getitem__
        save_artifact(tmp_path / "latent", config, "latent", read, tokenizer_dir=tmp_path / "tokenizer")
        convert(tmp_path / "latent", tmp_path / "model.gguf", Conversion(form="gguf", **options))
        return tmp_path / "model.gguf"

    return written


def open_in_llama_cpp(path: Path):
    float32 = llama_cpp.GGML_TYPE_F32  # by default keys and values are rounded to float16
    options = {"n_ctx": CONTEXT, "n_threads": 1, "logits_all": True, "type_k": float32, "type_v": float32}
    return llama_cpp.Llama(str(path), verbose=False, **options)


def compare(path: Path, activation: str | None = None) -> LogitComparison:
    """Logits of jaxlm and of llama.cpp from the same file."""
    model, params, _ = load_model(path)
    if activation is not None:
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, activation=activation))
    ids = np.random.default_rng(1).integers(0, 300, 48)
    other = open_in_llama_cpp(path)
    other.eval(ids.tolist())
    logits = np.array(other.scores[: len(ids)])[None]
    other.close()
    return compare_logits(np.asarray(model.apply({"params": params}, ids[None])), logits)


@pytest.mark.parametrize(
    ("config", "options", "max_difference", "mean_difference"),
    [
        (LLAMA, {"float_dtype": "float32"}, 1e-4, 1e-5),
        # llama.cpp rounds what a matrix takes to the type of the matrix.
        (LLAMA, {"float_dtype": "float16"}, 2e-2, 2e-3),
        (LLAMA, {"float_dtype": "bfloat16"}, 1e-1, 1e-2),
        # Its 8 bits have a scale for every 256 numbers, ours one for a token.
        (TERNARY_LLAMA, {"ternary_type": "TQ1_0"}, 1e-1, 1e-2),
        (TERNARY_LLAMA, {"ternary_type": "TQ2_0"}, 1e-1, 1e-2),
        # With Q2_0 for every 32, so here it rounds otherwise than ours where TQ2_0's block is the whole token.
        (TERNARY_LLAMA, {"ternary_type": "Q2_0"}, 2e-1, 3e-2),
        (BITNET, {"ternary_type": "TQ1_0"}, 2e-1, 3e-2),
        (BITNET, {"ternary_type": "TQ2_0"}, 2e-1, 3e-2),
        (BITNET, {"ternary_type": "Q2_0"}, 2e-1, 3e-2),
        (BITNET_IMPORTED, {"ternary_type": "TQ2_0"}, 2e-1, 3e-2),
        (DENSE_BITNET, {"float_dtype": "float32"}, 1e-4, 1e-5),
    ],
    ids=[
        "F32",
        "F16",
        "BF16",
        "TQ1_0",
        "TQ2_0",
        "Q2_0",
        "bitnet-TQ1_0",
        "bitnet-TQ2_0",
        "bitnet-Q2_0",
        "bitnet-scales",
        "bitnet-F32",
    ],
)
def test_logits_are_ours(write, config, options, max_difference, mean_difference):
    found = compare(write(config, **options))
    print(found)
    assert found.max_difference < max_difference and found.mean_difference < mean_difference
    assert found.top1_agreement > 0.9


FAMILIES = {
    "llama-linear": dataclasses.replace(LLAMA, rope_scaling=LINEAR),
    "llama-llama3": dataclasses.replace(LLAMA, rope_scaling=LLAMA3),
    "llama-yarn": dataclasses.replace(LLAMA, rope_scaling=YARN),
    "qwen2": QWEN2,
    "qwen2-yarn": dataclasses.replace(QWEN2, rope_scaling=YARN),
    "qwen3": QWEN3,
    "qwen3-linear": dataclasses.replace(QWEN3, rope_scaling=LINEAR),
    "qwen3-yarn": dataclasses.replace(QWEN3, rope_scaling=YARN),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_other_families_are_ours(write, family):
    found = compare(write(FAMILIES[family], float_dtype="float32"))
    print(found)
    assert found.max_difference < 1e-4 and found.mean_difference < 1e-5


def test_a_ternary_qwen3_is_within_the_rounding_of_llama_cpp(write):
    found = compare(write(dataclasses.replace(QWEN3, linear="ternary", head_dim=64, rope_scaling=YARN)))
    print(found)
    # The norms of heads pass on a difference as the sub-norms of BitNet do.
    assert found.max_difference < 2e-1 and found.mean_difference < 3e-2


def test_relu2_is_computed_or_taken_for_silu_as_the_warning_says(write):
    path = write(RELU2)
    right, as_silu = compare(path), compare(path, "silu")
    assert min(right.mean_difference, as_silu.mean_difference) < 3e-2
    assert max(right.mean_difference, as_silu.mean_difference) > 1e-1


def test_a_ternary_model_says_the_same_greedy_text(write, tokenizer):
    path = write(TERNARY_LLAMA, ternary_type="TQ2_0")
    model, params, _ = load_model(path)
    prompt = tokenizer.encode_prompt("def add(a, b):")
    ours = list(generate(model, params, prompt, Sampling(max_tokens=16, temperature=0.0)))
    other = open_in_llama_cpp(path)
    theirs = itertools.islice(other.generate(prompt, temp=0.0, repeat_penalty=1.0), 16)
    assert ours == list(theirs)


def test_its_tokenizer_gives_our_ids(write, tokenizer):
    other = open_in_llama_cpp(write(LLAMA))
    for text in ("def add(a, b):\n    return a + b", "  two  spaces", "caf\u00e9 \U0001f600", "<s> </s>", "\tx\n\n"):
        assert other.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)

"""Models to GGUF and back: floats equal to the bit, equal codes and scales, and refusals of other architectures."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from gguf.constants import (
    MODEL_ARCH_NAMES,
    MODEL_TENSORS,
    TENSOR_NAMES,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)
from gguf.gguf_reader import GGUFReader
from gguf.quants import dequantize

from jaxlm.common.architecture.packing import unpack
from jaxlm.common.architecture.parameters import stored_tensors
from jaxlm.common.architecture.presets import preset
from jaxlm.common.architecture.rotary import RopeScaling
from jaxlm.common.gguf.file import GGUFFile
from jaxlm.common.gguf.reader import open_gguf
from jaxlm.common.gguf.rope import from_rope_factors, rope_factors
from jaxlm.common.gguf.writer import write_gguf
from tests.jaxlm.common.gguf.gguf_models import (
    BITNET,
    DENSE,
    TERNARY,
    assert_same,
    bfloat16_scale,
    float16_scale,
    float32_scale,
    open_and_log,
    random_tensors,
)

TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [f"<{n}>" for n in range(24)],
    "tokenizer.ggml.scores": [-float(n) for n in range(24)],
    "tokenizer.ggml.token_type": [1] * 24,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.bos_token_id": 7,
}

# Types that the gguf library reads too.
TYPES_OF_OLD_BUILDS: dict[str, Any] = {"float_type": "BF16", "ternary_type": "TQ2_0"}


@pytest.mark.parametrize("float_type", ["F32", "F16", "BF16"])
def test_a_dense_model_comes_back_to_the_bit(float_type, tmp_path):
    tensors = random_tensors(DENSE, "latent")
    path = tmp_path / "deep" / "model.gguf"
    assert write_gguf(path, DENSE, tensors.__getitem__, kind="latent", float_type=float_type) == []
    artifact, lines = open_and_log(path)
    assert (artifact.config, artifact.kind, artifact.float_dtype, lines) == (DENSE, "latent", "float32", [])
    assert_same(artifact, tensors)
    types = {name: tensor.type.name for name, tensor in GGUFFile(path).tensors.items()}
    assert types["blk.1.ffn_up.weight"] == types["token_embd.weight"] == types["output.weight"] == float_type
    assert types["blk.1.ffn_norm.weight"] == types["output_norm.weight"] == "F32"
    with pytest.raises(KeyError):
        artifact.tensors["model.layers.2.mlp.up_proj.weight"]


def test_float32_is_kept_to_the_bit(tmp_path):
    config = dataclasses.replace(DENSE, tie_word_embeddings=True)
    rng = np.random.default_rng(0)
    tensors = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in stored_tensors(config, "latent")}
    write_gguf(tmp_path / "model.gguf", config, tensors.__getitem__, kind="latent", float_type="F32")
    artifact = open_gguf(tmp_path / "model.gguf")
    assert artifact.config == config
    assert_same(artifact, tensors)


LINEAR = RopeScaling(type="linear", factor=2.5)
LLAMA3 = RopeScaling(type="llama3", factor=8.0, original_max_seq_len=2000)
YARN = RopeScaling(type="yarn", factor=4.0, original_max_seq_len=16)
# Names of the tensors of a block and the keys below the architecture's name that set a family apart.
FAMILIES = {
    "linear": ({"rope_scaling": LINEAR}, "llama", set(), {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}),
    "llama3": ({"rope_scaling": LLAMA3, "head_dim": 32}, "llama", set(), {}),
    "qwen2": (
        {"attention_bias": True, "tie_word_embeddings": True},
        "qwen2",
        {"blk.1.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_v.bias"},
        {},
    ),
    "qwen3": (
        {"qk_norm": True, "rope_scaling": YARN},
        "qwen3",
        {"blk.1.attn_q_norm.weight", "blk.1.attn_k_norm.weight"},
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_names_of_the_gguf_library_and_come_back(family, tmp_path):
    changes, architecture, own_tensors, own_keys = FAMILIES[family]
    config, plain = dataclasses.replace(DENSE, **changes), dataclasses.replace(DENSE, num_layers=2)
    tensors = random_tensors(config, "latent")
    path = tmp_path / "model.gguf"
    write_gguf(path, config, tensors.__getitem__, kind="latent", float_type="F32")
    artifact, lines = open_and_log(path)
    assert (artifact.config, lines) == (config, [])
    assert_same(artifact, tensors)
    file = GGUFFile(path)
    assert file.metadata["general.architecture"] == architecture
    found = {key.removeprefix(f"{architecture}."): value for key, value in file.metadata.items()}
    assert {key: found.get(key) for key in own_keys} == own_keys
    assert {key for key in found if key.startswith("rope.scaling")} == set(own_keys)
    in_block = {name for name in file.tensors if name.startswith("blk.1.")}
    write_gguf(tmp_path / "plain.gguf", plain, random_tensors(plain, "latent").__getitem__, kind="latent")
    assert in_block - set(GGUFFile(tmp_path / "plain.gguf").tensors) == own_tensors
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = {TENSOR_NAMES[tensor].format(bid=1) for tensor in MODEL_TENSORS[arch]}
    assert {name.rpartition(".")[0] for name in in_block} <= known
    for key in own_keys:
        assert f"{{arch}}.{key}" in vars(Keys.Rope).values()
    # The rows of q and k are in pairs in llama alone.
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(file.read("blk.0.attn_q.weight"), tensors[name]) == (architecture != "llama")


def test_the_factors_of_llama3_are_those_of_its_wavelengths(tmp_path):
    config = dataclasses.replace(DENSE, head_dim=32, rope_scaling=LLAMA3)
    write_gguf(tmp_path / "model.gguf", config, random_tensors(config, "latent").__getitem__, kind="latent")
    factors = GGUFFile(tmp_path / "model.gguf").read("rope_freqs.weight")
    wavelengths = 2 * np.pi * 5e5 ** (np.arange(16) / 16)
    smooth = (2000 / wavelengths - 1) / 3
    expected = np.select([wavelengths < 500, wavelengths > 2000], [1, 8], 1 / ((1 - smooth) / 8 + smooth))
    assert 1 < (expected == 1).sum() < 16 and ((expected > 1) & (expected < 8)).any()
    np.testing.assert_allclose(factors, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.2-3b"])
@pytest.mark.parametrize("units", [1, 2])
def test_released_factors_are_told_from_the_tensor(name, units):
    config = preset(name)
    scaling = config.rope_scaling
    assert scaling is not None
    # The same function in other units, as a file of another program may have been made with.
    same = RopeScaling(
        type="llama3",
        factor=scaling.factor,
        original_max_seq_len=8192 * units,
        low_freq_factor=units,
        high_freq_factor=4 * units,
    )
    factors = rope_factors(dataclasses.replace(config, rope_scaling=same))
    assert factors is not None
    assert from_rope_factors(factors, config.head_dim, config.rope_theta) == scaling


@pytest.mark.parametrize(
    "config",
    [
        TERNARY,
        BITNET,
        dataclasses.replace(TERNARY, tie_word_embeddings=False, attention_bias=True),
        dataclasses.replace(TERNARY, qk_norm=True, rope_scaling=YARN),
    ],
)
@pytest.mark.parametrize("ternary_type", ["Q2_0", "TQ1_0", "TQ2_0"])
def test_codes_and_scales_come_back_equal(config, ternary_type, tmp_path):
    for scale_dtype, scale_of in (("bfloat16", bfloat16_scale), ("float32", float16_scale)):
        tensors = random_tensors(config, "packed", scale_of)
        path = tmp_path / f"{scale_dtype}.gguf"
        assert write_gguf(path, config, tensors.__getitem__, kind="packed", ternary_type=ternary_type) == []
        artifact, _ = open_and_log(path)
        assert artifact.config == dataclasses.replace(config, scale_dtype=scale_dtype)
        assert artifact.kind == "packed"
        assert_same(artifact, tensors)


def test_float32_scales_are_kept_in_bitnet_and_rounded_in_llama_with_a_warning(tmp_path):
    for config in (TERNARY, BITNET):
        config = dataclasses.replace(config, scale_dtype="float32")
        tensors = random_tensors(config, "packed", float32_scale)
        path = tmp_path / f"{config.sub_norm}.gguf"
        warnings = write_gguf(path, config, tensors.__getitem__, kind="packed")
        artifact, _ = open_and_log(path)
        if config.sub_norm:
            assert warnings == []
            assert_same(artifact, tensors)
            continue
        assert len(warnings) == 1 and re.match(r"7 scales .* were rounded, by at most [1-4]\.\de-04", warnings[0])
        rounded = {n: np.float16(t).astype(np.float32) if n.endswith("_scale") else t for n, t in tensors.items()}
        assert_same(artifact, rounded)


def test_the_file_has_the_keys_of_llama_cpp(tmp_path):
    config = dataclasses.replace(BITNET, activation="relu2")
    tensors = random_tensors(config, "packed")
    path = tmp_path / "model.gguf"
    (warning,) = write_gguf(path, config, tensors.__getitem__, kind="packed", metadata=TOKENIZER, **TYPES_OF_OLD_BUILDS)
    assert "compute SiLU" in warning
    reader = GGUFReader(path)
    found = {name: (field.contents(), field.types) for name, field in reader.fields.items()}
    # The reader counts the header's numbers as keys.
    assert {name: value for name, (value, _) in found.items() if not name.startswith("GGUF.")} == {
        "general.architecture": "bitnet",
        "general.type": "model",
        "general.file_type": 37,
        "general.quantization_version": 2,
        "bitnet.vocab_size": 24,
        "bitnet.context_length": 2048,
        "bitnet.embedding_length": 256,
        "bitnet.block_count": 1,
        "bitnet.feed_forward_length": 512,
        "bitnet.attention.head_count": 4,
        "bitnet.attention.head_count_kv": 2,
        "bitnet.attention.key_length": 64,
        "bitnet.attention.value_length": 64,
        "bitnet.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "bitnet.rope.freq_base": 10000.0,
        "bitnet.rope.dimension_count": 64,
        "bitnet.hidden_activation": "relu2",
        "tokenizer.ggml.padding_token_id": 3,
        **TOKENIZER,
    }
    array, integer = GGUFValueType.ARRAY, GGUFValueType.INT32
    assert found["bitnet.block_count"][1] == found["tokenizer.ggml.bos_token_id"][1] == [GGUFValueType.UINT32]
    assert found["tokenizer.ggml.token_type"][1][:2] == [array, integer]
    assert found["tokenizer.ggml.scores"][1][:2] == [array, GGUFValueType.FLOAT32]
    down = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight")
    name = "model.layers.0.mlp.down_proj.weight"
    expected = unpack(tensors[name], 256) * tensors["model.layers.0.mlp.down_proj.weight_scale"]
    np.testing.assert_array_equal(dequantize(down.data, GGMLQuantizationType.TQ2_0), expected)
    # The ids of the tokenizer replace those of the config.
    assert open_gguf(path).config == dataclasses.replace(config, bos_id=7)


def test_rows_of_q_and_k_are_in_pairs_in_llama_alone(tmp_path):
    name = "model.layers.0.self_attn.k_proj.weight"
    for config, rows in ((TERNARY, [*range(0, 64, 2), *range(1, 64, 2)]), (BITNET, list(range(64)))):
        path = tmp_path / f"{config.sub_norm}.gguf"
        tensors = random_tensors(config, "packed")
        write_gguf(path, config, tensors.__getitem__, kind="packed")
        head = GGUFFile(path).read("blk.0.attn_k.weight")[64:]
        ours = unpack(tensors[name], 128)[64:] * tensors[f"{name}_scale"]
        np.testing.assert_array_equal(head[rows], ours)


CANNOT_WRITE = {
    "mlgru": (preset("mmfree-tiny"), "token_mixer: found .* which llama.cpp's architecture llama does not compute"),
    "linear_norm": (dataclasses.replace(TERNARY, linear_norm=True), "linear_norm: found True"),
    "fused_gate": (dataclasses.replace(DENSE, fused_gate=True), "fused_gate: found True"),
    "embedding": (dataclasses.replace(DENSE, embedding="int8"), "embedding: found 'int8'"),
    "gelu": (dataclasses.replace(DENSE, activation="gelu"), "activation: found 'gelu'"),
    "rational": (dataclasses.replace(DENSE, activation="rational"), "activation: found 'rational'"),
    "logit_softcap": (dataclasses.replace(DENSE, logit_softcap=30.0), "logit_softcap: found 30.0"),
    "relu2": (dataclasses.replace(TERNARY, activation="relu2"), "activation: found 'relu2'"),
    "untied": (dataclasses.replace(BITNET, tie_word_embeddings=False), "tie_word_embeddings: found False"),
    "norm_and_bias": (dataclasses.replace(DENSE, qk_norm=True, attention_bias=True), "qk_norm: found True"),
    "multipliers": (dataclasses.replace(DENSE, residual_multiplier=0.5), "residual_multiplier: found 0.5"),
    "longrope": (
        dataclasses.replace(
            DENSE, rope_scaling=RopeScaling(type="longrope", original_max_seq_len=64, factors=(1.0, 2.0, 3.0))
        ),
        "rope_scaling: found RopeScaling",
    ),
    "norms": (dataclasses.replace(BITNET, qk_norm=True), "sub_norm: found True"),
    "llama3_in_qwen3": (
        dataclasses.replace(DENSE, qk_norm=True, rope_scaling=LLAMA3),
        "rope_scaling: found RopeScaling.* which llama.cpp's architecture qwen3 does not compute",
    ),
    "bounds": (
        dataclasses.replace(DENSE, rope_scaling=dataclasses.replace(YARN, beta_fast=16.0)),
        "rope_scaling: found RopeScaling",
    ),
    "wide_heads": (dataclasses.replace(BITNET, head_dim=128), "head_dim: found 128"),
    "latent": (TERNARY, "kind: found 'latent', expected 'packed'"),
    "blocks": (
        preset("bitnet-1.3b"),
        "down_proj.weight: found 5460 inputs, .* 64, .* Q2_0; .* fits is bitnet-700m",
    ),
    "small": (
        dataclasses.replace(TERNARY, hidden_size=80, head_dim=16),
        "q_proj.weight: found 80 inputs, expected a multiple of 64, .* fits is ternary-tiny",
    ),
}


@pytest.mark.parametrize("what", CANNOT_WRITE)
def test_a_model_that_llama_cpp_cannot_compute_is_refused(what, tmp_path):
    config, message = CANNOT_WRITE[what]
    kind = "latent" if what == "latent" else "packed"
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "model.gguf", config, lambda name: pytest.fail(name), kind=kind)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "model.gguf"
    name = "model.norm.weight"
    scale = "model.layers.0.self_attn.q_proj.weight_scale"
    for config, kind, change, message in (
        (DENSE, "latent", {name: np.full(16, np.nan, np.float32)}, f"{name}: found a number that is not finite"),
        (DENSE, "latent", {name: np.zeros(8, np.float32)}, rf"{name}: found float32 \[8\], expected float32 \[16\]"),
        (DENSE, "latent", {"lm_head.weight": np.full((24, 16), 1e5, np.float32)}, "found 1e\\+05, beyond float16"),
        (TERNARY, "packed", {scale: np.array([1e-9], np.float32)}, f"{scale}: found 1e-09.*expected a positive number"),
        (
            TERNARY,
            "packed",
            {scale: np.array([1e9], np.float32)},
            f"{scale}: found 1e\\+09.*expected a positive number",
        ),
    ):
        tensors = random_tensors(config, kind) | change
        with pytest.raises(ValueError, match=message):
            write_gguf(path, config, tensors.__getitem__, kind=kind)
        assert not list(tmp_path.iterdir())
    tensors = random_tensors(DENSE, "latent")
    for metadata, message in (
        ({"tokenizer.ggml.tokens": ["a"]}, "found 1 tokens, expected 24"),
        ({"tokenizer.ggml.merges": []}, "metadata tokenizer.ggml.merges: found nothing"),
        ({"tokenizer.ggml.scores": [1, 0.5]}, "metadata tokenizer.ggml.scores: found float, int"),
        ({"llama.block_count": 3}, "metadata llama.block_count: expected keys of the tokenizer only"),
    ):
        with pytest.raises(ValueError, match=message):
            write_gguf(path, DENSE, tensors.__getitem__, kind="latent", metadata=metadata)
        assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        write_gguf(path, DENSE, tensors.__getitem__, kind="latent")
    assert path.read_text() == "mine"

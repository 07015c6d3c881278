"""Directories in the forms of released ternary models, written here without our writers: read, run and given back.

Ternary-Bonsai: a Qwen3 whose every matrix is ternary, scales per 128 inputs, as floats, as MLX's 2 bits and as a GGUF.
TriLM: a Llama of ternary floats with scales per block of rows. Falcon-E: latents and packed codes with inverted scales.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm.utils
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from jaxlm.commands.other_programs import other_program
from jaxlm.common.architecture.packing import unpack
from jaxlm.common.architecture.parameters import parameters, scale_name
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.as_ternary import TernaryReading
from jaxlm.common.formats.open_model import open_model
from jaxlm.conversion.convert import Conversion, convert
from jaxlm.conversion.inspection import inspect_model
from jaxlm.load import load_model
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.adapters.adapters import add_adapters
from mlxlm.load import load_model as load_in_mlx
from mlxlm.merge import merge
from mlxlm.merge_config import MergeConfig
from tests.golden.golden_models import DENSE_MAX, golden_token_ids, parity_error
from tests.witness.test_hub import quantize_from_now_on, save_random, ternarize_in_place
from tests.witness.transformers_models import load_in_transformers, transformers_logits

GROUP = 128
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
BONSAI = transformers.Qwen3Config(**SIZES, head_dim=64, tie_word_embeddings=True, rope_parameters=YARN)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}

Arrays = dict[str, np.ndarray]


def make_ternary(directory: Path, blocks: int | None, names: tuple[str, ...]) -> tuple[Arrays, Arrays, Arrays]:
    """Make matrices of a directory ternary floats in float16, and return codes, scales [rows or blocks, groups], rest.

    Scales are of `blocks` of rows, or where that is None of groups of columns.
    """
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    rng, codes, scales = np.random.default_rng(0), {}, {}
    for name, tensor in tensors.items():
        if not any(part in name for part in names):
            tensors[name] = tensor.half()
            continue
        rows, columns = tensor.shape
        codes[name] = rng.choice(np.array([-1, 0, 1], np.int8), (rows, columns), p=[0.3, 0.4, 0.3])
        grid = (rows, columns // GROUP) if blocks is None else (blocks, 1)
        scales[name] = (rng.uniform(0.5, 1.5, grid) * (0.25 if "embed" in name else 0.07)).astype(np.float16)
        spread = scales[name].repeat(rows // grid[0], 0).repeat(columns // grid[1], 1)
        tensors[name] = torch.from_numpy(codes[name] * spread)
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    content = json.loads((directory / "config.json").read_text()) | {"dtype": "float16"}
    (directory / "config.json").write_text(json.dumps(content))
    return codes, scales, {name: tensor.numpy() for name, tensor in tensors.items() if name not in codes}


def words_of_mlx(codes: np.ndarray) -> np.ndarray:
    """Return codes as uint32 words, 16 columns a word with the first one lowest."""
    levels = (codes.astype(np.int64) + 1).reshape(len(codes), -1, 16)
    return (levels << (2 * np.arange(16))).sum(-1).astype(np.uint32)


def write_mlx(directory: Path, content: dict[str, Any], codes: Arrays, scales: Arrays, rest: Arrays) -> None:
    directory.mkdir()
    found = dict(rest)
    for name, matrix in codes.items():
        path = name.removesuffix(".weight")
        found |= {name: words_of_mlx(matrix), f"{path}.scales": scales[name], f"{path}.biases": -scales[name]}
    safetensors.numpy.save_file(found, directory / "model.safetensors", {"format": "mlx"})
    quantization = {"group_size": GROUP, "bits": 2, "mode": "affine"}
    content = content | {"quantization": quantization, "quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(content))


def blocks_of_q2_0(codes: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """Return codes as bytes of Q2_0: a float16, then four codes a byte with the first one lowest."""
    levels = (codes.astype(np.int64) + 1).reshape(len(codes), -1, block // 4, 4)
    packed = (levels << (2 * np.arange(4))).sum(-1).astype(np.uint8)
    heads = scales.repeat(GROUP // block, axis=1)[..., None].copy().view(np.uint8)
    return np.concatenate((heads, packed), axis=-1).reshape(len(codes), -1)


def write_gguf(path: Path, codes: Arrays, scales: Arrays, rest: Arrays, block: int) -> None:
    writer = gguf.GGUFWriter(path, "qwen3")
    for add, value in {
        writer.add_block_count: 2,
        writer.add_context_length: 128,
        writer.add_embedding_length: 256,
        writer.add_feed_forward_length: 384,
        writer.add_head_count: 4,
        writer.add_head_count_kv: 2,
        writer.add_key_length: 64,
        writer.add_value_length: 64,
        writer.add_layer_norm_rms_eps: BONSAI.rms_norm_eps,
        writer.add_rope_freq_base: 1e6,
        writer.add_rope_scaling_type: gguf.RopeScalingType.YARN,
        writer.add_rope_scaling_factor: 4.0,
        writer.add_rope_scaling_orig_ctx_len: 32,
    }.items():
        add(value)
    data = []
    for name, array in {**rest, **codes}.items():
        parts = name.removesuffix(".weight").split(".", 3)
        outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
        theirs = outside.get(name.removesuffix(".weight")) or f"blk.{parts[2]}.{NAMES[parts[3]]}"
        is_ternary = name in codes
        data.append(blocks_of_q2_0(array, scales[name], block) if is_ternary else array.astype(np.float32))
        number: Any = 42 if is_ternary else gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(f"{theirs}.weight", array.shape, np.dtype(np.float32), data[-1].nbytes, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in data:
        writer.write_tensor_data(array)
    writer.close()


@pytest.fixture(scope="module")
def bonsai(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays, Arrays]:
    """A folder with the same model as `floats`, `mlx`, `64.gguf` and `128.gguf`, its codes and its scales."""
    folder = tmp_path_factory.mktemp("bonsai")
    save_random(folder / "floats", BONSAI)
    codes, scales, rest = make_ternary(folder / "floats", None, ("_proj", "embed_tokens"))
    write_mlx(folder / "mlx", json.loads((folder / "floats" / "config.json").read_text()), codes, scales, rest)
    for block in (64, 128):
        write_gguf(folder / f"{block}.gguf", codes, scales, rest, block)
    return folder, codes, scales


def opened(path: Path) -> Artifact:
    reading = TernaryReading() if (path / "generation_config.json").is_file() and path.name == "floats" else None
    return open_model(path, reading=reading, log=lambda line: None)


def assert_codes(artifact: Artifact, codes: Arrays, scales: Arrays) -> None:
    ternary = [parameter for parameter in parameters(artifact.config) if parameter.storage == "ternary"]
    assert {parameter.name for parameter in ternary} == set(codes)
    for parameter in ternary:
        found = unpack(artifact.tensors[parameter.name], parameter.shape[0])
        np.testing.assert_array_equal(found, codes[parameter.name])
        expected = scales[parameter.name].astype(np.float32)
        np.testing.assert_array_equal(artifact.tensors[scale_name(parameter.name)], expected)


@pytest.mark.parametrize("form", ["floats", "mlx", "64.gguf", "128.gguf"])
def test_a_bonsai_has_the_same_codes_and_scales_in_every_form(bonsai: tuple[Path, Arrays, Arrays], form: str):
    folder, codes, scales = bonsai
    artifact = opened(folder / form)
    config = artifact.config
    assert (config.scale_per, config.scale_dtype, config.activation_bits) == ("group:128", "float16", None)
    assert (config.qk_norm, config.embedding, config.tie_word_embeddings) == (True, "ternary", True)
    assert config.rope_scaling is not None and config.rope_scaling.type == "yarn"
    assert_codes(artifact, codes, scales)
    inspection = inspect_model(folder / form)
    assert inspection.config == config and inspection.is_hidden == (form == "floats")


def test_a_bonsai_computes_what_transformers_and_mlx_lm_compute(
    bonsai: tuple[Path, Arrays, Arrays], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder, _, _ = bonsai
    model, params, _ = load_model(folder / "mlx")
    token_ids = golden_token_ids(model.config, 2, 96)
    ours = np.asarray(model.apply({"params": params}, token_ids))
    theirs = load_in_transformers(folder / "floats", caplog)
    error = parity_error(ours, transformers_logits(theirs, token_ids), is_ternary=False)
    assert error is None, error
    in_mlx, _ = load_in_mlx(folder / "mlx")
    error = parity_error(np.array(in_mlx(mx.array(token_ids))), ours, is_ternary=False)
    assert error is None, error
    # mlx-lm computes in float16, the precision of the files; in float32 the logits are ours.
    stock, _ = mlx_lm.utils.load_model(folder / "mlx")
    rounded = np.array(stock(mx.array(token_ids[:, :16])).astype(mx.float32))
    assert np.abs(rounded - ours[:, :16]).max() < 2.0**-7 * np.abs(ours).max()
    stock.set_dtype(mx.float32)
    np.testing.assert_allclose(np.array(stock(mx.array(token_ids))), ours, atol=DENSE_MAX)


@pytest.mark.parametrize("source", ["floats", "mlx", "128.gguf"])
@pytest.mark.parametrize("form", ["dequantized", "mlx", "gguf"])
def test_a_bonsai_is_given_back_in_its_own_forms(
    bonsai: tuple[Path, Arrays, Arrays],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    source: str,
    form: Any,
):
    folder, codes, scales = bonsai
    written = tmp_path / ("floats" if form == "dequantized" else "model.gguf" if form == "gguf" else "mlx")
    reading = TernaryReading() if source == "floats" else None
    report = convert(
        folder / source,
        written,
        Conversion(form=form, float_dtype="float16"),
        other_program(form),
        reading=reading,
    )
    assert report.weights.codes_differing == report.weights.scales_differing == 0
    assert report.warnings == []
    assert_codes(opened(written), codes, scales)
    token_ids = golden_token_ids(opened(written).config, 2, 96)
    if form == "dequantized":
        assert report.logits_by == "transformers" and report.logits.max_difference < DENSE_MAX
        theirs = transformers_logits(load_in_transformers(written, caplog), token_ids)
        expected = transformers_logits(load_in_transformers(folder / "floats", caplog), token_ids)
        np.testing.assert_array_equal(theirs, expected)
    elif form == "mlx":
        assert report.logits_by == "mlx-lm" and report.logits.max_difference < DENSE_MAX
        assert not (written / "model.py").exists()
        mine, _ = mlx_lm.utils.load_model(written)  # without trust_remote_code
        theirs, _ = mlx_lm.utils.load_model(folder / "mlx")
        few = mx.array(token_ids[:1, :8])  # float16 takes long on a CPU
        logits = [np.array(each(few).astype(mx.float32)) for each in (mine, theirs)]
        np.testing.assert_array_equal(*logits)


def test_a_bonsai_is_fine_tuned_merged_and_given_back(bonsai: tuple[Path, Arrays, Arrays], tmp_path: Path):
    folder, codes, scales = bonsai
    model, _ = load_in_mlx(folder / "mlx")
    adapters = add_adapters(model, AdapterConfig(rank=8, scale=4.0, keys=("q_proj", "v_proj", "down_proj")))
    token_ids = mx.array(golden_token_ids(model.config, 1, 33))
    optimizer = optim.Adam(learning_rate=1e-3)

    def loss_of(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(token_ids[:, :-1]), token_ids[:, 1:], reduction="mean")

    step = nn.value_and_grad(model, loss_of)
    losses = []
    for _ in range(50):
        loss, gradients = step(model)
        optimizer.update(model, gradients)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    save_adapters(tmp_path / "adapters", model, adapters)
    paths = {"model": folder / "mlx", "adapter_path": tmp_path / "adapters", "output_dir": tmp_path / "merged"}
    report = merge(MergeConfig(**{name: str(path) for name, path in paths.items()}, from_packed=True))
    flips = {f"model.{layer.name}": layer.codes_flipped for layer in report.layers}
    assert len(flips) == 6 and all(flips.values())

    merged = open_model(tmp_path / "merged")
    new_codes = {name: unpack(merged.tensors[name], len(matrix)) for name, matrix in codes.items()}
    differing = {name: np.count_nonzero(new_codes[name] != matrix) for name, matrix in codes.items()}
    assert {name: count for name, count in differing.items() if count} == flips
    assert_codes(merged, new_codes, scales)
    for form, name in (("mlx", "mlx"), ("gguf", "model.gguf"), ("dequantized", "floats")):
        convert(tmp_path / "merged", tmp_path / "back" / name, Conversion(form=form, float_dtype="float16"))
        assert_codes(opened(tmp_path / "back" / name), new_codes, scales)
    ours, _ = load_in_mlx(tmp_path / "merged")
    stock, _ = mlx_lm.utils.load_model(tmp_path / "back" / "mlx")
    stock.set_dtype(mx.float32)
    np.testing.assert_allclose(np.array(stock(token_ids)), np.array(ours(token_ids)), atol=DENSE_MAX)
    assert loss_of(stock).item() < losses[0] / 2  # most of what was learnt is in the codes that flipped


def test_a_trilm_has_scales_of_blocks_of_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 4}, tie_word_embeddings=False)
    save_random(tmp_path / "floats", config)
    codes, scales, _ = make_ternary(tmp_path / "floats", 2, ("_proj",))
    artifact = opened(tmp_path / "floats")
    assert (artifact.config.scale_per, artifact.config.activation_bits) == ("row_blocks:2", None)
    assert_codes(artifact, codes, scales)
    theirs = load_in_transformers(tmp_path / "floats", caplog)
    token_ids = golden_token_ids(artifact.config, 2, 96)
    convert(tmp_path / "floats", tmp_path / "packed", Conversion(form="packed"), reading=TernaryReading())
    model, params, _ = load_model(tmp_path / "packed")
    ours = np.asarray(model.apply({"params": params}, token_ids))
    error = parity_error(ours, transformers_logits(theirs, token_ids), is_ternary=False)
    assert error is None, error
    for form, name in (("mlx", "mlx"), ("gguf", "model.gguf"), ("dequantized", "floats")):
        conversion = Conversion(form=form, float_dtype="float16")
        convert(tmp_path / "packed", tmp_path / "back" / name, conversion)
        assert_codes(opened(tmp_path / "back" / name), codes, scales)
    stock, _ = mlx_lm.utils.load_model(tmp_path / "back" / "mlx")
    stock.set_dtype(mx.float32)
    np.testing.assert_allclose(np.array(stock(mx.array(token_ids))), ours, atol=DENSE_MAX)


def test_a_falcon_e_is_the_same_as_latents_and_packed_with_inverted_scales(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=False)
    for name in ("prequantized", "main"):
        save_random(tmp_path / name, config)
    ternarize_in_place(tmp_path / "main", inverted=True, packed=True)
    quantize_from_now_on(tmp_path / "main", modules_to_not_convert=["model.embed_tokens", "lm_head", "model.norm"])
    packed = open_model(tmp_path / "main")
    assert (packed.kind, packed.config.activation_bits) == ("packed", 8)
    theirs = load_in_transformers(tmp_path / "main", caplog)
    token_ids = golden_token_ids(packed.config, 4, 16)
    expected = transformers_logits(theirs, token_ids)
    reading = TernaryReading("tensor", 8)
    latent = open_model(tmp_path / "prequantized", reading=reading, log=lambda line: None)
    assert (latent.kind, latent.config) == ("latent", packed.config)
    convert(tmp_path / "prequantized", tmp_path / "latent", Conversion(form="latent"), reading=reading)
    convert(tmp_path / "prequantized", tmp_path / "packed", Conversion(form="packed"), reading=reading)
    for directory in (tmp_path / "main", tmp_path / "latent", tmp_path / "packed"):
        model, params, _ = load_model(directory)
        error = parity_error(np.asarray(model.apply({"params": params}, token_ids)), expected, is_ternary=True)
        assert error is None, (directory, error)
    differing = 0
    for parameter in parameters(packed.config):
        if parameter.storage == "ternary":
            pair = (each.tensors[parameter.name] for each in (packed, open_model(tmp_path / "packed")))
            differing += int(np.count_nonzero(np.subtract(*(unpack(each, parameter.shape[0]) for each in pair))))
    assert differing <= 2  # a weight next to half a scale, whose mean torch sums in another order

"""GGUF files of other programs as our models: ternary codes stay exact, other architectures are refused."""

import numpy as np
import pytest
from gguf.constants import GGUFValueType
from gguf.gguf_writer import GGUFWriter

from jaxlm.common.architecture.packing import unpack
from jaxlm.common.gguf.file import GGUFFile
from jaxlm.common.gguf.reader import open_gguf
from jaxlm.common.gguf.types import F32, TQ2_0, dequantize_blocks, quantize_floats
from jaxlm.common.gguf.writer import write_gguf
from tests.jaxlm.common.gguf.gguf_models import BITNET, DENSE, TERNARY, open_and_log, random_tensors


def rewrite(source, destination, *, pairs=None, tensors=None, without=()):
    """Write a copy of a GGUF with keys and tensors (float32, or bytes and their type) added, replaced or left out."""
    file = GGUFFile(source)
    metadata = {key: value for key, value in file.metadata.items() if key not in without} | (pairs or {})
    writer = GGUFWriter(destination, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
        writer.add_key_value(key, value, GGUFValueType[kinds[type(value)]])
    kept = {name: (file.blocks(name), tensor.type) for name, tensor in file.tensors.items()}
    found = {name: each for name, each in (kept | (tensors or {})).items() if name not in without}
    encoded = {name: quantize_floats(d, kind) if d.dtype == np.float32 else d for name, (d, kind) in found.items()}
    encoded = {name: np.ascontiguousarray(data).view(np.uint8) for name, data in encoded.items()}
    for name, data in encoded.items():
        kind = found[name][1]
        shape = (*data.shape[:-1], data.shape[-1] // kind.block_bytes * kind.block)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), data.nbytes, kind.number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in encoded.values():
        writer.write_tensor_data(data)
    writer.close()
    return destination


def test_a_bitnet_without_the_key_has_silu(tmp_path):
    tensors = random_tensors(BITNET, "packed")
    write_gguf(tmp_path / "model.gguf", BITNET, tensors.__getitem__, kind="packed")
    assert "bitnet.hidden_activation" not in GGUFFile(tmp_path / "model.gguf").metadata
    artifact, lines = open_and_log(tmp_path / "model.gguf")
    assert (artifact.config.activation, lines) == ("silu", [])  # the writer names it in a key of our own
    elsewhere = rewrite(tmp_path / "model.gguf", tmp_path / "elsewhere.gguf", without=["jaxlm.activation"])
    artifact, lines = open_and_log(elsewhere)
    assert artifact.config.activation == "silu"
    assert len(lines) == 1 and "bitnet.hidden_activation is missing: read as SiLU" in lines[0]


CANNOT_READ = {
    "architecture": (
        {"pairs": {"general.architecture": "gemma3"}},
        "found 'gemma3', expected 'llama' or 'qwen2' or 'qwen3' or 'bitnet'",
    ),
    "split": ({"pairs": {"split.count": 2}}, "llama-gguf-split --merge"),
    "missing_key": ({"without": ["llama.block_count"]}, "llama.block_count: found None, expected a number"),
    "list": ({"pairs": {"llama.feed_forward_length": [24, 24]}}, r"llama.feed_forward_length: found \[24, 24\]"),
    "many_layers": ({"pairs": {"llama.block_count": 2**31}}, "found 21 tensors, too few for block_count 2,147,483,648"),
    "rope_scaling": ({"pairs": {"llama.rope.scaling.factor": 0.5}}, "factor: found 0.5, expected a number of at least"),
    "rope_type": ({"pairs": {"llama.rope.scaling.type": "longrope"}}, "type: found 'longrope', expected 'none', 'lin"),
    "yarn": (
        {"pairs": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 2.0}},
        "attn_factor: found 2.0, expected 1.0",
    ),
    "window": ({"pairs": {"llama.attention.sliding_window": 4096}}, "sliding_window: found 4096, expected 0"),
    "experts": ({"pairs": {"llama.expert_count": 8}}, "expert_count: found 8, expected 0"),
    "unknown_key": ({"pairs": {"llama.logit_scale": 0.5}}, "llama.logit_scale: found 0.5, expected no such key"),
    "part_of_a_head": ({"pairs": {"llama.rope.dimension_count": 4}}, "dimension_count: found 4, expected 6"),
    "vocabulary": ({"pairs": {"llama.vocab_size": 25}}, "vocab_size: found 25, expected 24"),
    "tokens": ({"pairs": {"tokenizer.ggml.tokens": ["a"] * 25}}, "found 25 tokens, expected 24"),
    "no_tokens": ({"pairs": {"tokenizer.ggml.tokens": 24}}, "found 24, expected 24, one per row"),
    "not_finite": ({"pairs": {"llama.rope.freq_base": float("inf")}}, "freq_base: found inf, expected a number"),
    "token": ({"pairs": {"tokenizer.ggml.eos_token_id": 24}}, "eos_id: found 24"),
    "no_embedding": ({"without": ["token_embd.weight"]}, "missing tensor token_embd.weight"),
    "no_norm": ({"without": ["blk.1.ffn_norm.weight"]}, r"missing tensor blk.1.ffn_norm.weight, \[16\]"),
    "bias": (
        {"tensors": {"blk.0.attn_q.bias": (np.zeros(24, np.float32), F32)}},
        "unexpected tensor .*q.bias",
    ),
    "frequencies": (
        {"tensors": {"rope_freqs.weight": (np.array([1, 3, 2], np.float32), F32)}},
        "tensor rope_freqs.weight: found factors that are not those of rotary scaling llama3",
    ),
    "low_frequencies": (
        {"tensors": {"rope_freqs.weight": (np.array([1, 0.5, 2], np.float32), F32)}},
        "tensor rope_freqs.weight: found a factor of 0.5, expected at least 1",
    ),
    "wide_frequencies": (
        {"tensors": {"rope_freqs.weight": (np.ones(8, np.float32), F32)}},
        r"unexpected tensor rope_freqs.weight, \[8\]; expected one of 3 factors in architecture llama",
    ),
    "twice_scaled": (
        {
            "pairs": {"llama.rope.scaling.factor": 2.0},
            "tensors": {"rope_freqs.weight": (np.ones(3, np.float32), F32)},
        },
        "unexpected tensor rope_freqs.weight",
    ),
    "shape": (
        {"tensors": {"output_norm.weight": (np.ones(8, np.float32), F32)}},
        r"tensor output_norm.weight: found \[8\], expected \[16\]",
    ),
}


@pytest.mark.parametrize("what", CANNOT_READ)
def test_a_file_that_our_model_cannot_compute_is_refused(what, tmp_path):
    change, message = CANNOT_READ[what]
    source = tmp_path / "source.gguf"
    write_gguf(source, DENSE, random_tensors(DENSE, "latent").__getitem__, kind="latent", float_type="F32")
    with pytest.raises(ValueError, match=f"changed.gguf: .*{message}"):
        open_gguf(rewrite(source, tmp_path / "changed.gguf", **change))


@pytest.fixture
def ternary_file(tmp_path):
    path = tmp_path / "ternary.gguf"
    tensors = random_tensors(TERNARY, "packed")
    write_gguf(path, TERNARY, tensors.__getitem__, kind="packed", ternary_type="TQ2_0")
    return path


def test_a_matrix_that_is_not_ternary_is_refused_or_dequantized(ternary_file, tmp_path):
    name = "blk.0.ffn_down.weight"
    values = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    path = rewrite(ternary_file, tmp_path / "many.gguf", tensors={name: (values, TQ2_0)})
    with pytest.raises(ValueError, match=f"tensor {name}: .* different scales.*dequantize=True"):
        open_gguf(path)
    artifact, lines = open_and_log(path, dequantize=True)
    assert (artifact.kind, artifact.config.linear, lines) == ("latent", "dense", [])
    expected = dequantize_blocks(quantize_floats(values, TQ2_0), TQ2_0)
    np.testing.assert_array_equal(artifact.tensors["model.layers.0.mlp.down_proj.weight"], expected)
    # One linear that is not ternary makes the model dense, and that is logged.
    artifact, lines = open_and_log(rewrite(ternary_file, tmp_path / "float.gguf", tensors={name: (values, F32)}))
    assert (artifact.kind, artifact.config.linear) == ("latent", "dense")
    assert lines == ["blk.0.ffn_down.weight is F32: the model is read as dense, not as ternary"]


def test_damaged_ternary_blocks_are_refused(ternary_file, tmp_path):
    name = "blk.0.attn_v.weight"
    blocks = GGUFFile(ternary_file).blocks(name).copy()
    for what, byte, value, message in (
        ("code", 5, 0xFF, "code of value 3"),
        ("infinite", 65, 0x7C, "scale of nan, expected a positive number"),
        ("negative", 65, blocks[0, 65] | 0x80, "scale of -.*, expected a positive number"),
    ):
        changed = blocks.copy()
        changed[0, byte] = value
        path = rewrite(ternary_file, tmp_path / f"{what}.gguf", tensors={name: (changed, TQ2_0)})
        with pytest.raises(ValueError, match=f"{what}.gguf: tensor {name}: found .*{message}"):
            list(open_gguf(path).tensors.values())
    changed = blocks.copy()
    changed[:, 65] |= 0x80
    path = rewrite(ternary_file, tmp_path / "all_negative.gguf", tensors={name: (changed, TQ2_0)})
    with pytest.raises(ValueError, match=r"found a scale of -.*, expected a positive number"):
        open_gguf(path)


def test_a_block_of_scale_zero_holds_zeros(ternary_file, tmp_path):
    ours, name = "model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"
    before = open_gguf(ternary_file).tensors
    blocks = GGUFFile(ternary_file).blocks(name).copy()
    blocks[0, 64:] = 0
    after = open_gguf(rewrite(ternary_file, tmp_path / "row.gguf", tensors={name: (blocks, TQ2_0)})).tensors
    expected = unpack(before[ours], 128)
    expected[0] = 0
    np.testing.assert_array_equal(unpack(after[ours], 128), expected)
    assert after[f"{ours}_scale"] == before[f"{ours}_scale"]
    blocks[:, 64:] = 0
    empty = open_gguf(rewrite(ternary_file, tmp_path / "matrix.gguf", tensors={name: (blocks, TQ2_0)}))
    assert not unpack(empty.tensors[ours], 128).any() and empty.tensors[f"{ours}_scale"] > 0
    assert empty.config.scale_dtype == "bfloat16"


def test_a_scale_tensor_multiplies_its_linear(tmp_path):
    source = tmp_path / "source.gguf"
    tensors = random_tensors(DENSE, "latent")
    write_gguf(source, DENSE, tensors.__getitem__, kind="latent", float_type="F32")
    scale = {"blk.0.attn_k.scale": (np.array([0.1], np.float32), F32)}
    found = open_gguf(rewrite(source, tmp_path / "scaled.gguf", tensors=scale)).tensors
    name = "model.layers.0.self_attn.k_proj.weight"
    for other, tensor in tensors.items():
        factor = np.float32(0.1 if other == name else 1)
        np.testing.assert_array_equal(found[other], tensor * factor)


def test_mutated_models_are_read_or_refused(ternary_file, tmp_path):
    original = ternary_file.read_bytes()
    header = min(tensor.offset for tensor in GGUFFile(ternary_file).tensors.values())
    rng = np.random.default_rng(0)
    path = tmp_path / "mutated.gguf"
    read = 0
    for _ in range(200):
        found = bytearray(original)
        found[rng.integers(header)] ^= 1 << int(rng.integers(8))
        path.unlink(missing_ok=True)  # overwriting it would wait for the disk
        path.write_bytes(found)
        try:
            artifact, _ = open_and_log(path)
            for tensor in artifact.stored:
                assert artifact.tensors[tensor.name].shape == tensor.shape
            read += 1
        except ValueError as error:
            assert str(path) in str(error)
    assert 10 < read < 190

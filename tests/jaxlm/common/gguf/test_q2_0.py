"""Q2_0 against its definition, in the blocks of llama.cpp (64) and in those of a fork (128)."""

import dataclasses

import numpy as np
import pytest

from jaxlm.common.architecture.packing import unpack
from jaxlm.common.gguf.file import GGUFFile
from jaxlm.common.gguf.q2_0 import dequantize_q2_0, pack_q2_0, unpack_q2_0
from jaxlm.common.gguf.reader import open_gguf
from jaxlm.common.gguf.ternary_blocks import to_ternary_blocks
from jaxlm.common.gguf.types import Q2_0, Q2_0_OF_FORK, tensor_type
from jaxlm.common.gguf.writer import write_gguf
from tests.jaxlm.common.gguf.gguf_models import (
    TERNARY,
    assert_same,
    float16_scale,
    float32_scale,
    open_and_log,
    random_tensors,
)
from tests.jaxlm.common.gguf.test_reader import rewrite

GROUPED = dataclasses.replace(
    TERNARY, scale_per="group:128", scale_dtype="float16", activation_bits=None, embedding="ternary"
)
DOWN, STORED = "model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"


def one_by_one(encoded, block):
    """Return the values of bytes as the format defines them, weight by weight."""
    values = np.empty((len(encoded), encoded.shape[1] // (2 + block // 4) * block), np.float32)
    for row, content in enumerate(encoded):
        for column in range(values.shape[1]):
            bytes_of_block = content.reshape(-1, 2 + block // 4)[column // block]
            j = column % block
            code = int(bytes_of_block[2 + j // 4]) >> (2 * (j % 4)) & 3
            values[row, column] = (code - 1) * bytes_of_block[:2].copy().view("<f2")[0]
    return values


@pytest.mark.parametrize("block", [64, 128])
def test_codes_and_scales_are_packed_as_the_format_defines(block):
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (3, 384), np.int8)
    scales = rng.uniform(0.01, 1, (3, 384 // block)).astype(np.float16)
    encoded = pack_q2_0(codes, scales)
    assert encoded.shape == (3, 384 // block * (2 + block // 4))
    found = unpack_q2_0(encoded, block)
    np.testing.assert_array_equal(found[0], codes)
    np.testing.assert_array_equal(found[1], scales.astype(np.float32))
    expected = codes * scales.astype(np.float32).repeat(block, axis=1)
    np.testing.assert_array_equal(one_by_one(encoded, block), expected)
    np.testing.assert_array_equal(dequantize_q2_0(encoded, block), expected)


def test_all_four_levels_are_dequantized():
    encoded = np.random.default_rng(0).integers(0, 256, (2, 36), np.uint8)
    encoded[:, [1, 19]] &= 0x3F  # finite scales
    np.testing.assert_array_equal(dequantize_q2_0(encoded, 64), one_by_one(encoded, 64))


@pytest.mark.parametrize("scale_per", ["tensor", "row", "row_blocks:2", "group:128", "group:64"])
@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("is_tied", [True, False])
def test_every_kind_of_scales_comes_back_equal(scale_per, activation_bits, is_tied, tmp_path):
    config = dataclasses.replace(
        GROUPED,
        scale_per=scale_per,
        scale_dtype="float32" if scale_per == "tensor" else "float16",
        activation_bits=activation_bits,
        tie_word_embeddings=is_tied,
        ternary_head=not is_tied,
    )
    tensors = random_tensors(config, "packed", float16_scale)
    path = tmp_path / "model.gguf"
    assert write_gguf(path, config, tensors.__getitem__, kind="packed") == []
    artifact, lines = open_and_log(path)
    assert (artifact.config, lines) == (config, [])
    assert_same(artifact, tensors)
    types = {name: tensor.type for name, tensor in GGUFFile(path).tensors.items()}
    assert types[STORED] == types["token_embd.weight"] == Q2_0
    assert GGUFFile(path).metadata["general.file_type"] == 41


def fork_file(source, destination):
    """Write a copy of a file of Q2_0 with its blocks of 128, and without a key of our own."""
    file, tensors = GGUFFile(source), {}
    for name, tensor in file.tensors.items():
        if tensor.type == Q2_0:
            codes, scales = unpack_q2_0(file.blocks(name), 64)
            tensors[name] = (to_ternary_blocks(codes, scales[:, ::2].astype(np.float16), Q2_0_OF_FORK), Q2_0_OF_FORK)
    return rewrite(source, destination, tensors=tensors, without=["jaxlm.activation_bits"])


def grouped_file(path):
    tensors = random_tensors(GROUPED, "packed", float16_scale)
    write_gguf(path, GROUPED, tensors.__getitem__, kind="packed")
    return path, tensors


def test_the_blocks_of_a_fork_are_told_by_their_bytes(tmp_path):
    ours, tensors = grouped_file(tmp_path / "ours.gguf")
    path = fork_file(ours, tmp_path / "fork.gguf")
    assert path.stat().st_size < ours.stat().st_size
    artifact, lines = open_and_log(path)
    assert artifact.config == GROUPED
    assert_same(artifact, tensors)
    assert len(lines) == 1 and "scales are per group:128: read with float activations" in lines[0]


def test_a_tensor_of_other_bytes_is_refused(tmp_path):
    path, _ = grouped_file(tmp_path / "ours.gguf")
    kind = Q2_0._replace(block_bytes=20)
    blocks = np.zeros((256, 512 // 64 * 20), np.uint8)
    changed = rewrite(path, tmp_path / "changed.gguf", tensors={STORED: (blocks, kind)})
    expected = r"found 40,960 bytes for 131,072 numbers of Q2_0, expected 36,864 \(blocks of 64\) or 34,816"
    with pytest.raises(ValueError, match=f"changed.gguf: .* tensor {STORED}: {expected}"):
        open_gguf(changed)


def test_a_fourth_level_is_refused_but_can_be_dequantized(tmp_path):
    path, _ = grouped_file(tmp_path / "ours.gguf")
    blocks = GGUFFile(path).blocks(STORED).copy()
    blocks[7, 9] |= 3
    changed = rewrite(path, tmp_path / "changed.gguf", tensors={STORED: (blocks, Q2_0)})
    with pytest.raises(ValueError, match=f"changed.gguf: tensor {STORED}: found a ternary code of value 3"):
        open_gguf(changed).tensors[DOWN]
    dense = open_gguf(changed, dequantize=True)
    assert dense.config.linear == "dense"
    np.testing.assert_array_equal(dense.tensors[DOWN], dequantize_q2_0(blocks, 64))


def test_a_block_of_scale_zero_holds_zeros(tmp_path):
    path, tensors = grouped_file(tmp_path / "ours.gguf")
    blocks = GGUFFile(path).blocks(STORED).copy()
    blocks[3, :36].reshape(2, 18)[:, :2] = 0  # one group of 128
    artifact = open_gguf(rewrite(path, tmp_path / "changed.gguf", tensors={STORED: (blocks, Q2_0)}))
    expected = unpack(tensors[DOWN], 256)
    expected[3, :128] = 0
    np.testing.assert_array_equal(unpack(artifact.tensors[DOWN], 256), expected)
    assert artifact.config == GROUPED and artifact.tensors[f"{DOWN}_scale"][3, 0] > 0


def test_rounded_scales_are_told_and_groups_of_other_sizes_are_refused(tmp_path):
    config = dataclasses.replace(GROUPED, scale_dtype="float32")
    tensors = random_tensors(config, "packed", float32_scale)
    (warning,) = write_gguf(tmp_path / "rounded.gguf", config, tensors.__getitem__, kind="packed")
    assert "scales of ternary matrices are not float16 numbers and were rounded" in warning
    for scale_per, ternary_type, message in (
        ("group:32", "Q2_0", "found group:32, expected groups of a multiple of 64 columns, the block of Q2_0"),
        ("group:128", "TQ2_0", r"expected groups of a multiple of 256 .* or with --ternary_type Q2_0"),
    ):
        config = dataclasses.replace(GROUPED, scale_per=scale_per)
        with pytest.raises(ValueError, match=message):
            write_gguf(tmp_path / "no.gguf", config, pytest.fail, kind="packed", ternary_type=ternary_type)


def test_types_of_other_programs_name_what_to_download():
    for number, message in (
        (36, r"I2_S, which only bitnet.cpp reads; download .*hf download microsoft/bitnet-b1.58-2B-4T --local-dir DIR"),
        (142, r"type 142, which only PrismML's fork .* download the model's MLX directory"),
    ):
        with pytest.raises(ValueError, match=message):
            tensor_type(number)

"""Directories of stock mlx-lm: ternary ones come back with their codes and scales, rounded ones are refused or read."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack, pack_affine, unpack
from jaxlm.common.architecture.parameters import parameters, scale_name, stored_tensors
from jaxlm.common.formats.mlx import needs_model_file, open_mlx, write_mlx
from jaxlm.common.formats.mlx_quantized import open_quantized_mlx
from jaxlm.common.formats.open_model import open_model
from tests.faults.mutators import mutate

GROUPED = ModelConfig(
    vocab_size=48,
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    bos_id=1,
    eos_id=2,
    linear="ternary",
    scale_per="group:64",
    scale_dtype="float16",
    activation_bits=None,
    embedding="ternary",
)
UP = "model.layers.1.mlp.up_proj"


def packed_tensors(config):
    """Return random tensors of a packed artifact, with scales of float16 alone."""
    rng, found = np.random.default_rng(0), {}
    for tensor in stored_tensors(config, "packed"):
        if tensor.dtype == "uint8":
            found[tensor.name] = pack(rng.integers(-1, 2, (tensor.shape[0] * 4, tensor.shape[1]), np.int8))
        else:
            found[tensor.name] = rng.uniform(0.01, 0.9, tensor.shape).astype(np.float16).astype(np.float32)
    return found


def write(directory, config, tensors, **options):
    directory.mkdir()
    write_mlx(directory, config, tensors.__getitem__, form="packed", **options)
    return directory


def changed(directory, config=None, tensors=None, without=()):
    """Change a directory of one file."""
    path = directory / "model.safetensors"
    found = {name: array for name, array in safetensors.numpy.load_file(path).items() if name not in without}
    found |= {name: change(found[name]) for name, change in (tensors or {}).items()}
    safetensors.numpy.save_file(found, path, {"format": "mlx"})
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | (config or {})))
    return directory


def assert_same(artifact, config, tensors):
    assert (artifact.config, artifact.kind) == (config, "packed")
    assert list(artifact.tensors) == [tensor.name for tensor in artifact.stored] == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(artifact.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize("scale_per", ["tensor", "row", "row_blocks:2", "group:128", "group:64", "group:32"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_ternary_model_comes_back_equal_without_a_model_file(tmp_path, scale_per, is_tied):
    config = dataclasses.replace(
        GROUPED,
        scale_per=scale_per,
        scale_dtype="float32" if scale_per == "tensor" else "float16",
        tie_word_embeddings=is_tied,
        ternary_head=not is_tied,
    )
    assert not needs_model_file(config)
    tensors = packed_tensors(config)
    directory = write(tmp_path / "mlx", config, tensors)
    content = json.loads((directory / "config.json").read_text())
    size = int(scale_per.partition(":")[2]) if scale_per.startswith("group") else 128
    assert content["quantization"] == {"group_size": size, "bits": 2, "mode": "affine"}
    assert content["model_type"] == "llama" and not {"jaxlm", "model_file"} & set(content)
    assert_same(open_model(directory), config, tensors)
    on_disk = safetensors.numpy.load_file(directory / "model.safetensors")
    np.testing.assert_array_equal(on_disk[f"{UP}.biases"], -on_disk[f"{UP}.scales"])
    assert on_disk[f"{UP}.scales"].dtype == config.scale_dtype


def test_an_embedding_of_floats_and_an_empty_group_are_read(tmp_path):
    config = dataclasses.replace(GROUPED, embedding="float")
    tensors = packed_tensors(config)
    directory = write(tmp_path / "mlx", config, tensors, float_dtype="bfloat16")
    zero = lambda array: np.where(np.arange(array.shape[1]) == 1, 0, array).astype(array.dtype)  # noqa: E731
    artifact = open_mlx(changed(directory, tensors={f"{UP}.scales": zero, f"{UP}.biases": zero}))
    assert artifact.float_dtype == "bfloat16"
    codes = unpack(tensors[f"{UP}.weight"], 256)
    codes[:, 64:] = 0
    np.testing.assert_array_equal(unpack(artifact.tensors[f"{UP}.weight"], 256), codes)
    scales = artifact.tensors[f"{UP}.weight_scale"]
    np.testing.assert_array_equal(scales[:, 0], tensors[f"{UP}.weight_scale"][:, 0])
    assert (scales[:, 1] > 0).all()


def test_groups_of_different_sizes_have_the_smaller_one(tmp_path):
    tensors = packed_tensors(GROUPED)
    directory = write(tmp_path / "mlx", GROUPED, tensors)
    path = "model.layers.0.self_attn.q_proj"
    halves = {f"{path}.scales": lambda array: array[:, :1].copy(), f"{path}.biases": lambda array: array[:, :1].copy()}
    own = {"group_size": 64, "bits": 2, path: {"group_size": 128, "bits": 2}}
    artifact = open_quantized_mlx(changed(directory, {"quantization": own}, halves))
    assert artifact.config.scale_per == "group:64"
    expected = tensors[f"{path}.weight_scale"][:, :1].repeat(2, axis=1)
    np.testing.assert_array_equal(artifact.tensors[f"{path}.weight_scale"], expected)


def quantized_by_mlx(directory, config, bits, names):
    """Round some matrices of a directory of floats, as mlx-lm does, and return their floats by name."""
    import mlx.core as mx

    found = safetensors.numpy.load_file(directory / "model.safetensors")
    expected = {}
    for name in names:
        parts = mx.quantize(mx.array(found.pop(name)), group_size=64, bits=bits)
        for ending, part in zip(("weight", "scales", "biases"), parts, strict=True):
            found[f"{name.removesuffix('weight')}{ending}"] = np.array(part)
        expected[name] = np.array(mx.dequantize(*parts, group_size=64, bits=bits))
    safetensors.numpy.save_file(found, directory / "model.safetensors", {"format": "mlx"})
    return expected


@pytest.fixture
def dense(tmp_path):
    """A directory of a dense model, and the names of its matrices."""
    config = dataclasses.replace(
        GROUPED, linear="dense", embedding="float", scale_per="tensor", activation_bits=8, scale_dtype="bfloat16"
    )
    rng = np.random.default_rng(0)
    tensors = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in stored_tensors(config, "latent")}
    (tmp_path / "mlx").mkdir()
    write_mlx(tmp_path / "mlx", config, tensors.__getitem__, form="float")
    content = json.loads((tmp_path / "mlx" / "config.json").read_text())
    del content["jaxlm"]
    (tmp_path / "mlx" / "config.json").write_text(json.dumps(content))
    return tmp_path / "mlx", config, [p.name for p in parameters(config) if len(p.shape) == 2]


def test_rounded_weights_of_more_bits_are_read_as_floats_with_a_note(dense):
    directory, config, names = dense
    expected = quantized_by_mlx(directory, config, 4, names)
    changed(directory, {"quantization": {"bits": 4, "group_size": 64}})
    lines = []
    artifact = open_model(directory, log=lines.append)
    assert (artifact.kind, artifact.config.linear) == ("latent", "dense")
    for name, weight in expected.items():
        np.testing.assert_allclose(artifact.tensors[name], weight, rtol=1e-6, atol=1e-6)
    assert len(lines) == 1 and "mlx-lm has rounded 15 matrices to 4 bits" in lines[0]


def test_rounded_weights_of_2_bits_are_refused(dense):
    directory, config, names = dense
    quantized_by_mlx(directory, config, 2, names)
    changed(directory, {"quantization": {"bits": 2, "group_size": 64}})
    with pytest.raises(
        ValueError, match=r"model\S+: found bias .* expected the negative .* not ternary; use the model"
    ):
        open_model(directory)


def test_a_table_of_more_bits_is_read_as_floats_next_to_ternary_linears(tmp_path):
    config = dataclasses.replace(GROUPED, embedding="float")
    tensors = packed_tensors(config)
    directory = write(tmp_path / "mlx", config, tensors)
    name = "model.embed_tokens.weight"
    expected = quantized_by_mlx(directory, config, 8, [name])
    own = {"group_size": 64, "bits": 2, "model.embed_tokens": {"group_size": 64, "bits": 8}}
    lines = []
    artifact = open_quantized_mlx(changed(directory, {"quantization": own}), lines.append)
    assert artifact.config == config
    np.testing.assert_allclose(artifact.tensors[name], expected[name], rtol=1e-6, atol=1e-6)
    assert len(lines) == 1 and "1 matrices to 8 bits, such as model.embed_tokens" in lines[0]


def test_damage_is_named(tmp_path):
    def with_three(words):
        words = words.copy()
        words[2, 3] |= 3 << 6
        return words

    for what, change, message in (
        ("bias", {"tensors": {f"{UP}.biases": lambda b: b * np.float16(0.5)}}, rf"{UP}: found bias -.* with scale"),
        ("code", {"tensors": {f"{UP}.weight": with_three}}, rf"{UP}.weight: .*code of value 3.*not ternary"),
        (
            "negative",
            {"tensors": {f"{UP}.{n}": np.negative for n in ("scales", "biases")}},
            "expected a positive number",
        ),
        ("missing", {"without": [f"{UP}.biases"]}, rf"missing tensor {UP}.biases, which {UP}.scales needs"),
        (
            "rows",
            {"tensors": {f"{UP}.scales": lambda s: s[:-1].copy()}},
            rf"{UP}.scales: found float16 \[255, 2\], exp",
        ),
        (
            "size",
            {"config": {"quantization": {"bits": 2, "group_size": 128}}},
            r"found float16 \[48, 2\], expected floats",
        ),
        (
            "words",
            {"tensors": {f"{UP}.weight": lambda w: w[:, :6].copy()}},
            "rows of 96 numbers, expected a multiple of",
        ),
        ("type", {"tensors": {f"{UP}.weight": lambda w: w.view(np.int32)}}, "dtype I32"),
    ):
        directory = write(tmp_path / what, GROUPED, packed_tensors(GROUPED))
        with pytest.raises(ValueError, match=message):
            dict(open_model(changed(directory, **change)).tensors)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_directory_is_read_or_refused_by_its_name(tmp_path, name):
    directory = write(tmp_path / "mlx", GROUPED, packed_tensors(GROUPED))
    rng, content = np.random.default_rng(len(name)), (directory / name).read_bytes()
    for _ in range(20):
        (directory / name).write_bytes(mutate(content, content, rng))
        try:
            dict(open_model(directory, log=lambda line: None).tensors)
        except ValueError as error:
            assert str(directory) in str(error)


def test_the_words_are_those_of_the_affine_format():
    codes = np.random.default_rng(0).integers(-1, 2, (3, 64), np.int8)
    words = pack_affine(codes)
    for row in range(3):
        for column in range(64):
            assert (int(words[row, column // 16]) >> (2 * (column % 16)) & 3) - 1 == codes[row, column]
    assert scale_name(f"{UP}.weight") == f"{UP}.weight_scale"

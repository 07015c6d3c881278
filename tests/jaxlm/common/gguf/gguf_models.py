"""Small models for the tests of GGUF."""

import dataclasses

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import stored_tensors
from jaxlm.common.architecture.ternary import round_to
from jaxlm.common.gguf.reader import open_gguf

DENSE = ModelConfig(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_seq_len=64,
    rope_theta=5e5,
    tie_word_embeddings=False,
    bos_id=1,
    eos_id=2,
)
TERNARY = ModelConfig(
    vocab_size=24,
    hidden_size=256,
    intermediate_size=512,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    linear="ternary",
    norm_eps=1e-6,
    pad_id=3,
)
BITNET = dataclasses.replace(TERNARY, sub_norm=True)


def bfloat16_scale(rng, shape=1):
    return round_to("bfloat16", float16_scale(rng, shape), np)


def float16_scale(rng, shape=1):
    return np.exp2(rng.uniform(-13, 3, shape)).astype(np.float16).astype(np.float32)


def float32_scale(rng, shape=1):
    return np.exp2(rng.uniform(-13, 3, shape)).astype(np.float32)


def random_tensors(config, kind, scale_of=bfloat16_scale):
    """Return random tensors of an artifact, with floats that are exact in float16 and bfloat16."""
    rng = np.random.default_rng(0)
    found = {}
    for tensor in stored_tensors(config, kind):
        if tensor.dtype == "uint8":
            found[tensor.name] = pack(rng.integers(-1, 2, (tensor.shape[0] * 4, tensor.shape[1]), np.int8))
        elif tensor.name.endswith("_scale"):
            found[tensor.name] = scale_of(rng, tensor.shape)
        else:
            found[tensor.name] = rng.integers(-100, 100, tensor.shape).astype(np.float32) / 64
    return found


def open_and_log(path, **options):
    """Open a GGUF file, and return the artifact and the lines that were logged."""
    lines = []
    return open_gguf(path, log=lines.append, **options), lines


def assert_same(artifact, tensors):
    assert list(artifact.tensors) == [tensor.name for tensor in artifact.stored] == list(tensors)
    for name, tensor in tensors.items():
        assert artifact.tensors[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(artifact.tensors[name], tensor, err_msg=name)

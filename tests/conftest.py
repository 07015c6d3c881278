"""Tests run stricter than users: no implicit rank promotion, warnings are errors, shapes are checked."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import jax
import numpy as np
import pytest

from jaxlm.spec.config import ModelConfig
from shared_tokenizer.tokenizer import Tokenizer
from shared_tokenizer.train import train_tokenizer

jax.config.update("jax_numpy_rank_promotion", "raise")
# A slow machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

TEXT = (
    "def add(first, second):\n    return first + second\n\n"
    "class Point:\n    x = 1.5  # caf\u00e9, \u4f60\u597d \U0001f600\n"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tiny tokenizer, trained here."""
    return train_tokenizer([TEXT * 20], 300)


TINY = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_seq_len=64,
    linear="ternary",
    sub_norm=True,
    initializer_range=0.1,
    embedding_range=0.1,
)


@contextlib.contextmanager
def flipped_bit(files: Sequence[Path], rng: np.random.Generator) -> Iterator[Path]:
    """Flip one random bit of one of the files, and mend it afterwards."""
    path = files[rng.integers(len(files))]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    yield path
    path.write_bytes(whole)


# Points of the architecture grid that between them use every option.
VARIANTS = {
    "ternary": {},
    "dense": {"linear": "dense", "sub_norm": False, "activation": "gelu", "head_dim": 16},
    "ternary_head": {"tie_word_embeddings": False, "ternary_head": True, "linear_norm": True, "activation": "relu2"},
    "int8_embedding": {"embedding": "int8", "sub_norm": False},
    "ternary_embedding": {"embedding": "ternary"},
}


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A ternary model with grouped heads and sub-norms, small enough for any test."""
    return TINY

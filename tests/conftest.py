"""Tests run stricter than users: no implicit rank promotion, warnings are errors, shapes are checked."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # tests compile what they test
# Here compiling takes longer than running, and these make it five times shorter. Processes of tests inherit them.
# Those that are given come after them, and the last one counts.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import hypothesis
import jax
import numpy as np
import pytest

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.rotary import RopeScaling
from jaxlm.ops.machine.xla_flags import knows_flag
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.summary import Summary
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer

if knows_flag("xla_cpu_use_fusion_emitters") and "xla_cpu_use_fusion_emitters" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # jaxlib 0.12 has no such flag
jax.config.update("jax_numpy_rank_promotion", "raise")
# A slow machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

_WHOLE = ("integration", "faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole commands, by their folder."""
    for item in items:
        if Path(item.path).relative_to(Path(__file__).parent).parts[0] in _WHOLE:
            item.add_marker("whole")


# Each compiled program takes memory maps, of which Linux gives a process 65,530; beyond them XLA aborts.
MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_maps() -> Iterator[None]:
    """Forget compiled programs after a file of tests, where a process has many."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


# Few characters: a vocabulary of 300 leaves 24 to them and to what they make up. Others are written as bytes.
TEXT = "def add(a, b):\n    return a + b\n\n"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tiny tokenizer, trained here."""
    return train_tokenizer([TEXT * 20], 300)


class Silent:
    """A reporter that prints nothing and keeps the lines."""

    def __init__(self):
        self.lines: list[str] = []
        self.has_progress = False

    def log(self, line: str) -> None:
        self.lines.append(line)

    def show_progress(self, done: int, total: int, so_far: Summary) -> None:
        self.has_progress = True


def prepare_texts(directory: Path, texts: Sequence[str], tokenizer: Tokenizer, **options: Any) -> Path:
    """A sealed shard set of some texts; the source stays beside it."""
    return prepare_rows(directory, [{"text": text} for text in texts], tokenizer, **options)


def prepare_pairs(directory: Path, count: int, tokenizer: Tokenizer, **options: Any) -> Path:
    """A sealed shard set of pairs of answers."""
    rows = [{"prompt": f"add {i}", "chosen": f"return {i} + a", "rejected": f"b + {i}"} for i in range(count)]
    return prepare_rows(directory, rows, tokenizer, **options)


def prepare_rows(directory: Path, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, **options: Any) -> Path:
    """A sealed shard set of rows; the source stays beside it."""
    source = directory.with_name(f"{directory.name}-source")
    tokenizer_dir = directory.with_name(f"{directory.name}-tokenizer")
    tokenizer_dir.mkdir(parents=True)
    tokenizer.save(tokenizer_dir)
    source.mkdir()
    (source / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = {"val_fraction": 0.2, "num_workers": 1} | options
    config = PrepareConfig(input=[str(source)], tokenizer=str(tokenizer_dir), output_dir=str(directory), **options)
    prepare(config, Silent())
    return directory


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


# For max_seq_len up to 320, which some tests need.
LONGROPE = RopeScaling(type="longrope", original_max_seq_len=320, factors=(1.0, 1.5, 2.0, 3.0))
LINEAR = RopeScaling(type="linear", factor=2.0)
LLAMA3 = RopeScaling(type="llama3", factor=8.0, original_max_seq_len=32)
YARN = RopeScaling(type="yarn", factor=4.0, original_max_seq_len=16, beta_fast=4.0)

# Points of the architecture grid that between them use every option.
VARIANTS = {
    "ternary": {},
    "dense": {
        "linear": "dense",
        "sub_norm": False,
        "activation": "gelu",
        "head_dim": 16,
        "rope_theta": 500.0,
        "rope_scaling": LLAMA3,
    },
    "ternary_head": {"tie_word_embeddings": False, "ternary_head": True, "linear_norm": True, "activation": "relu2"},
    "mlgru": {
        "token_mixer": "mlgru",
        "num_heads": 0,
        "num_kv_heads": 0,
        "head_dim": 0,
        "sub_norm": False,
        "linear_norm": True,
        "fused_gate": True,
        "tie_word_embeddings": False,
        "ternary_head": True,
    },
    "hybrid": {"token_mixer": ("mlgru", "mlgru", "attention"), "num_layers": 6},
    "int8_embedding": {"embedding": "int8", "sub_norm": False, "activation": "rational"},
    # In ternary: a Qwen3, and a Qwen2 with the multipliers and the frequencies of a MiniCPM.
    "qk_norm": {"qk_norm": True, "sub_norm": False, "head_dim": 16, "rope_scaling": YARN},
    "attention_bias": {
        "attention_bias": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logit_multiplier": 0.5,
        "logit_softcap": 3.0,
        "sub_norm": False,
        "rope_scaling": LONGROPE,
    },
    "ternary_embedding": {"embedding": "ternary"},
    "scales_by_group": {
        "scale_per": "group:32",
        "scale_dtype": "float16",
        "activation_bits": None,
        "embedding": "ternary",
    },
    "scales_by_rows": {"scale_per": "row_blocks:2", "embedding": "ternary"},
}


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A ternary model with grouped heads and sub-norms, small enough for any test."""
    return TINY

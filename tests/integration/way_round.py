"""A model that goes the whole way round: JAX -> artifact -> MLX -> artifact -> JAX -> artifact."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxlm.conversion.convert import Conversion, convert
from shared_tokenizer.data.evaluation import Evaluation, evaluate_batches, text_batches
from shared_tokenizer.data.examples import Example
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from tests.commands import run
from tests.conftest import prepare_texts

# Widths that the ternary blocks of a GGUF can hold.
SHAPE = {"hidden_size": 256, "intermediate_size": 256, "num_layers": 1}
TRAINING = {
    "num_train_steps": 6,
    "batch_size": 4,
    "seq_len": 32,
    "log_every_steps": 1,
    "eval_every_steps": 0,
    "eval_batches": 4,
    "sample_tokens": 0,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 0,
}
# One document: mlx-lm and transformers know of no border between two.
TEXT = "".join(f"def f{number}(x):\n    return x + {number}\n" for number in range(40))
SEQ_LEN = 64


def go_round(place: Path, tokenizer: Tokenizer) -> Path:
    """The run directory of the last training; those before it are `first` and `tuned` beside it."""
    data = prepare_texts(place / "data", [f"def g{i}(x):\n    return x * {i * 7}\n" * 4 for i in range(80)], tokenizer)
    jax_settings = {"data_dir": data, "preset": "ternary-tiny", "model": json.dumps(SHAPE)}
    jax_settings |= TRAINING | {"compilation_cache_dir": place / "compiled"}
    call("scripts/train_jax.py", jax_settings | {"output_dir": place / "first"})
    convert(place / "first", place / "latent", Conversion(form="latent"))
    tuning = TRAINING | {"model": place / "latent", "data": data, "method": "qat", "output_dir": place / "tuned"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_DISABLE_COMPILE", "1")  # on a CPU, MLX compiles with g++: seconds
        call("-m", tuning, "mlxlm.finetune")
    last = {"output_dir": place / "last", "init_from": place / "tuned" / "artifact"}
    call("scripts/train_jax.py", jax_settings | last)
    return place / "last"


def call(program: str, settings: dict[str, object], *words: object) -> str:
    """Run a command, which must not fail, and return what it prints."""
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    done = run(program, *words, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluate_elsewhere(logits: Callable[[np.ndarray], np.ndarray], tokenizer: Tokenizer) -> Evaluation:
    """TEXT under another program's model: token ids `[B, L]` -> logits `[B, L, V]`."""

    def loss_sum(batch: Example) -> tuple[float, int]:
        found = logits(batch["inputs"]).astype(np.float64)
        nats = np.logaddexp.reduce(found, axis=-1) - np.take_along_axis(found, batch["targets"][..., None], -1)[..., 0]
        return float(nats[batch["loss_mask"]].sum()), int(batch["loss_mask"].sum())

    batches = text_batches(tokenizer, [TEXT], SEQ_LEN, 8, tokenizer.vocab_size)
    return evaluate_batches(loss_sum, batches, tokenizer.token_bytes)

"""Generation by JAX and by transformers, of the same weights and prompts: tokens/s by the number of prompts."""

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from benchmarks.measuring.candidates import Setup, measure
from rich.table import Table

from jaxlm.checkpoints.export import export_artifact
from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from jaxlm.common.sampling import Sampling
from jaxlm.generate import generate_batch
from jaxlm.load import load_model
from jaxlm.model.language_model import init_params
from jaxlm.ops.ternary_linear import ternarize
from shared_tokenizer.settings import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class GenerateBenchmark:
    """Settings of the measurement."""

    presets: list[str] = field(default_factory=lambda: ["dense-25m", "ternary-25m"])
    """Models, with weights that were never trained."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16])
    """Prompts that are continued together."""
    prompt_tokens: int = setting(64, at_least=1)
    """Tokens of each prompt."""
    tokens: int = setting(64, at_least=1)
    """Tokens to generate after each; the likeliest, so that all generate alike."""
    turns: int = setting(5, at_least=1)
    """Timed continuations of each."""

    def __post_init__(self) -> None:
        check_bounds(self)


def benchmark(settings: GenerateBenchmark) -> None:
    """Print tokens/s of JAX, of transformers, and of transformers with a compiled step and a static cache."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError("torch is not installed; pip install '.[witness]'")
    table = Table(title=f"{settings.tokens} tokens after {settings.prompt_tokens}, float32")
    for heading in ("model", "prompts", "by", "tokens/s", "ours / it"):
        table.add_column(heading, justify="left" if heading in ("model", "by") else "right")
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.presets:
            directory = Path(folder) / name
            config = preset(name)
            with jax.default_device(jax.devices("cpu")[0]):
                params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))
            export_artifact(directory, config, params, "latent")
            for batch_size in settings.batch_sizes:
                prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, settings.prompt_tokens))
                candidates: dict[str, Setup] = {
                    "jaxlm": functools.partial(_jax, directory, prompts, settings.tokens),
                    "transformers": functools.partial(_torch, directory, prompts, settings.tokens, False),
                    "transformers, compiled": functools.partial(_torch, directory, prompts, settings.tokens, True),
                }
                found = measure(candidates, settings.turns)
                for by, measured in found.items():
                    speed = batch_size * settings.tokens / measured.seconds
                    ratio = measured.seconds / found["jaxlm"].seconds
                    table.add_row(name, str(batch_size), by, f"{speed:,.0f}", f"{ratio:.2f}")
    make_console().print(table)


def _jax(directory: Path, prompts: np.ndarray, tokens: int) -> Callable[[], Any]:
    model, params, _ = load_model(str(directory))
    params = jax.block_until_ready(ternarize(params, model.config))
    sampling = Sampling(max_tokens=tokens, temperature=0)
    return lambda: list(generate_batch(model, params, prompts.tolist(), sampling))


def _torch(directory: Path, prompts: np.ndarray, tokens: int, is_compiled: bool) -> Callable[[], Any]:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.from_numpy(prompts)
    settings: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    if is_compiled:
        model.forward = torch.compile(model.forward)
        settings["cache_implementation"] = "static"
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)

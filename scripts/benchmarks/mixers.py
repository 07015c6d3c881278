"""MLGRU against attention of equal width and depth: training steps by sequence length, decoding by context.

And its recurrence by itself, scanned in several ways.
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
from benchmarks.measuring.training_step import compiled_step
from rich.table import Table

import mlxlm.model.language_model
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from jaxlm.model.language_model import LanguageModel, init_cache, init_params
from jaxlm.ops import linear_recurrence
from jaxlm.ops.ternary_linear import ternarize


@dataclass(frozen=True, kw_only=True)
class MixersBenchmark:
    """Settings of the measurement."""

    preset: str = "ternary-tiny"
    """The attention model; the other has MLGRU in its place."""
    seq_lens: list[int] = field(default_factory=lambda: [256, 1024, 4096])
    """Sequence lengths of the training step, in tokens."""
    tokens_per_step: int = 4096
    """Tokens of each training step, whatever the sequence length."""
    contexts: list[int] = field(default_factory=lambda: [16, 16384])
    """Tokens of context that decoding is timed after."""
    tokens: int = 64
    """Tokens to decode in each turn."""
    turns: int = 5
    """Turns that the candidates take."""


def benchmark(settings: MixersBenchmark) -> None:
    """Compare MLGRU with attention: time and memory of training, speed of decoding in JAX and MLX."""
    attention = replace(preset(settings.preset), max_seq_len=2 * max(*settings.contexts, *settings.seq_lens))
    mlgru = replace(attention, token_mixer="mlgru", num_heads=0, num_kv_heads=0, head_dim=0)
    models = {"attention": attention, "mlgru": mlgru}
    _scans(settings, attention.hidden_size)
    _training(settings, models)
    _decoding(settings, models)


def _scans(settings: MixersBenchmark, width: int) -> None:
    """Time the recurrence and its gradient alone: as trained here, and by two scans that jax differentiates."""
    ways = {
        "ours": linear_recurrence.linear_recurrence,
        "chunks by jax": linear_recurrence.in_chunks,
        "associative_scan": _associative_scan,
    }
    table = Table(title=f"the recurrence and its gradient, {settings.tokens_per_step:,} tokens, width {width}")
    for heading in ("seq_len", *(f"{name} {unit}" for name in ways for unit in ("ms", "MB"))):
        table.add_column(heading, justify="right")
    for seq_len in settings.seq_lens:
        shape = (max(1, settings.tokens_per_step // seq_len), seq_len, width)
        rng = np.random.default_rng(0)
        decays, updates = rng.uniform(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)
        arguments = (decays, updates, np.zeros((shape[0], width), np.float32))
        compiled = {name: _gradient(way).lower(*arguments).compile() for name, way in ways.items()}
        runs = {name: functools.partial(_run, run, arguments) for name, run in compiled.items()}
        seconds = _take_turns(runs, settings.turns)
        row = []
        for name in ways:
            row += [f"{1000 * seconds[name]:.1f}", f"{compiled[name].memory_analysis().temp_size_in_bytes / 1e6:.0f}"]
        table.add_row(str(seq_len), *row)
    make_console().print(table)


def _run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    jax.block_until_ready(function(*arguments))


def _gradient(scan: Callable[..., jax.Array]) -> jax.stages.Wrapped:
    return jax.jit(jax.grad(lambda *arguments: jnp.sum(jnp.square(scan(*arguments))), argnums=(0, 1, 2)))


def _associative_scan(decays: jax.Array, updates: jax.Array, initial: jax.Array) -> jax.Array:
    updates = updates.at[:, 0].add(decays[:, 0] * initial)

    def join(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(join, (decays, updates), axis=1)[1]


def _training(settings: MixersBenchmark, models: dict[str, ModelConfig]) -> None:
    table = Table(title=f"training step of {settings.tokens_per_step:,} tokens")
    headings = ("seq_len", "attention ms", "mlgru ms", "time ratio", "attention MB", "mlgru MB", "memory ratio")
    for heading in headings:
        table.add_column(heading, justify="right")
    for seq_len in settings.seq_lens:
        steps = {name: _training_step(config, settings.tokens_per_step, seq_len) for name, config in models.items()}
        seconds = _take_turns({name: step for name, (step, _) in steps.items()}, settings.turns)
        memory = {name: size for name, (_, size) in steps.items()}
        table.add_row(
            str(seq_len),
            *(f"{1000 * seconds[name]:,.0f}" for name in models),
            f"{seconds['mlgru'] / seconds['attention']:.2f}",
            *(f"{memory[name] / 1e6:,.0f}" for name in models),
            f"{memory['mlgru'] / memory['attention']:.2f}",
        )
    make_console().print(table)


def _training_step(config: ModelConfig, tokens: int, seq_len: int) -> tuple[Callable[[], Any], int]:
    """Return a function that does one step, and the bytes that the compiled step needs next to its arguments."""
    compiled, state, batch = compiled_step(config, max(1, tokens // seq_len), seq_len)

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return step, compiled.memory_analysis().temp_size_in_bytes


def _take_turns(candidates: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median seconds of each, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def _decoding(settings: MixersBenchmark, models: dict[str, ModelConfig]) -> None:
    table = Table(title="decoding, tokens/s")
    for heading in ("model", *(f"after {context:,}" for context in settings.contexts), "last / first"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    candidates: dict[str, Callable[[], Any]] = {}
    for name, config in models.items():
        params = jax.jit(lambda key, config=config: ternarize(init_params(config, key), config))(jax.random.key(0))
        for context in settings.contexts:
            candidates[f"jax {name} {context}"] = _jax_decoder(config, params, context, settings.tokens)
            candidates[f"mlx {name} {context}"] = _mlx_decoder(config, context, settings.tokens)
    seconds = _take_turns(candidates, settings.turns)
    for framework in ("jax", "mlx"):
        for name in models:
            speeds = [settings.tokens / seconds[f"{framework} {name} {context}"] for context in settings.contexts]
            row = [f"{speed:,.0f}" for speed in speeds]
            table.add_row(f"{name} in {framework}", *row, f"{speeds[-1] / speeds[0]:.2f}")
    make_console().print(table)


def _jax_decoder(config: ModelConfig, params: Any, context: int, tokens: int) -> Callable[[], Any]:
    model = LanguageModel(config)
    step = jax.jit(
        lambda params, ids, positions, cache: model.apply(
            {"params": params}, ids, positions, cache, jnp.zeros(1, jnp.int32), method="decode"
        ),
        donate_argnums=3,
    )
    cache = init_cache(config, 1, context + tokens)

    def decode() -> None:
        nonlocal cache
        ids = jnp.zeros((1, 1), jnp.int32)
        for place in range(context, context + tokens):
            logits, cache = step(params, ids, jnp.full((1, 1), place, jnp.int32), cache)
            ids = jnp.argmax(logits, axis=-1)[:, None].astype(jnp.int32)
        jax.block_until_ready(ids)

    return decode


def _mlx_decoder(config: ModelConfig, context: int, tokens: int) -> Callable[[], Any]:
    model = mlxlm.model.language_model.LanguageModel(config)
    mx.eval(model.parameters())
    caches = model.make_cache()
    for cache in caches:
        if config.has_attention:  # as if the context had been read
            shape = (1, config.num_kv_heads, context, config.head_dim)
            cache.update_and_fetch(mx.zeros(shape), mx.zeros(shape))

    def decode() -> None:
        ids = mx.zeros((1, 1), mx.int32)
        for _ in range(tokens):
            ids = mx.argmax(model(ids, caches)[:, -1], axis=-1)[:, None]
            mx.eval(ids)
        for cache in caches:
            if config.has_attention:
                cache.trim(tokens)

    return decode

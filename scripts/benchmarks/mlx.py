"""Ours on MLX against stock mlx-lm, on the same directories and tokens; and what a packed ternary model holds."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm.utils
import numpy as np
from benchmarks.measuring.candidates import Measured, OnDevice, Setup, measure
from mlx_lm.generate import generate_step
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers
from rich.table import Table

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameter_count, parameters, ternary_parameter_count
from jaxlm.common.architecture.presets import preset
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.command_line import make_console
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.sampling import Sampling
from jaxlm.conversion.convert import Conversion, convert
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapters import add_adapters
from mlxlm.finetune.data import Batch
from mlxlm.finetune.optimizer import AdamW
from mlxlm.finetune.train_step import TrainStep
from mlxlm.generate import generate
from mlxlm.load import load_model


@dataclass(frozen=True, kw_only=True)
class MlxBenchmark:
    """Settings of the measurement."""

    preset: str = "dense-5m"
    """Dense model, with weights that were never trained."""
    batch_size: int = 2
    """Sequences per step of LoRA training."""
    seq_len: int = 64
    """Tokens per sequence."""
    rank: int = 8
    """Rank of the adapters, which all linear layers of the blocks get."""
    grad_clip_norm: float = 1.0
    """Largest global norm of the gradient, in both; 0 does not clip, as in mlx-lm's own trainer."""
    prompt_tokens: int = 32
    """Tokens of the prompt that text is generated after."""
    tokens: int = 64
    """Tokens to generate in each turn."""
    turns: int = 7
    """Timed turns of each."""
    grouped_preset: str = "bonsai-1.7b"
    """Ternary model with scales by group, which stock mlx-lm trains too; cut to `grouped_layers` blocks."""
    grouped_layers: int = 4
    """Blocks of that model."""
    grouped_vocabulary: int = 8192
    """Tokens of that model: few, so that the blocks are what is measured."""
    ternary_preset: str = "ternary-25m"
    """Ternary model whose memory is compared with that of its float twin."""
    few_tokens: int = 8
    """Tokens of the step that this memory is measured in: few, so that it is that of weights."""


def benchmark(settings: MlxBenchmark) -> None:
    """Print tokens/s and peak memory of LoRA training and of generation by mlx-lm and by us, and bits per weight."""
    with tempfile.TemporaryDirectory() as folder:
        dense = preset(settings.preset)
        table = _stock_table(settings, settings.preset)
        directory = _add_training(table, settings, Path(folder) / "dense", dense)
        _add_generation(table, settings, directory, dense)
        make_console().print(table)
        grouped = replace(
            preset(settings.grouped_preset),
            num_layers=settings.grouped_layers,
            vocab_size=settings.grouped_vocabulary,
            bos_id=None,
            eos_id=None,
        )
        title = f"{settings.grouped_preset}, {settings.grouped_layers} layers, {settings.grouped_vocabulary:,} tokens"
        table = _stock_table(settings, title)
        _add_training(table, settings, Path(folder) / "grouped", grouped)
        make_console().print(table)
        _ternary_memory(settings, Path(folder))


def _stock_table(settings: MlxBenchmark, title: str) -> Table:
    table = Table(title=f"{title}, {mx.default_device()}; medians of {settings.turns} turns")
    for heading in ("", "tokens", "tokens/s", "ours / mlx-lm", "peak MB", "ours / mlx-lm"):
        table.add_column(heading, justify="right" if heading else "left")
    return table


def _add_training(table: Table, settings: MlxBenchmark, folder: Path, config: ModelConfig) -> Path:
    """Add the rows of LoRA training. Returns the directory of the model, which both read."""
    folder.mkdir()
    save_blank_artifact(folder / "artifact", config)
    directory = folder / "mlx"
    convert(folder / "artifact", directory, Conversion(form="mlx", with_tokenizer=False), lambda *_: None)
    ids = _random_ids(config, settings.batch_size, settings.seq_len + 1)
    recipe = OptimizerConfig(grad_clip_norm=settings.grad_clip_norm)
    training = {
        "mlx-lm": functools.partial(_stock_training, directory, ids, settings.rank, recipe),
        "ours": functools.partial(_our_training, directory, ids, settings.rank, recipe),
    }
    _add_rows(table, "LoRA training", ids[:, 1:].size, measure(training, settings.turns))
    return directory


def _add_generation(table: Table, settings: MlxBenchmark, directory: Path, config: ModelConfig) -> None:
    prompt = _random_ids(config, 1, settings.prompt_tokens)[0].tolist()
    generation: dict[str, Setup] = {
        "mlx-lm": functools.partial(_stock_generation, directory, prompt, settings.tokens),
        "ours": functools.partial(_our_generation, directory, prompt, settings.tokens),
    }
    _add_rows(table, "generation", settings.tokens, measure(generation, settings.turns))


def _random_ids(config: ModelConfig, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (rows, length)).astype(np.int32)


def _add_rows(table: Table, work: str, tokens: int, found: dict[str, Measured]) -> None:
    stock, ours = found["mlx-lm"], found["ours"]
    for name, measured in found.items():
        ratios = (f"{stock.seconds / ours.seconds:.3f}", f"{ours.peak_bytes / stock.peak_bytes:.3f}")
        speed, memory = ratios if measured is ours else ("", "")
        row = (f"{tokens / measured.seconds:,.1f}", speed, f"{measured.peak_bytes / 1e6:,.1f}", memory)
        table.add_row(f"{work}, {name}", str(tokens), *row)


def _measured(run: Callable[[], Any]) -> OnDevice:
    """Return a function to be timed, with the peak of MLX's memory from now on."""
    mx.clear_cache()
    mx.reset_peak_memory()
    return OnDevice(run, mx.get_peak_memory)


def _stock_training(directory: Path, ids: np.ndarray, rank: int, recipe: OptimizerConfig) -> OnDevice:
    """Return the step of `mlx_lm.tuner.trainer.train`, a function inside that one, with a clip of the gradient."""
    model, _ = mlx_lm.utils.load_model(directory)
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": rank, "scale": 20.0, "dropout": 0.0})
    optimizer = optim.AdamW(
        recipe.learning_rate, [recipe.b1, recipe.b2], recipe.eps, recipe.weight_decay, bias_correction=True
    )
    loss_and_gradients = nn.value_and_grad(model, default_loss)
    state = [model.state, optimizer.state, mx.random.state]

    @functools.partial(mx.compile, inputs=state, outputs=state)
    def step(batch: mx.array, lengths: mx.array) -> Any:
        (loss, tokens), gradients = loss_and_gradients(model, batch, lengths)
        if recipe.grad_clip_norm:
            gradients, _ = optim.clip_grad_norm(gradients, recipe.grad_clip_norm)
        optimizer.update(model, gradients)
        return loss, tokens

    batch = mx.array(ids)
    lengths = mx.array([[0, ids.shape[1] - 1]] * len(ids))
    model.train()

    def run() -> None:
        mx.eval(state, step(batch, lengths))

    return _measured(run)


def _our_training(directory: Path, ids: np.ndarray, rank: int, recipe: OptimizerConfig) -> OnDevice:
    model, _ = load_model(directory)
    add_adapters(model, AdapterConfig(rank=rank))
    model.train()
    step = TrainStep(model, AdamW(recipe, 10**6), 1)
    batch = _batch(ids)
    return _measured(lambda: mx.eval(step(batch), model.parameters(), step.optimizer_state))


def _batch(ids: np.ndarray) -> Batch:
    """Rows of ids as a batch, one document each, and every token counts."""
    inputs, targets = mx.array(ids[:, :-1]), mx.array(ids[:, 1:])
    segment_ids = mx.zeros_like(inputs)
    return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids, "loss_mask": segment_ids == 0}


def _stock_generation(directory: Path, prompt: list[int], tokens: int) -> OnDevice:
    model, _ = mlx_lm.utils.load_model(directory)
    return _measured(lambda: list(generate_step(mx.array(prompt), model, max_tokens=tokens)))


def _our_generation(directory: Path, prompt: list[int], tokens: int) -> OnDevice:
    model, _ = load_model(directory)
    return _measured(lambda: list(generate(model, prompt, Sampling(max_tokens=tokens, temperature=0.0))))


def _ternary_memory(settings: MlxBenchmark, folder: Path) -> None:
    """Print the memory of a packed model and of its float twin, and that of a LoRA step next to it.

    Over so few tokens that activations are next to nothing, a dequantized copy of a weight would show in the peak.
    """
    packed = preset(settings.ternary_preset)
    models = {
        "packed": packed,
        "float twin": replace(packed, linear="dense", sub_norm=False, linear_norm=False, ternary_head=False),
    }
    table = Table(title=f"{settings.ternary_preset}, LoRA training, {settings.few_tokens} tokens a step")
    for heading in ("", "weights MB", "bits / ternary weight", "peak MB", "peak - weights MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, config in models.items():
        directory = folder / name
        save_blank_artifact(directory, config)
        ids = _random_ids(config, 1, settings.few_tokens + 1)
        weights, peak = (
            measure({name: setup}, turns=1)[name].peak_bytes
            for setup in (
                functools.partial(_held_weights, directory),
                functools.partial(_our_training, directory, ids, settings.rank, OptimizerConfig()),
            )
        )
        ternary = weights - 4 * (parameter_count(packed) - ternary_parameter_count(packed))
        bits = 8 * ternary / ternary_parameter_count(packed)
        table.add_row(name, *(f"{number:,.2f}" for number in (weights / 1e6, bits, peak / 1e6, (peak - weights) / 1e6)))
    smallest = min(parameter.size for parameter in parameters(packed) if parameter.storage == "ternary")
    console = make_console()
    console.print(table)
    console.print(f"a dequantized copy of the smallest ternary weight: {4 * smallest / 1e6:,.2f} MB")


def _held_weights(directory: Path) -> OnDevice:
    """Return the memory of a model after it has run, the constants of its layers included."""
    model, _ = load_model(directory)

    def held_bytes() -> int:
        mx.clear_cache()
        return mx.get_active_memory()

    return OnDevice(lambda: mx.eval(model(mx.array([[0]]))), held_bytes)

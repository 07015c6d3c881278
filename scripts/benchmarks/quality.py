"""Models trained side by side on the same tokens: held-out loss, probes and speed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from benchmarks.measuring.training_step import fastest_model
from rich.table import Table

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameter_count, tensor_bytes
from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from jaxlm.common.evaluation.probes import NUM_ROWS, Probe, ProbeResult, make_probes, probe_table, run_probes
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.sampling import LARGEST_SEED
from jaxlm.evaluate import evaluate, make_loss_function
from jaxlm.ops.ternary_linear import with_ternary
from jaxlm.tasks import evaluated_model
from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.training.train_step import init_state, make_train_step
from shared_tokenizer.data.batches import Batch, BatchOrder, training_batches
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class QualityBenchmark:
    """Models trained side by side, on the same tokens in the same order from the same seed."""

    data_dir: str = "data/stdlib"
    """Token shards, as scripts/prepare_data.py writes them."""
    models: dict[str, list[float]] = field(default_factory=lambda: {"ternary-tiny": [4e-3], "dense-tiny": [2e-3]})
    """Presets to train, each with its peak learning rates: one run a rate."""
    num_train_steps: int = 1600
    """Optimizer steps of each."""
    batch_size: int = 4
    """Sequences per optimizer step."""
    seq_len: int = 128
    """Tokens per sequence."""
    eval_batches: int = 150
    """Batches of the held-out split."""
    probe_rows: int = NUM_ROWS
    """Rows of each probe, see `jaxlm evaluate --tasks probes`; 0 leaves the probes out."""
    seed: int = 0
    """Seed of the weights and of the order of the data."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(warmup_steps=50, final_fraction=0.0, b2=0.99)
    )
    """The rest of the recipe, the same for all."""

    def __post_init__(self) -> None:
        for name in ("num_train_steps", "batch_size", "seq_len", "eval_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.probe_rows < 0:
            raise ValueError(f"probe_rows: found {self.probe_rows}, expected 0 or more")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed: found {self.seed}, expected 0..{LARGEST_SEED}")
        for name, rates in self.models.items():
            preset(name)
            for rate in rates:
                replace(self.optimizer, learning_rate=rate)  # refuses what is out of range
        if not any(self.models.values()):
            raise ValueError("models: found none, expected presets with learning rates, {ternary-tiny: [0.004]}")


class Candidate:
    """A model in training, with the seconds that its steps took."""

    def __init__(self, name: str, config: ModelConfig, learning_rate: float, settings: QualityBenchmark):
        self.name, self.config, self.learning_rate = name, config, learning_rate
        self._model = fastest_model(config)
        optimizer = replace(settings.optimizer, learning_rate=learning_rate)
        transformation = make_optimizer(optimizer, settings.num_train_steps)
        schedule = learning_rate_schedule(optimizer, settings.num_train_steps)
        self._state = jax.jit(lambda: init_state(self._model, transformation, settings.seed))()
        self._step = make_train_step(self._model, transformation, schedule, 1)
        self.seconds = 0.0

    def compile(self, batch: Batch) -> None:
        self._step = self._step.lower(self._state, batch).compile()

    def step(self, batch: Batch) -> None:
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, batch)
        jax.block_until_ready(metrics)
        self.seconds += time.perf_counter() - start

    def evaluate(self, batches: list[Batch], token_bytes: Any) -> Evaluation:
        return evaluate(make_loss_function(self._model), self._weights(), batches, token_bytes)

    def run_probes(self, probes: Sequence[Probe], tokenizer: Tokenizer) -> list[ProbeResult]:
        return run_probes(evaluated_model(self.name, self._model, self._weights(), tokenizer), probes)

    def _weights(self) -> Any:
        return with_ternary(self._state.params, self._state.ternary)


def benchmark(settings: QualityBenchmark) -> None:
    """Train models side by side and print their held-out losses, their accuracies in the probes, and their speeds."""
    sets = DataSets.open([Path(settings.data_dir)], settings.seq_len)
    tokenizer = sets.tokenizer
    batches = sets.evaluation_batches(settings.batch_size, settings.eval_batches)
    vocabulary = {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    candidates = [
        Candidate(name, replace(preset(name), **vocabulary), rate, settings)
        for name, rates in settings.models.items()
        for rate in rates
    ]
    for candidate in candidates:
        candidate.compile(batches[0])
    iterator = iter(training_batches(sets.train, BatchOrder(settings.batch_size, settings.seed)))
    for _ in range(settings.num_train_steps):
        batch = next(iterator)
        for candidate in candidates:  # in turn, so that a drift of the machine meets all
            candidate.step(batch)
    _print_quality(settings, candidates, [c.evaluate(batches, tokenizer.token_bytes) for c in candidates])
    if settings.probe_rows:
        probes = make_probes(settings.probe_rows)
        results = {f"{c.name} {c.learning_rate:g}": c.run_probes(probes, tokenizer) for c in candidates}
        make_console().print(probe_table(probes, results))


def _print_quality(settings: QualityBenchmark, candidates: list[Candidate], found: list[Evaluation]) -> None:
    tokens = settings.num_train_steps * settings.batch_size * settings.seq_len
    table = Table(title=f"{tokens:,} tokens, seed {settings.seed}")
    headings = ("rate", "parameters", "artifact bytes", "nats per token", "bits per byte", "tokens/s", "speed")
    table.add_column("model")
    for heading in headings:
        table.add_column(heading, justify="right")
    for candidate, evaluation in zip(candidates, found, strict=True):
        kind = "packed" if candidate.config.has_packed_form else "latent"
        table.add_row(
            candidate.name,
            f"{candidate.learning_rate:g}",
            f"{parameter_count(candidate.config):,}",
            f"{tensor_bytes(candidate.config, kind):,}",
            f"{evaluation.loss:.4f}",
            f"{evaluation.bits_per_byte:.4f}",
            f"{tokens / candidate.seconds:,.0f}",
            f"{candidates[-1].seconds / candidate.seconds:.2f}",
        )
    console = make_console()
    console.print(table)
    console.print(f"speed: tokens/s over those of {candidates[-1].name}")

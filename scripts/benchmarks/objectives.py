"""The step of each objective beside that of plain training, in turns of one process: time and memory."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from benchmarks.measuring.training_step import compiled_objective_step, example_batch
from rich.table import Table

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from jaxlm.common.objectives.distillation import Distillation
from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.ternary_linear import Params, ternarize
from jaxlm.rl.sampler import Sampler
from jaxlm.training.device_memory import compiled_memory
from jaxlm.training.objectives.distillation import TEACHER, distillation
from jaxlm.training.objectives.next_token import next_token
from jaxlm.training.objectives.objective import Extras, Objective
from jaxlm.training.objectives.policy_gradient import policy_gradient
from jaxlm.training.objectives.preference import preference
from shared_tokenizer.settings import check_bounds, setting

PLAIN = "next_token"


@dataclass(frozen=True, kw_only=True)
class ObjectivesBenchmark:
    """Settings of the measurement."""

    preset: str = setting("ternary-tiny")
    """Model to train; its float twin is the teacher."""
    batch_size: int = setting(8, at_least=2)
    """Sequences per step; pairs of answers are two sequences each."""
    seq_len: int = setting(256, at_least=2)
    """Tokens per sequence; the second half is the answer, where there is one."""
    turns: int = setting(15, at_least=1)
    """Timed steps of each."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.batch_size % 2:
            raise ValueError(f"batch_size: found {self.batch_size}, expected an even number, for pairs")


@dataclass(frozen=True)
class Candidate:
    """Something to be timed, and the bytes that it needs by the compiler's account."""

    run: Callable[[], Any]
    arguments: int = 0
    """State, batch, and extras such as a teacher."""
    temporaries: int = 0
    """Activations and gradients."""


def benchmark(settings: ObjectivesBenchmark) -> None:
    """Print time and memory of the step of each objective, and the time of sampling the answers of a step of GRPO."""
    config = preset(settings.preset)
    config = replace(config, max_seq_len=max(settings.seq_len, config.max_seq_len))
    candidates = _steps(config, settings) | {"sampling for grpo": Candidate(_sampling(config, settings))}
    seconds = _take_turns(candidates, settings.turns)
    table = Table(title=f"{settings.preset}, {settings.batch_size} x {settings.seq_len} tokens, {settings.turns} turns")
    for heading in ("step", "ms", f"time, {PLAIN} = 1", "quartiles", "arguments MB", "temporaries MB"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for name, each in candidates.items():
        low, middle, high = np.percentile(seconds[name] / seconds[PLAIN], [25, 50, 75])
        memory = (f"{size / 1e6:.1f}" if size else "" for size in (each.arguments, each.temporaries))
        times = f"{1000 * np.median(seconds[name]):.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"
        table.add_row(name, *times, *memory)
    make_console().print(table)


def _steps(config: ModelConfig, settings: ObjectivesBenchmark) -> dict[str, Candidate]:
    """Compile the step of each objective, one after another."""
    text: Any = example_batch(config.vocab_size, settings.batch_size, settings.seq_len)
    shape = (settings.batch_size, settings.seq_len)
    answers = text | {"loss_mask": np.tile(np.arange(settings.seq_len) >= settings.seq_len // 2, (shape[0], 1))}
    pairs = {name: rows.reshape(-1, 2, settings.seq_len) for name, rows in answers.items()}
    pairs["pair"] = np.arange(settings.batch_size // 2, dtype=np.int32)
    sampled = answers | {"advantages": np.ones(shape, np.float32), "sampler_logprobs": np.zeros(shape, np.float32)}

    dense = replace(config, linear="dense", sub_norm=False, linear_norm=False, ternary_head=False)
    teacher = {TEACHER: _params(dense)}
    log_probs = {"reference": np.zeros((settings.batch_size // 2, 2), np.float32)}
    start = jax.jit(ternarize, static_argnums=1)(_params(config), config)

    def of_teacher(distilled: Distillation) -> Objective:
        return distillation(dense, distilled)

    steps: dict[str, tuple[Any, Objective, Extras]] = {
        PLAIN: (text, next_token(), None),
        "sft": (answers, next_token(), None),
        "distillation: logits": (text, of_teacher(Distillation()), teacher),
        "distillation: relations": (text, of_teacher(Distillation(weight=0, relations_weight=1)), teacher),
        "distillation: both": (text, of_teacher(Distillation(relations_weight=1)), teacher),
        "orpo": (pairs, preference("orpo", 0.1), None),
        "dpo": (pairs, preference("dpo", 0.1), log_probs),
        "grpo": (sampled, policy_gradient(), None),
        "grpo with kl_weight": (sampled, policy_gradient(kl_weight=0.1), start),
    }
    return {name: _step(config, *parts) for name, parts in steps.items()}


def _params(config: ModelConfig) -> Params:
    return jax.jit(functools.partial(init_params, config))(jax.random.key(1))


def _step(config: ModelConfig, batch: Any, objective: Objective, extras: Extras) -> Candidate:
    """Return a candidate that does one step and waits for its end."""
    compiled, state = compiled_objective_step(config, batch, objective, extras)
    memory = compiled_memory(compiled)

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, batch, extras)
        jax.block_until_ready(metrics)

    return Candidate(run, memory.arguments, memory.temporaries + memory.unaliased)


def _sampling(config: ModelConfig, settings: ObjectivesBenchmark) -> Callable[[], Any]:
    """Return a function that samples the answers of a step, none of which ends early."""
    weights = jax.jit(ternarize, static_argnums=1)(_params(config), config)
    prompt_tokens = settings.seq_len // 2
    sampler = Sampler(
        LanguageModel(config),
        prompt_tokens=prompt_tokens,
        max_tokens=settings.seq_len - prompt_tokens,
        temperature=1.0,
        stop_ids=[-1],
        seed=0,
    )
    ids = example_batch(config.vocab_size, settings.batch_size, prompt_tokens)["inputs"].tolist()
    return lambda: sampler.sample(weights, ids, 0, [(number, 0) for number in range(len(ids))])


def _take_turns(candidates: dict[str, Candidate], turns: int) -> dict[str, np.ndarray]:
    """Return the seconds of each `[turns]`, after two turns that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns + 2):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate.run()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(found[2:]) for name, found in seconds.items()}

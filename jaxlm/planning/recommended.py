"""Settings of training that are recommended for a model, each with the study or the paper behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.run.optimizer_config import OptimizerName

# The studies of this project are of models up to this size; above, the settings are those of authors.
STUDIED_PARAMETERS = 10_000_000
# Up to so many parameters: peak learning rates of ternary models (two stages: first, second) and of dense ones.
_TERNARY_RATES = ((1e9, 1.5e-3, 1e-3), (math.inf, 1.2e-3, 8e-4))
_DENSE_RATES = ((5e8, 3e-3), (math.inf, 5e-4))
_BITNET = "the recipe of BitNet b1.58's authors"
_SMOLLM2 = "the recipe of SmolLM2"
_AUTHORS_BATCH = "as asked; the authors took a million tokens a step or more"
# Up to so many parameters: peak learning rates of ternary and of float models, and the study that found them.
_STUDIED_RATES: dict[str, tuple[tuple[float, float, float, str], ...]] = {
    "adamw": ((STUDIED_PARAMETERS, 0.002, 0.002, "studies/learning_rate.yaml"),),
    "muon": (
        (3_500_000, 0.008, 0.004, "studies/muon_rate.yaml"),
        (STUDIED_PARAMETERS, 0.012, 0.006, "studies/five_million_rate.yaml"),
    ),
}
_OF_ALL_STUDIES = "as in all studies"
# At equal time on a CPU Muon is ahead with so many tokens a step, AdamW with half of them (docs/quality.md).
_TOKENS_FOR_MUON = 1024


@dataclass(frozen=True)
class Recommendation:
    """One setting of `jaxlm train`."""

    name: str
    value: Any
    reason: str
    """Where it comes from: a study of this project, with its date in docs/quality.md, or a paper."""


def recommended(
    config: ModelConfig, tokens: int, batch_size: int, seq_len: int, optimizer: OptimizerName | Literal["auto"] = "auto"
) -> list[Recommendation]:
    """Return settings that train a model on so many tokens, with the optimizer that is asked for.

    Raises ValueError where the tokens are fewer than one step takes.
    """
    steps = tokens // (batch_size * seq_len)
    if steps < 1:
        raise ValueError(
            f"tokens: found {tokens:,}, expected at least the {batch_size * seq_len:,} of one step "
            f"({batch_size} x {seq_len})"
        )
    parameters = parameter_count(config)
    is_studied = parameters <= STUDIED_PARAMETERS
    name = _optimizer(optimizer, is_studied, batch_size * seq_len)
    found = _studied(config, name.value, parameters, steps) if is_studied else _released(config, parameters, steps)
    return [
        Recommendation("num_train_steps", steps, f"{tokens:,} tokens"),
        Recommendation("batch_size", batch_size, "as asked" if is_studied else _AUTHORS_BATCH),
        Recommendation("seq_len", seq_len, "as asked, or that of the size"),
        name,
        *found,
    ]


def flags_of(recommendations: Sequence[Recommendation]) -> list[str]:
    """Return them as flags of `jaxlm train`."""
    return [word for each in recommendations for word in (f"--{each.name}", str(each.value))]


def _optimizer(asked: OptimizerName | Literal["auto"], is_studied: bool, tokens_per_step: int) -> Recommendation:
    if asked != "auto":
        value, reason = asked, "as asked"
    elif not is_studied:
        value, reason = "adamw", "the authors' optimizer"
    else:
        value, reason = "muon" if tokens_per_step >= _TOKENS_FOR_MUON else "adamw", "studies/equal_time.yaml"
    return Recommendation("optimizer.name", value, reason)


def _studied(config: ModelConfig, optimizer: OptimizerName, parameters: int, steps: int) -> list[Recommendation]:
    _, ternary, dense, study = next(row for row in _STUDIED_RATES[optimizer] if parameters <= row[0])
    rate = ternary if config.linear == "ternary" else dense
    return [
        Recommendation("optimizer.learning_rate", rate, study),
        Recommendation("optimizer.warmup_steps", min(50, max(1, steps // 10)), _OF_ALL_STUDIES),
        Recommendation("optimizer.b2", 0.99, _OF_ALL_STUDIES),
        Recommendation("optimizer.final_fraction", 0.0, _OF_ALL_STUDIES),
        Recommendation("optimizer.schedule", "linear", "studies/linear.yaml"),
    ]


def _released(config: ModelConfig, parameters: int, steps: int) -> list[Recommendation]:
    warmup = Recommendation("optimizer.warmup_steps", min(375, max(1, steps // 10)), _BITNET)
    if config.linear == "ternary":
        rate, second = next(rates for limit, *rates in _TERNARY_RATES if parameters <= limit)
        return [
            Recommendation("optimizer.schedule", "two_stage", _BITNET),
            Recommendation("optimizer.learning_rate", rate, _BITNET),
            Recommendation("optimizer.second_learning_rate", second, _BITNET),
            warmup,
        ]
    rate = next(rate for limit, rate in _DENSE_RATES if parameters <= limit)
    return [
        Recommendation("optimizer.schedule", "wsd", _SMOLLM2),
        Recommendation("optimizer.learning_rate", rate, _SMOLLM2),
        Recommendation("optimizer.weight_decay", 0.01, _SMOLLM2),
        Recommendation("optimizer.final_fraction", 0.0, _SMOLLM2),
    ]

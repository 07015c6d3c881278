"""Accuracy on a task by the number of samples: the best of N by a verifier, and the majority of N, as a picture."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from jaxlm.common.rewards.estimates import mean_majority, mean_pass_at_k
from jaxlm.common.rewards.open_task import TaskSettings, open_task
from jaxlm.common.rewards.task import grade
from jaxlm.common.sampling import SMALLEST_TEMPERATURE
from jaxlm.load import load_model
from jaxlm.ops.ternary_linear import ternarize
from jaxlm.rl.rollouts import decode_answer
from jaxlm.rl.sampler import Sampler
from shared_tokenizer.settings import check_bounds, setting

# Rows of a batch.
ROWS = 256


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(TaskSettings):
    """A model, a task, and the number of samples."""

    model: list[str] = setting(basic=True)
    """Models; each becomes two curves."""
    most_samples: int = setting(64, at_least=1)
    """Samples of each held-out prompt."""
    max_tokens: int = setting(32, at_least=1)
    """Tokens of an answer."""
    temperature: float = setting(1.0, more_than=0)
    """Divisor of the logits."""
    output: str = setting(basic=True)
    """PNG to write."""

    def __post_init__(self) -> None:
        check_bounds(self)


def benchmark(config: SamplesConfig) -> None:
    """Print the accuracy on held-out prompts of greedy answers, of the best of N and of the majority of N; draw it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    counts = [1 << power for power in range(config.most_samples.bit_length()) if 1 << power <= config.most_samples]
    print(f"{'model':<24} {'':<16}" + "".join(f"{count:>8}" for count in counts))
    for path in config.model:
        _, greedy = _sampled(config, path, samples=1, temperature=SMALLEST_TEMPERATURE)
        _print_row(path, "greedy", [greedy.mean(axis=1)])
        answers, passed = _sampled(config, path, samples=config.most_samples, temperature=config.temperature)
        # Of each prompt, so that the error of their mean is known.
        best = [np.array([mean_pass_at_k(row[None], count) for row in passed]) for count in counts]
        majority = [
            np.array([mean_majority([texts], row[None], count) for texts, row in zip(answers, passed, strict=True)])
            for count in counts
        ]
        for name, values, style in (("best of N", best, "o-"), ("majority", majority, "s--")):
            _print_row(path, name, values)
            means, errors = [each.mean() for each in values], [_error(each) for each in values]
            axes.errorbar(counts, means, errors, fmt=style, capsize=2, label=f"{Path(path).name}, {name}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("samples of each prompt, N")
    axes.set_ylabel("accuracy on held-out prompts")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(config.output, dpi=90, bbox_inches="tight")
    pyplot.close(figure)


def _error(values: np.ndarray) -> float:
    """Return the standard error of a mean over prompts `[prompts]`."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _print_row(path: str, name: str, values: list[np.ndarray]) -> None:
    """Print the means over prompts, and their standard errors below them."""
    print(f"{Path(path).name:<24} {name:<16}" + "".join(f"{each.mean():8.3f}" for each in values))
    print(f"{'':<24} {'standard error':<16}" + "".join(f"{_error(each):8.3f}" for each in values))


def _sampled(
    config: SamplesConfig, path: str, *, samples: int, temperature: float
) -> tuple[list[list[str]], np.ndarray]:
    """Return the answers to each held-out prompt, and which of them pass: bool `[prompts, samples]`."""
    task = open_task(config)
    model, params, tokenizer = load_model(path)
    if tokenizer is None:
        raise ValueError(f"{path}: found no tokenizer, expected one: prompts are text")
    prompts = [tokenizer.encode_to_continue(row["prompt"]) for row in task.held_out]
    sampler = Sampler(
        model,
        prompt_tokens=max(map(len, prompts)),
        max_tokens=config.max_tokens,
        temperature=temperature,
        stop_ids=tokenizer.stop_ids,
        seed=0,
    )
    weights = ternarize(params, model.config)
    pairs = [(number, sample) for number in range(len(prompts)) for sample in range(samples)]
    answers = list[str]()
    for start in range(0, len(pairs), ROWS):
        some = pairs[start : start + ROWS]
        filled = some + some[:1] * (ROWS - len(some))
        found = sampler.sample(weights, [prompts[number] for number, _ in filled], 0, filled)
        answers += [decode_answer(tokenizer, sample.tokens) for sample in found[: len(some)]]
    rows = [task.held_out[number] for number, _ in pairs]
    passed = grade(task.verifier, rows, answers).rewards.reshape(len(prompts), -1) >= 1
    return [answers[i : i + samples] for i in range(0, len(answers), samples)], passed

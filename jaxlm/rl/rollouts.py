"""Rollouts: sampled answers with their rewards, and the training batch that is made of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from jaxlm.common.rewards.estimates import group_advantages, mean_pass_at_k
from jaxlm.common.rewards.task import Row, Task, grade
from jaxlm.ops.ternary_linear import Params
from jaxlm.rl.rl_config import Method
from jaxlm.rl.sampler import Sample, Sampler
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Held-out prompts whose answers are shown.
_SHOWN = 8


@dataclass(frozen=True)
class Turn:
    """One answer of the model, and its reward."""

    prompt: str
    prompt_ids: list[int]
    sample: Sample
    answer: str
    reward: float
    group: int
    """Answers of one group are compared with each other: those to the same prompt."""


@dataclass
class Rollouts:
    """The answers of one step."""

    turns: list[Turn]
    faults: Counter[str] = field(default_factory=Counter)
    """Failures of the verifier, by kind."""
    first_fault: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further numbers to report."""


class Source(Protocol):
    """Where rollouts come from: a task, or a game of the model with itself."""

    prompt_tokens: int
    """Length of the longest prompt."""
    max_turns: int
    """Turns of one episode, at most: a step trains on so many answers per sample."""
    steps_per_epoch: int
    fingerprint: str

    def rollouts(self, sampler: Sampler, weights: Params, step: int, check: Callable[[], None]) -> Rollouts:
        """Return the rollouts of a step of training, counted from 1. `check` may raise, to stop."""
        ...

    def evaluate(self, sampler: Sampler, weights: Params, check: Callable[[], None]) -> dict[str, float]:
        """Return numbers on what is held out, by name; the first one is better the higher it is."""
        ...

    def show(self, sampler: Sampler, weights: Params) -> str:
        """Return some answers to what is held out, as text."""
        ...


class TaskSource:
    """Rollouts of a task: some prompts per step, each with several samples. Raises ValueError on an empty prompt."""

    max_turns = 1

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        *,
        prompts_per_step: int,
        samples_per_prompt: int,
        eval_samples: int,
        pass_reward: float,
        seed: int,
    ):
        if prompts_per_step > len(task.train):
            raise ValueError(
                f"prompts_per_step: found {prompts_per_step}, expected at most {len(task.train)}, all to train on"
            )
        self._task, self._tokenizer, self._seed = task, tokenizer, seed
        self._prompts_per_step, self._samples, self._eval_samples = prompts_per_step, samples_per_prompt, eval_samples
        self._rows, self._pass_reward = prompts_per_step * samples_per_prompt, pass_reward
        self._train, self._held_out = (
            [tokenizer.encode_to_continue(row["prompt"]) for row in rows] for rows in (task.train, task.held_out)
        )
        self.prompt_tokens = max(map(len, (*self._train, *self._held_out)))
        self.steps_per_epoch = len(task.train) // prompts_per_step
        self.fingerprint = task.fingerprint

    def rollouts(self, sampler: Sampler, weights: Params, step: int, check: Callable[[], None]) -> Rollouts:
        """Return the answers to the prompts of a step. Every prompt comes once per epoch, in an order of its own."""
        numbers = prompts_of_step(len(self._train), self._prompts_per_step, step, self._seed)
        pairs = [(number, sample) for number in numbers for sample in range(self._samples)]
        samples = sampler.sample(weights, [self._train[number] for number, _ in pairs], step, pairs)
        check()
        return self._graded([self._task.train[number] for number, _ in pairs], samples, [n for n, _ in pairs])

    def evaluate(self, sampler: Sampler, weights: Params, check: Callable[[], None]) -> dict[str, float]:
        """Return pass@1, pass@k and the mean reward of the held-out prompts, by the same random choices every time."""
        count, k = len(self._held_out), self._eval_samples
        pairs = [(number, sample) for number in range(count) for sample in range(k)]
        turns = list[Turn]()
        for start in range(0, len(pairs), self._rows):
            check()
            turns += self._held_out_turns(sampler, weights, pairs[start : start + self._rows])
        rewards = np.array([turn.reward for turn in turns]).reshape(count, k)
        passed = rewards >= self._pass_reward
        found = {"val/pass@1": mean_pass_at_k(passed, 1), "val/reward": float(rewards.mean())}
        if k > 1:
            found[f"val/pass@{k}"] = mean_pass_at_k(passed, k)
        return found

    def show(self, sampler: Sampler, weights: Params) -> str:
        """Return the answers to the first held-out prompts, each with its reward."""
        pairs = [(number, 0) for number in range(min(_SHOWN, self._rows, len(self._held_out)))]
        turns = self._held_out_turns(sampler, weights, pairs)
        return "\n".join(f"{turn.prompt}{turn.answer}  (reward {turn.reward:g})" for turn in turns)

    def _held_out_turns(self, sampler: Sampler, weights: Params, pairs: list[tuple[int, int]]) -> list[Turn]:
        """Return the answers to held-out prompts, by (prompt, sample). Step 0 is no step of training."""
        filled = pairs + pairs[:1] * (self._rows - len(pairs))  # the sampler is compiled for one number of rows
        samples = sampler.sample(weights, [self._held_out[number] for number, _ in filled], 0, filled)
        rows = [self._task.held_out[number] for number, _ in pairs]
        return self._graded(rows, samples[: len(pairs)], [number for number, _ in pairs]).turns

    def _graded(self, rows: Sequence[Row], samples: Sequence[Sample], groups: Sequence[int]) -> Rollouts:
        answers = [decode_answer(self._tokenizer, sample.tokens) for sample in samples]
        grades = grade(self._task.verifier, rows, answers)
        turns = [
            Turn(row["prompt"], self._tokenizer.encode_to_continue(row["prompt"]), sample, answer, float(reward), group)
            for row, sample, answer, reward, group in zip(rows, samples, answers, grades.rewards, groups, strict=True)
        ]
        return Rollouts(turns, grades.faults, grades.first_fault)


def prompts_of_step(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """Return the numbers of the prompts of a step, counted from 1: those of a random order that is new each epoch."""
    steps_per_epoch = count // per_step
    epoch, place = divmod(step - 1, steps_per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[place * per_step : (place + 1) * per_step].tolist()


def decode_answer(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text of an answer, without the token that ended it."""
    stops = set(tokenizer.stop_ids)
    return tokenizer.decode([token for token in tokens if token not in stops])


def advantages_of(turns: Sequence[Turn], method: Method, pass_reward: float) -> np.ndarray:
    """Return the advantage of each turn, float32 `[N]`.

    In GRPO it is that of `group_advantages`. In expert iteration it is 1 for what passes, once per prompt and answer,
    and 0 for the rest.
    """
    rewards = np.array([turn.reward for turn in turns], np.float32)
    if method == "grpo":
        return group_advantages(rewards, np.array([turn.group for turn in turns]))
    found, seen = np.zeros(len(turns), np.float32), set[tuple[str, tuple[int, ...]]]()
    for index, turn in enumerate(turns):
        key = (turn.prompt, tuple(turn.sample.tokens))
        if turn.reward >= pass_reward and key not in seen:
            seen.add(key)
            found[index] = 1
    return found


def make_batch(turns: Sequence[Turn], advantages: np.ndarray, rows: int, length: int, method: Method) -> Batch:
    """Return the batch `[rows, length]` of some turns; the rest of its rows is blank.

    The loss mask holds the tokens of answers; in expert iteration only those that are learned from. Raises ValueError
    where there are more turns than rows.
    """
    if len(turns) > rows:
        raise ValueError(f"turns: found {len(turns)}, expected at most {rows}")
    arrays: dict[str, Any] = {name: np.zeros((rows, length), np.int32) for name in ("inputs", "targets")}
    arrays["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()
    arrays["loss_mask"] = np.zeros((rows, length), bool)
    arrays |= {name: np.zeros((rows, length), np.float32) for name in ("advantages", "sampler_logprobs")}
    for row, (turn, advantage) in enumerate(zip(turns, advantages, strict=True)):
        ids = [*turn.prompt_ids, *turn.sample.tokens]
        end, start = len(ids) - 1, len(turn.prompt_ids) - 1
        arrays["inputs"][row, :end], arrays["targets"][row, :end] = ids[:-1], ids[1:]
        arrays["loss_mask"][row, start:end] = method == "grpo" or advantage != 0
        arrays["advantages"][row, start:end] = advantage
        arrays["sampler_logprobs"][row, start:end] = turn.sample.logprobs
    batch: Any = arrays
    return batch


def rollout_metrics(rollouts: Rollouts, pass_reward: float) -> dict[str, float]:
    """Return the numbers of some rollouts: rewards, pass@1, pass@k of groups of one size, lengths, faults."""
    turns = rollouts.turns
    rewards = np.array([turn.reward for turn in turns])
    found = {
        "reward/mean": float(rewards.mean()),
        "reward/answer_tokens": float(np.mean([len(turn.sample.tokens) for turn in turns])),
    }
    groups: dict[int, list[bool]] = {}
    for turn in turns:
        groups.setdefault(turn.group, []).append(turn.reward >= pass_reward)
    sizes = set(map(len, groups.values()))
    if len(sizes) == 1:
        (k,) = sizes
        passed = np.array(list(groups.values()))
        found |= {f"reward/pass@{each}": mean_pass_at_k(passed, each) for each in sorted({1, k})}
    found |= {f"reward/verifier_{kind}": float(count) for kind, count in rollouts.faults.items()}
    return found | rollouts.metrics

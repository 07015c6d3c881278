"""Advantages, the order of prompts, and the batch that is made of answers."""

from typing import Any

import numpy as np
import pytest

from jaxlm.rl.rollouts import Rollouts, Turn, advantages_of, make_batch, prompts_of_step, rollout_metrics
from jaxlm.rl.sampler import Sample


def turn(tokens, reward, group, prompt="p"):
    logprobs = -np.arange(1, len(tokens) + 1, dtype=np.float32)
    return Turn(prompt, [7, 8, 9], Sample(tokens, logprobs), "answer", reward, group)


TURNS = [turn([1, 2], 1.0, 0), turn([3], 0.0, 0), turn([1, 2], 1.0, 0), turn([5, 6, 2], 0.5, 1, "q")]


def test_advantages_of_grpo_and_of_expert_iteration():
    np.testing.assert_allclose(advantages_of(TURNS, "grpo", 1.0), [2**-0.5, -(2**0.5), 2**-0.5, 0], atol=1e-6)
    assert advantages_of(TURNS, "expert_iteration", 1.0).tolist() == [1, 0, 0, 0]
    assert advantages_of(TURNS, "expert_iteration", 0.5).tolist() == [1, 0, 0, 1]


def test_a_batch_holds_answers_behind_their_prompts():
    batch: Any = make_batch(TURNS, np.array([0.5, -1, 0, 2], np.float32), rows=5, length=5, method="grpo")
    assert batch["inputs"][0].tolist() == [7, 8, 9, 1, 0]
    assert batch["targets"][0].tolist() == [8, 9, 1, 2, 0]
    assert batch["loss_mask"].sum(axis=1).tolist() == [2, 1, 2, 3, 0]
    assert batch["targets"][3][batch["loss_mask"][3]].tolist() == [5, 6, 2]
    assert batch["sampler_logprobs"][3][batch["loss_mask"][3]].tolist() == [-1, -2, -3]
    assert batch["advantages"].sum(axis=1).tolist() == [1, -1, 0, 6, 0]


def test_expert_iteration_learns_only_what_passes():
    batch = make_batch(TURNS[:2], np.array([1, 0], np.float32), rows=2, length=5, method="expert_iteration")
    assert batch["loss_mask"].sum(axis=1).tolist() == [2, 0]


def test_more_answers_than_rows_are_refused():
    with pytest.raises(ValueError, match="turns: found 4, expected at most 3"):
        make_batch(TURNS, np.zeros(4, np.float32), rows=3, length=5, method="grpo")


def test_every_prompt_comes_once_per_epoch_in_an_order_of_its_own():
    epochs = [[prompts_of_step(10, 3, 3 * epoch + step, seed=5) for step in (1, 2, 3)] for epoch in (0, 1)]
    for epoch in epochs:
        assert len(set(np.concatenate(epoch).tolist())) == 9
    assert epochs[0] != epochs[1]
    assert prompts_of_step(10, 3, 2, seed=5) == epochs[0][1] != prompts_of_step(10, 3, 2, seed=6)


def test_metrics_of_rollouts():
    turns = [turn([1, 2], 1.0, 0), turn([3], 0.0, 0), turn([1], 0.0, 1), turn([5, 6, 2], 0.0, 1)]
    found = rollout_metrics(Rollouts(turns, metrics={"game/moves": 3.0}), 1.0)
    assert found == {
        "reward/mean": 0.25,
        "reward/answer_tokens": 1.75,
        "reward/pass@1": 0.25,
        "reward/pass@2": 0.5,
        "game/moves": 3.0,
    }

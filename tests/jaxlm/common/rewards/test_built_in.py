"""The tasks that are built in: their own answers pass, others do not."""

import pytest

from jaxlm.common.rewards.built_in import TASKS, shuffled_rows
from jaxlm.common.rewards.open_task import TaskSettings, open_task
from jaxlm.common.rewards.task import grade
from jaxlm.common.rewards.verifiers import is_balanced


@pytest.mark.parametrize("name", TASKS)
def test_answers_of_a_task_pass_and_those_of_other_prompts_do_not(name):
    task = open_task(TaskSettings(task=name, num_held_out=20))
    rows = task.held_out
    answers = [row["answer"] for row in rows]
    assert grade(task.verifier, rows, answers).rewards.tolist() == [1.0] * 20
    wrong = grade(task.verifier, rows, [f"{answer} +" if name == "functions" else f"{answer}1" for answer in answers])
    assert wrong.rewards.tolist() == [0.0] * 20 and not wrong.faults


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_different_and_always_the_same(name):
    rows = shuffled_rows(name)
    assert len({row["prompt"] for row in rows}) == len(rows) >= 200
    assert rows == shuffled_rows(name)


def test_held_out_prompts_are_not_trained_on():
    task = open_task(TaskSettings(task="addition"))
    assert len(task.held_out) == 200 and len(task.train) == 7900
    assert not {row["prompt"] for row in task.train} & {row["prompt"] for row in task.held_out}
    assert task.fingerprint == open_task(TaskSettings(task="addition")).fingerprint
    assert task.fingerprint != open_task(TaskSettings(task="addition", num_held_out=199)).fingerprint


@pytest.mark.parametrize(
    ("text", "balanced"), [("", True), ("([]{})", True), ("([)]", False), ("(", False), (")", False), ("(a)", False)]
)
def test_balance_of_brackets(text, balanced):
    assert is_balanced(text) is balanced

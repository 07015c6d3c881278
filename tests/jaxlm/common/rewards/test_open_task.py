"""Settings of a task: prompts of a file, and what is refused."""

import json

import pytest

from jaxlm.common.rewards.open_task import TaskSettings, open_task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_of_a_file_with_a_built_in_verifier(tmp_path):
    rows = [{"prompt": f"{number}?", "answer": str(number)} for number in range(10)]
    task = open_task(TaskSettings(prompts=write(tmp_path / "p.jsonl", rows), verifier="exact"))
    assert len(task.train) == 8 and len(task.held_out) == 2
    assert sorted(row["prompt"] for row in (*task.train, *task.held_out)) == [row["prompt"] for row in rows]
    assert task.verifier("3?", "3", {"answer": "3"}) == 1


def test_held_out_prompts_of_a_file(tmp_path):
    row = {"prompt": "a", "pattern": "b+"}
    path = write(tmp_path / "p.jsonl", [row])
    task = open_task(TaskSettings(prompts=path, held_out_prompts=path, verifier="pattern"))
    assert task.train == task.held_out == [row]
    assert [task.verifier("a", answer, row) for answer in ("bb", "bc")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "task, prompts: found neither"),
        ({"task": "addition", "prompts": "p"}, "task, prompts: found both"),
        ({"task": "additoin"}, "task: found 'additoin'; did you mean addition"),
        ({"task": "addition", "verifier": "exakt"}, "verifier: found 'exakt'; did you mean exact"),
        ({"task": "addition", "verifier": "unit_tests"}, "verifier unit_tests: found no 'tests' in the row of prompt"),
        ({"task": "addition", "held_out_prompts": "p"}, "held_out_prompts: has no effect without prompts"),
        ({"prompts": "p"}, "verifier: found none with prompts"),
        ({"prompts": "missing.jsonl", "verifier": "exact"}, "missing.jsonl"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, reason):
    with pytest.raises((ValueError, OSError), match=reason):
        open_task(TaskSettings(**settings))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found no rows"),
        ('{"prompt": "a"}\n{"promt": "b"}\n', 'found no "prompt" that is text, line 2'),
        ('{"prompt": "a"}\n{"prompt"\n', "found a line that is not JSON .*, line 2"),
        ('{"prompt": "a"}\n', "found 1 prompts, expected at least 5"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, text, reason):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(ValueError, match=reason):
        open_task(TaskSettings(prompts=str(tmp_path / "p.jsonl"), verifier="exact"))

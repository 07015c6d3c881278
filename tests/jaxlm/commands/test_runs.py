import fcntl
import json

import pytest

from jaxlm.commands.runs import RunsConfig, list_runs, main
from jaxlm.common.command_line import parse


def write_run(path, lines=(), artifact=False, name="config.yaml", content="model: {}\npreset: p\nnum_train_steps: 9\n"):
    path.mkdir(parents=True)
    (path / name).write_text(content)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if artifact:
        (path / "artifact").mkdir()


def test_runs_are_listed_with_state_step_and_loss(tmp_path, capsys):
    evaluated = {"step": 5, "val/loss": 2.5, "val/bits_per_byte": 1.25}
    write_run(tmp_path / "a", [evaluated, {"step": 7, "train/loss": 2.0}])
    write_run(tmp_path / "deep" / "b", [{**evaluated, "step": 9}], artifact=True)
    write_run(tmp_path / "c", content="not: a run")
    write_run(tmp_path / "d", name="finetune.yaml", content="model: m\nmethod: lora\nnum_train_steps: null\n")
    (tmp_path / "d" / "run.lock").touch()
    with (tmp_path / "d" / "run.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = {run.path.name: run for run in list_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {
        "a": "stopped",
        "b": "done",
        "c": "unreadable",
        "d": "training",
    }
    assert (found["a"].step, found["a"].steps, found["a"].loss) == (7, 9, 2.5)
    assert (found["d"].preset, found["d"].steps, found["d"].loss) == ("lora", None, None)
    main(RunsConfig(root=str(tmp_path)))
    assert "2.5000" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"root: found no folder .*nowhere; name the one that holds your runs"):
        main(RunsConfig(root=str(tmp_path / "nowhere")))
    main(RunsConfig(root=str(tmp_path)))
    assert "found no run" in capsys.readouterr().out


def test_the_folder_may_be_given_by_position():
    assert (
        parse(RunsConfig, ["elsewhere"]) == parse(RunsConfig, ["--root", "elsewhere"]) == RunsConfig(root="elsewhere")
    )
    assert parse(RunsConfig, []) == RunsConfig()


def test_a_run_that_is_continued_is_not_done_by_its_earlier_result(tmp_path):
    write_run(tmp_path / "a", [{"step": 5, "train/loss": 2.0}], artifact=True)  # of 9 steps
    assert [run.state for run in list_runs(tmp_path)] == ["stopped"]

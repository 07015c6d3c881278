import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxlm.common.architecture.presets import preset
from jaxlm.studio.reading.folders import Folders
from jaxlm.studio.reading.runs import (
    Runs,
    kill_run,
    read_notes,
    setting_differences,
    settings_to_take,
    stop_run,
    write_notes,
)


def make_run(root, name, *, steps=100, step=50, loss=3.0, **settings):
    path = root / name
    (path / "checkpoints" / str(step)).mkdir(parents=True)
    content = {"preset": "ternary-tiny", "num_train_steps": steps, "output_dir": str(path), "seed": 0} | settings
    (path / "config.yaml").write_text("model: {}\n")
    (path / "identity.json").write_text(json.dumps({"settings": content}))
    lines = [{"step": step, "train/loss": loss, "val/loss": loss, "perf/step_time_ms": 10.0}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def runs(tmp_path):
    return Runs(Folders(tmp_path))


def test_runs_are_found_at_any_place_below_the_root(tmp_path, runs):
    make_run(tmp_path, "runs/first")
    make_run(tmp_path, "elsewhere/deep/second", step=100)
    (tmp_path / "elsewhere/deep/second/artifact").mkdir()
    (tmp_path / ".hidden").mkdir()
    make_run(tmp_path / ".hidden", "third")
    found = {run.name: run for run in runs.all()}
    assert set(found) == {"runs/first", "elsewhere/deep/second"}
    assert {name for name, run in found.items() if run.has_model} == {"elsewhere/deep/second"}
    assert found["runs/first"].state == "stopped" and found["elsewhere/deep/second"].state == "done"
    assert found["runs/first"].latest["val/loss"] == 3.0 and found["runs/first"].steps == 100


def test_a_training_of_ternary_layers_is_known_before_its_first_number(tmp_path, runs):
    for linear in ("ternary", "dense"):
        make_run(tmp_path, f"runs/{linear}", model={"linear": linear})
    make_run(tmp_path, "runs/tuned", model="runs/ternary/artifact", method="qat")
    found = {run.name: run.is_ternary for run in runs.all()}
    assert found == {"runs/ternary": True, "runs/dense": False, "runs/tuned": False}


def test_a_hundred_runs_are_listed_in_a_second(tmp_path, runs):
    for number in range(100):
        make_run(tmp_path, f"runs/r{number}")
    start = time.perf_counter()
    assert len(runs.all()) == 100
    assert time.perf_counter() - start < 1


def test_what_changed_is_read_again(tmp_path, runs):
    path = make_run(tmp_path, "runs/first")
    assert runs.all()[0].step == 50
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "train/loss": 2.0}\n')
    found = runs.all()[0]
    assert found.step == 60 and found.latest["val/loss"] == 3.0


@pytest.mark.parametrize("damage", ["identity.json", "config.yaml"])
def test_a_damaged_run_is_shown_as_unreadable(tmp_path, runs, damage):
    path = make_run(tmp_path, "runs/first")
    if damage == "config.yaml":
        (path / "identity.json").unlink()
    (path / damage).write_bytes(b"[\xff")
    assert [run.state for run in runs.all()] == ["unreadable"]


def test_notes_stand_next_to_the_run(tmp_path, runs):
    path = make_run(tmp_path, "runs/first")
    write_notes(path, ["good", " good ", "", "<b>"], "a note")
    assert runs.all()[0].tags == ("good", "<b>") and runs.all()[0].note == "a note"
    with pytest.raises(ValueError, match=r"note: found 5,000 characters"):
        write_notes(path, [], "x" * 5000)
    (path / "notes.json").write_text("{")
    assert read_notes(path) == {"tags": [], "note": ""}


def test_differences_leave_out_places(tmp_path, runs):
    make_run(tmp_path, "a", seed=0, optimizer={"learning_rate": 1e-3, "b1": 0.9})
    make_run(tmp_path, "b", seed=1, optimizer={"learning_rate": 2e-3, "b1": 0.9})
    found = [runs.get(name) for name in ("a", "b")]
    assert setting_differences(found) == [("optimizer.learning_rate", [1e-3, 2e-3]), ("seed", [0, 1])]


_TRAINER = """
import fcntl, signal, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
import os
file.write(f"pid {os.getpid()} boot x\\n"); file.flush()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("end", "number"), [(stop_run, signal.SIGTERM), (kill_run, signal.SIGKILL)])
def test_a_run_of_a_terminal_is_stopped_and_killed(tmp_path, runs, end, number):
    path = make_run(tmp_path, "runs/first")
    words = [sys.executable, "-c", _TRAINER, str(path / "run.lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == "ready\n"
        run = runs.get("runs/first")
        assert run.state == "training" and run.process == trainer.pid and run.seconds_left is not None
        end(run)
        assert trainer.wait(10) == -number
    with pytest.raises(ValueError, match="no process is at work"):
        end(runs.get("runs/first"))


def test_a_lock_that_nobody_holds_names_no_process(tmp_path, runs):
    path = make_run(tmp_path, "runs/first")
    (path / "run.lock").write_text(f"pid {os.getpid()} boot x\n")
    assert runs.get("runs/first").process is None
    with (path / "run.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert runs.get("runs/first").process == os.getpid()


def test_a_path_outside_is_no_run(runs):
    with pytest.raises(ValueError, match="outside of the folders"):
        runs.get("../other")
    with pytest.raises(ValueError, match="found no run there"):
        runs.get("nothing")


def test_a_new_run_takes_the_settings_of_another_as_words(tmp_path, runs):
    model = dataclasses.asdict(preset("ternary-tiny")) | {"num_layers": 3, "vocab_size": 400, "pad_id": 3}
    optimizer = {"learning_rate": 1e-3, "num_cycles": None}
    make_run(
        tmp_path, "a", model=model, optimizer=optimizer, document_mask=True, data_dir=["d"], teacher=None, keys=["q"]
    )
    assert settings_to_take(runs.get("a")) == {
        "preset": "ternary-tiny",
        "num_train_steps": "100",
        "seed": "0",
        "optimizer.learning_rate": "0.001",
        "document_mask": "true",
        "keys": '["q"]',
        "model.num_layers": "3",
    }

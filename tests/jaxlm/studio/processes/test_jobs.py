import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlm.studio.processes.jobs import KEY_VARIABLE, Command, Jobs

# Stands for a trainer: it says when it works, saves on SIGTERM, and writes what it was given.
_TRAINER = """
import os, signal, sys, time
def leave(*_):
    open(sys.argv[1], "w").write("saved " + os.environ.get("JAXLM_STUDIO_KEY", "no key"))
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("working", *sys.argv[2:], flush=True)
time.sleep(60)
"""


class Words(Command):
    """A command of this interpreter, in place of one of jaxlm."""

    @property
    def argv(self):
        return [sys.executable, *self.words]


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs")


def test_commands_run_one_after_another_until_one_fails(jobs, tmp_path):
    words = [
        ("-c", "print('one')"),
        ("-c", "import sys; print('error: x: bad'); sys.exit(2)"),
        ("-c", "print('three')"),
    ]
    job = jobs.start("train", "t", tmp_path / "run", [Words("train", each) for each in words], cwd=tmp_path)
    wait_for(lambda: job.state != "running")
    assert job.state == "failed" and job.codes == [0, 2]
    log = job.log.read_text()
    assert "one" in log and "error: x: bad" in log and "three" not in log
    assert jobs.of(tmp_path / "run") == [job] and jobs.of(tmp_path) == []


def test_arguments_are_never_a_shell(jobs, tmp_path):
    job = jobs.start(
        "t", "t", None, [Words("t", ("-c", "import sys; print(sys.argv[1:])", "; echo $HOME", "`id`"))], cwd=tmp_path
    )
    wait_for(lambda: job.state == "done")
    assert "['; echo $HOME', '`id`']" in job.log.read_text()
    assert "'; echo $HOME'" in job.lines[0]  # as a person would have to type it


def test_stop_lets_the_command_save_and_begins_no_other(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    commands = [Words("t", ("-c", _TRAINER, str(tmp_path / "saved"))), Words("t", ("-c", "print('next')"))]
    job = jobs.start("t", "t", None, commands, cwd=tmp_path)
    wait_for(lambda: "\nworking\n" in job.log.read_text())
    assert job.state == "running" and job.pid is not None
    job.stop()
    wait_for(lambda: job.state != "running")
    assert job.state == "stopped" and (tmp_path / "saved").read_text() == "saved no key"
    assert "next" not in job.log.read_text()


def test_kill_ends_all_processes(jobs, tmp_path):
    job = jobs.start("t", "t", None, [Words("t", ("-c", _TRAINER, str(tmp_path / "saved")))], cwd=tmp_path)
    wait_for(lambda: job.pid is not None and "\nworking\n" in job.log.read_text())
    job.kill()
    wait_for(lambda: job.state != "running")
    assert job.state == "killed" and not (tmp_path / "saved").exists() and job.pid is None


_STUDIO = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.jaxlm.studio.processes.test_jobs import _TRAINER, Words
from jaxlm.studio.processes.jobs import Jobs
folder = Path(sys.argv[1])
start = {"tied": Jobs.start_tied, "free": Jobs.start}[sys.argv[2]]
jobs = Jobs(folder / "jobs")
command = Words("t", ("-c", _TRAINER, str(folder / "saved")))
if sys.argv[2] == "tied":
    jobs.start_tied("t", "t", folder, command, cwd=folder, environment={})
else:
    jobs.start("t", "t", folder, [command], cwd=folder)
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["free", "tied"])
def test_a_job_outlives_the_killed_studio_and_a_server_does_not(jobs, tmp_path, how):
    root = str(Path(__file__).parents[4])
    words = [sys.executable, "-c", _STUDIO, str(tmp_path), how, root]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root) as studio:
        assert studio.stdout is not None and studio.stdout.readline() == "started\n"
        (job,) = jobs.all()
        wait_for(lambda: "\nworking\n" in job.log.read_text())
        os.kill(studio.pid, signal.SIGKILL)
    if how == "tied":
        wait_for(lambda: job.state != "running")
        assert (tmp_path / "saved").exists()
    else:
        time.sleep(0.3)
        (found,) = Jobs(tmp_path / "jobs").all()  # of a studio that was started again
        assert found.state == "running"
        found.stop()
        wait_for(lambda: found.state == "stopped")
        assert (tmp_path / "saved").read_text().startswith("saved")


def test_a_folder_that_is_no_job_is_left_out(jobs, tmp_path):
    (tmp_path / "jobs" / "x").mkdir(parents=True)
    (tmp_path / "jobs" / "x" / "job.json").write_text("{")
    assert jobs.all() == []
    with pytest.raises(ValueError, match="found no job"):
        jobs.get("x")

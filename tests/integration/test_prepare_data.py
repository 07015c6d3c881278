"""Preparation as a command: killed, resumed, or run on a cluster, it writes the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared_tokenizer.manifest import verify_manifest
from tests.commands import run, start


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    """Return a folder with a corpus that takes some seconds, a tokenizer, and the set of an undisturbed run."""
    path = tmp_path_factory.mktemp("prepare")
    (path / "tokenizer").mkdir()
    tokenizer.save(path / "tokenizer")
    lines = (f'{{"text": "row {i} {"def add(first, second): " * (i % 50)}"}}\n' for i in range(30_000))
    (path / "corpus.jsonl").write_text("".join(lines))
    done = run(*words(path, "straight", num_workers=1))
    assert done.returncode == 0, done.stderr
    return path


def words(path, name, **options):
    options = {"num_workers": 2, "tokenizer": path / "tokenizer"} | options
    first = ["scripts/prepare_data.py", "--input", path / "corpus.jsonl", "--output_dir", path / name]
    return [str(word) for word in (*first, *(part for name, value in options.items() for part in (f"--{name}", value)))]


def wait_for_slices(path, count):
    deadline = time.monotonic() + 120
    while len(list(path.glob("slice-*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process):
    """Return the ids of the worker processes."""
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in found.stdout.split()]


def assert_same(found, expected):
    names = sorted(path.relative_to(expected) for path in expected.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(found) for path in found.rglob("*") if path.is_file())
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    verify_manifest(found)


def test_a_killed_worker_costs_nothing_but_time(workplace):
    with start(*words(workplace, "worker-killed")) as process:
        wait_for_slices(workplace / "worker-killed.partial", 1)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        assert process.wait() == 0, process.stderr
    assert_same(workplace / "worker-killed", workplace / "straight")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_preparation_goes_on_and_leaves_no_worker_behind(workplace, number):
    name = f"stopped-by-{number.name}"
    with start(*words(workplace, name)) as process:
        wait_for_slices(workplace / f"{name}.partial", 1)
        process.send_signal(signal.SIGSTOP)  # or it might end before the signal comes
        workers = workers_of(process)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        code = process.wait()
        assert "Traceback" not in process.stderr
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert not (workplace / name / "manifest.json").exists()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = {path: path.stat().st_mtime_ns for path in (workplace / f"{name}.partial").glob("slice-*.json")}
    assert kept
    done = run(*words(workplace, name))
    assert done.returncode == 0 and "resuming an interrupted preparation" in done.stdout, done.stderr
    assert_same(workplace / name, workplace / "straight")


def test_a_ray_cluster_writes_the_same_bytes(workplace):
    ray = str(Path(sys.executable).with_name("ray"))
    begin = ["start", "--head", "--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats"]
    try:
        subprocess.run([ray, *begin], check=True, capture_output=True)
        done = run(*words(workplace, "ray", executor="ray"))
    finally:
        subprocess.run([ray, "stop", "--force"], check=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert_same(workplace / "ray", workplace / "straight")
    done = run(*words(workplace, "none", executor="ray"))
    assert done.returncode == 2 and "found no running Ray cluster; start one with `ray start --head`" in done.stderr

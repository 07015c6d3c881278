"""Two processes on this machine that talk over Gloo, as several hosts would."""

import json
import os
import re
import signal
import socket
import time

import numpy as np
import pytest

from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.load import load_model
from shared_tokenizer.manifest import verify_manifest
from tests.commands import start
from tests.conftest import prepare_texts
from tests.integration.test_bad_input import assert_refused
from tests.integration.test_stop_and_resume import SHAPE, flags, train

TIMEOUT = 20


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("work")
    prepare_texts(path / "data", [f"def f{i}(x):\n    return x + {i * 7}\n" * 4 for i in range(80)], tokenizer)
    return path


def address(port, process_id):
    settings = {
        "coordinator_address": f"127.0.0.1:{port}",
        "num_processes": 2,
        "process_id": process_id,
        "timeout_s": TIMEOUT,
    }
    return [word for name, value in settings.items() for word in (f"--distributed.{name}", str(value))]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Pair:
    """Two processes of one run."""

    def __init__(self, arguments):
        port = free_port()
        self.processes = [start("scripts/train_jax.py", *arguments, *address(port, number)) for number in range(2)]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.__exit__(*error)

    def printed(self, number):
        return self.processes[number].stdout + self.processes[number].stderr

    def codes(self):
        return [process.wait() for process in self.processes]


def losses(run_dir):
    return [
        value
        for line in read_metrics(run_dir / "metrics.jsonl")
        for name, value in line.items()
        if name in ("train/loss", "val/loss")
    ]


DENSE = {"preset": "dense-tiny", "sample_tokens": 4, "num_train_steps": 20, "optimizer.schedule": "linear"}


def test_two_processes_train_as_one_does(workplace):
    # One CPU alone may round the operands of the gradients' products (see --backward_dtype).
    same = {**DENSE, "backward_dtype": "float32"}
    one = train(flags(workplace, "one", **same))
    assert one.returncode == 0, one.stderr
    # Split, so that what one process writes has to come from both.
    with Pair([*flags(workplace, "two", **same), "--mesh.fsdp", -1]) as pair:
        assert pair.codes() == [0, 0], pair.printed(0) + pair.printed(1)
        assert "2 cpu device(s) of 2 process(es): fsdp 2" in pair.printed(0)
        assert "step 20/20" in pair.printed(0)
        assert "step" not in pair.printed(1)
    found, expected = losses(workplace / "two"), losses(workplace / "one")
    print("largest relative difference", max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for path in (workplace / "two" / "checkpoints").iterdir():
        verify_manifest(path)
    verify_manifest(workplace / "two" / "artifact")
    models = [load_model(workplace / name)[1] for name in ("two", "two/artifact")]
    weights = [model["layers"]["mlp"]["up_proj"]["weight"] for model in models]
    np.testing.assert_array_equal(*weights)


def test_a_lost_process_ends_the_other_and_one_goes_on_alone(workplace):
    arguments = [*flags(workplace, "lost", num_train_steps=3000), "--mesh.fsdp", -1]
    with Pair(arguments) as pair:
        pair.processes[0].wait_for("step 30/")
        pair.processes[1].send_signal(signal.SIGKILL)
        start = time.monotonic()
        assert pair.processes[0].wait(TIMEOUT + 60) != 0
        # Its connection is reset, or else its heartbeat is missed.
        assert re.search("error: process 0: a device or another process failed|another task died", pair.printed(0))
        print(f"ended after {time.monotonic() - start:.0f} s: {pair.printed(0)[-1000:]}")
    last = sorted(int(path.name) for path in (workplace / "lost" / "checkpoints").iterdir() if path.name.isdigit())[-1]
    config = workplace / "lost" / "config.yaml"
    changed = config.read_text("utf-8").replace("num_train_steps: 3000", f"num_train_steps: {last + 10}")
    config.write_text(changed, "utf-8")
    resumed = train(["--config", config, "--resume", "true"])
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stdout
    assert "1 cpu device(s) of 1 process(es)" in resumed.stdout
    assert read_metrics(workplace / "lost" / "metrics.jsonl")[-1]["step"] == last + 10
    verify_manifest(workplace / "lost" / "artifact")


def test_a_signal_to_one_stops_both_at_the_same_step(workplace):
    # The sizes are left to the device: both have to choose the same.
    arguments = [*flags(workplace, "stopped", num_train_steps=3000, batch_size="auto"), "--mesh.fsdp", -1]
    with Pair(arguments) as pair:
        pair.processes[0].wait_for("step 5/")
        pair.processes[1].send_signal(signal.SIGTERM)
        assert pair.codes() == [0, 0], pair.printed(0) + pair.printed(1)
        assert "SIGTERM: saved step" in pair.printed(0)
        assert "batch_size auto: " in pair.printed(0)
        saved = max(int(path.name) for path in (workplace / "stopped" / "checkpoints").iterdir())
        assert f"saved step {saved}." in pair.printed(0)
    verify_manifest(workplace / "stopped" / "checkpoints" / str(saved))


def test_what_one_process_refuses_is_refused_by_both(workplace):
    (workplace / "taken").mkdir()
    (workplace / "taken" / "file").write_text("")
    with Pair(flags(workplace, "taken")) as pair:
        assert pair.codes() == [2, 2]
        assert "error: " in pair.printed(0) and "is not empty and holds no run" in pair.printed(0)
        assert "error: process 0 failed: " in pair.printed(1)


def test_a_coordinator_that_nobody_reaches_is_one_line(workplace):
    port = free_port()
    for number in (0, 1):
        words = [word if word != str(TIMEOUT) else "3" for word in address(port, number)]
        start = time.monotonic()
        done = train([*flags(workplace, "nobody"), *words])
        assert_refused(done, f"coordinator 127.0.0.1:{port}", f"process {number} of 2", "within 3 s")
        assert time.monotonic() - start < 60
    assert not (workplace / "nobody").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["--mesh.data", 3],
            "mesh: found data 3 x fsdp 1 x sequence 1 x tensor 1, expected sizes that multiply to the 1 devices",
        ),
        (["--mesh.fsdp", 2], "mesh: found"),
        (["--distributed.num_processes", 2], "distributed: found some of"),
    ],
)
def test_what_does_not_fit_is_one_line(workplace, settings, words):
    assert_refused(train([*flags(workplace, "no-mesh"), *settings]), words)
    assert not (workplace / "no-mesh").exists()


def test_a_batch_that_does_not_divide_is_one_line(workplace, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8")
    assert_refused(train(flags(workplace, "no-batch")), "batch_size: found 4, expected a multiple of 8 (mesh.data 8")
    model = json.dumps(SHAPE | {"num_heads": 2})
    wide = [*flags(workplace, "no-batch", batch_size=8, model=model), "--mesh.tensor", 4]
    assert_refused(train(wide), "mesh.tensor: found 4, expected a divisor of the model's num_heads 2")
    assert not (workplace / "no-batch").exists()

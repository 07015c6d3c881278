"""A run that was killed and resumed, read back from what the trackers wrote by their own readers."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxlm.common.run.metrics_log import MetricsLog, read_metrics
from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.run.summary import plot_losses as draw_losses
from jaxlm.common.run.training_loop import write_sample
from jaxlm.common.trackers.trackers import open_trackers

ROOT = Path(__file__).parent.parent.parent
MANIFEST = f"{'0' * 64}  model.safetensors\n"
SAMPLE = "# no heading\n<script>alert(1)</script> \x1b[31m \u202eabc"


def train_killed(run: RunDirectory, name: str, first: int, last: int) -> None:
    """Do what `train` does in a process that is killed after its last line."""
    program = (
        "import os, pathlib\n"
        "from jaxlm.common.run.run_directory import RunDirectory\n"
        "from tests.witness.test_trackers import train\n"
        f"train(RunDirectory(pathlib.Path({str(run.path)!r})), {name!r}, {first}, {last}, killed=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


def train(run: RunDirectory, name: str, first: int, last: int, *, killed: bool) -> None:
    """Write what a trainer writes, in steps of 2, with the tracker `name`."""
    notes: list[str] = []
    manager = open_trackers([name], run, "config.yaml", notes.append)
    trackers = manager.__enter__()
    log = MetricsLog(run.metrics, first)
    trackers.begin()
    for step in range(first + 2, last + 1, 2):
        for line in ({"step": step, "train/loss": 10 / 3 / step + first}, {"step": step, "val/loss": 7 / step}):
            log.write(line)
            trackers.write(line)
        write_sample(run.samples, step, f"{SAMPLE} {step}")
    if not killed:
        draw_losses(read_metrics(run.metrics), run.loss_plot)
        run.artifact.mkdir()
        (run.artifact / "MANIFEST.sha256").write_text(MANIFEST)
        manager.__exit__(None, None, None)
    assert notes == []


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "study" / "mine").mkdir(parents=True)
    found = RunDirectory(tmp_path / "study" / "mine")
    (found.path / "config.yaml").write_text(yaml.safe_dump({"model": {"num_layers": 2}, "seed": 3}))
    for variable, value in (
        ("WANDB_MODE", "offline"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("TRACKIO_DIR", str(tmp_path / "trackio")),
    ):
        monkeypatch.setenv(variable, value)
    return found


def expected(run, name):
    return [(line["step"], line[name]) for line in read_metrics(run.metrics) if name in line]


def test_tensorboards_own_reader_finds_the_numbers_of_the_log(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_killed(run, "tensorboard", 0, 10)
    watching = EventAccumulator(str(run.path / "tensorboard"))
    train(run, "tensorboard", 6, 12, killed=False)
    watching.Reload()
    for name in ("train/loss", "val/loss"):
        found = [(event.step, event.value) for event in watching.Scalars(name)]
        assert found == [(step, np.float32(value)) for step, value in expected(run, name)]
    samples = watching.Tensors("sample")
    assert [event.step for event in samples] == [2, 4, 6, 8, 10, 12]
    text = samples[0].tensor_proto.string_val[0].decode()
    assert text == "\n".join(f"    {line}" for line in f"{SAMPLE} 2".split("\n"))
    (config,) = watching.Tensors("config")
    assert "num_layers: 2" in config.tensor_proto.string_val[0].decode()
    (picture,) = watching.Images("pictures/loss")
    assert picture.encoded_image_string == run.loss_plot.read_bytes() and picture.width > 100
    assert "model.safetensors" in watching.Tensors("result/manifest")[0].tensor_proto.string_val[0].decode()


def wandb_records(path: Path) -> list:
    """Return the records of a `.wandb` file, which is a log of LevelDB's form."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, part, found = path.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found


def test_wandbs_offline_files_hold_the_numbers_of_the_log(run):
    pytest.importorskip("wandb")
    train_killed(run, "wandb", 0, 10)
    train(run, "wandb", 6, 12, killed=False)
    (path,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 20
    records = wandb_records(path)
    while not any(record.HasField("exit") for record in records):
        records = wandb_records(path)
        assert time.monotonic() < deadline, "the service of wandb has not written its last record"
        time.sleep(0.1)
    lines = []
    for record in records:
        if record.HasField("history"):
            items = {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            lines.append({name[-1] if name[0] != "pictures/loss" else name: value for name, value in items.items()})
    assert [line["_step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    for name in ("train/loss", "val/loss"):
        assert [(line["_step"], line[name]) for line in lines] == expected(run, name)
    assert [line["sample"] for line in lines] == [f"{SAMPLE} {step}" for step in range(2, 13, 2)]
    assert lines[-1]["result/manifest"] == MANIFEST
    picture = path.parent / "files" / lines[-1]["pictures/loss", "path"]
    assert picture.read_bytes() == run.loss_plot.read_bytes()
    (described,) = (record.run for record in records if record.HasField("run"))
    config = {update.key: json.loads(update.value_json) for update in described.config.update}
    assert config["model"] == {"num_layers": 2} and config["seed"] == 3
    assert (described.display_name, described.run_group, described.project) == ("mine", "study", "jaxlm")


def test_trackios_database_holds_the_numbers_of_the_log(run):
    trackio = pytest.importorskip("trackio")
    train_killed(run, "trackio", 0, 10)
    train(run, "trackio", 6, 12, killed=False)
    (found,) = trackio.Api().runs("jaxlm")
    lines = trackio.SQLiteStorage.get_logs("jaxlm", "mine", run_id=found.id)
    for name in ("train/loss", "val/loss"):
        assert [(line["step"], line[name]) for line in lines if name in line] == expected(run, name)
    assert [line["sample"] for line in lines if "sample" in line] == [f"{SAMPLE} {step}" for step in range(2, 13, 2)]
    assert [line["result/manifest"] for line in lines if "result/manifest" in line] == [MANIFEST]
    assert found.config["seed"] == 3

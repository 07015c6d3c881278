"""Whole runs in this process: continued with more steps, closed outputs, other data, damaged results, full disks."""

import dataclasses
import errno
import json
import os
import sys

import numpy as np
import pytest

from jaxlm.checkpoints.checkpoint import newest_complete_step
from jaxlm.common.objectives.length_course import length_course
from jaxlm.common.objectives.quantization_course import QuantizationCourse
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.run.run_directory import read_run_config
from jaxlm.load import load_model, model_fingerprint
from jaxlm.training.program import kinds_of_steps
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.trainer import train
from shared_tokenizer.manifest import verify_manifest
from tests.conftest import prepare_texts


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with two shard sets."""
    path = tmp_path_factory.mktemp("runs")
    for name, factor in (("data", 7), ("other", 11)):
        texts = [f"def f{number}(x):\n    return x + {number * factor}\n" * 4 for number in range(40)]
        prepare_texts(path / name, texts, tokenizer)
    return path


def config(place, name, **settings):
    settings = {
        "data_dir": [str(place / "data")],
        "preset": "dense-tiny",
        "model": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2},
        "num_train_steps": 4,
        "batch_size": 4,
        "seq_len": 16,
        "eval_every_steps": 0,
        "eval_batches": 1,
        "checkpoint_every_steps": 2,
        "sample_tokens": 0,
        "log_every_steps": 1,
        "optimizer": OptimizerConfig(warmup_steps=100),
    } | settings
    return TrainConfig(output_dir=str(place / name), **settings)


@pytest.fixture(scope="module")
def finished(place):
    """The settings of a finished run of four steps."""
    settings = config(place, "finished")
    assert train(settings)
    return settings


def test_a_finished_run_goes_on_with_more_steps_and_loses_nothing(place, finished, capsys):
    run = place / "finished"
    before = (run / "artifact" / "model.safetensors").read_bytes()
    first = read_metrics(run / "metrics.jsonl")
    assert train(dataclasses.replace(finished, resume=True, num_train_steps=7))
    printed = capsys.readouterr().out
    assert "num_train_steps: 4 before, now 7; schedule stretched: step 5 has learning rate" in printed
    assert "the one before is kept as" in printed and "resuming after step 4" in printed
    lines = read_metrics(run / "metrics.jsonl")
    assert lines[:4] == first and [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    recorded = read_run_config(run)
    assert recorded["num_train_steps"] == 7 and recorded["schedule_changes"][0]["step"] == 4
    assert (run / "artifact-step-4" / "model.safetensors").read_bytes() == before
    assert (run / "artifact" / "model.safetensors").read_bytes() != before
    for name in ("artifact", "artifact-step-4"):
        verify_manifest(run / name)
    assert newest_complete_step(run / "checkpoints", print) == 7
    assert [line.partition(" ")[2] for line in (run / "run.log").read_text().splitlines()] == [
        "training from step 0 to 4",
        "done: step 4",
        "training from step 4 to 7",
        "done: step 7",
    ]


def test_a_run_starts_from_the_last_checkpoint_of_another(place, finished, capsys):
    started = config(place, "started", init_from=finished.output_dir, num_train_steps=1)
    fingerprint = model_fingerprint(place / "finished")
    assert train(started)
    step = newest_complete_step(place / "finished" / "checkpoints", print)
    assert f"init_from: {finished.output_dir}, step {step}" in capsys.readouterr().out
    identity = json.loads((place / "started" / "identity.json").read_text())
    assert identity["fingerprints"]["init_from"] == fingerprint
    trained = read_metrics(place / "started" / "metrics.jsonl")[0]["train/loss"]
    assert trained < read_metrics(place / "finished" / "metrics.jsonl")[0]["train/loss"]


def test_a_run_that_has_lost_its_checkpoints_starts_from_its_initial_model_again(place, finished, capsys):
    settings = config(place, "lost", init_from=finished.output_dir, num_train_steps=2)
    assert train(settings)
    before = read_metrics(place / "lost" / "metrics.jsonl")
    for checkpoint in (place / "lost" / "checkpoints").iterdir():
        (checkpoint / "MANIFEST.sha256").unlink()
    capsys.readouterr()
    assert train(dataclasses.replace(settings, resume=True))
    printed = capsys.readouterr().out
    assert "checkpoint 2 is damaged" in printed and f"init_from: {finished.output_dir}, step" in printed
    after = read_metrics(place / "lost" / "metrics.jsonl")
    assert [line["train/loss"] for line in after] == [line["train/loss"] for line in before]


def test_muon_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(place):
    settings = config(place, "muon", optimizer=OptimizerConfig(name="muon", warmup_steps=0))
    assert train(settings)
    before = (place / "muon" / "artifact" / "model.safetensors").read_bytes()
    (place / "muon" / "checkpoints" / "4" / "MANIFEST.sha256").unlink()
    assert train(dataclasses.replace(settings, resume=True))
    assert "training from step 2 to 4" in (place / "muon" / "run.log").read_text()
    assert (place / "muon" / "artifact" / "model.safetensors").read_bytes() == before


def test_lengths_that_change_resume_equal_to_the_bit(place, capsys):
    settings = config(place, "lengths", seq_len_schedule="8:0.5,16:1", seq_len=256, checkpoint_every_steps=1)
    settings = dataclasses.replace(settings, keep_last_checkpoints=4)
    assert settings.seq_len == 16 and train(settings)
    assert "4 of 8 x 8, then 4 x 16 = 64 tokens" in capsys.readouterr().out
    run = place / "lengths"
    before, lines = (run / "artifact" / "model.safetensors").read_bytes(), read_metrics(run / "metrics.jsonl")
    assert [line["data/seq_len"] for line in lines if "train/loss" in line] == [8, 8, 16, 16]
    for step in (2, 3, 4):
        (run / "checkpoints" / str(step) / "MANIFEST.sha256").unlink()
    assert train(dataclasses.replace(settings, resume=True))
    assert "training from step 1 to 4" in (run / "run.log").read_text()
    assert (run / "artifact" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 32}, "seq_len: found 32 with seq_len_schedule 8:0.5,16:1, expected its longest, 16"),
        ({"offload": "optimizer"}, "offload: found optimizer on CPUs, whose memory is that of the host; leave it out"),
        ({"loss_chunks": 16}, "loss_chunks: found 16, expected a divisor of 8 of seq_len_schedule, or 0"),
        ({"objective": "orpo"}, "seq_len_schedule: found with objective orpo"),
        (
            {"seq_len_schedule": "1024:1", "seq_len": 256},
            "seq_len_schedule: found 1024, expected at most the model's max_seq_len",
        ),
    ],
)
def test_lengths_that_do_not_fit_are_refused(place, settings, message):
    with pytest.raises(ValueError, match=message):
        train(config(place, "lengths_refused", **{"seq_len_schedule": "8:0.5,16:1", "seq_len": 16} | settings))
    assert not (place / "lengths_refused").exists()


def test_the_kind_of_every_step_is_compiled():
    for float_steps, mixed_steps in ((0, 0), (0, 3), (2, 0), (3, 4)):
        course, lengths = QuantizationCourse(float_steps, mixed_steps), length_course("8:0.25,16:0.5,32:1", 32, 12)
        for first in (0, 4, 11):
            expected = [(course.phase(step), lengths.length(step)) for step in range(first, 12)]
            found = kinds_of_steps(course, lengths, first, 11)
            assert [(kind.phase, kind.length) for kind in found] == list(dict.fromkeys(expected))


class Dying:
    """A terminal or pipe that closes when a line is printed."""

    def __init__(self, words, number):
        self.words, self.number, self.printed, self.is_dead = words, number, "", False

    def write(self, text):
        self.is_dead = self.is_dead or self.words in text
        if self.is_dead:
            raise OSError(self.number, os.strerror(self.number))
        self.printed += text

    def flush(self):
        self.write("")


def test_a_closed_pipe_saves_and_ends_the_run(place, monkeypatch):
    run = place / "closed"
    monkeypatch.setattr(sys, "stdout", Dying("step 3/", errno.EPIPE))
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    assert not train(config(place, run.name, num_train_steps=400, checkpoint_every_steps=0))
    monkeypatch.undo()
    step = newest_complete_step(run / "checkpoints", print)
    assert 1 <= step < 400
    assert (run / "run.log").read_text().splitlines()[-1].endswith(f"SIGPIPE: saved step {step}")
    load_model(run)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_of_its_data(place, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("jaxlm.training.trainer.ProgramBuilder.compile", kill)
        with pytest.raises(Killed):
            train(config(place, "killed"))
    other = config(place, "killed", data_dir=[str(place / "other")], resume=True)
    with pytest.raises(ValueError, match=r"was trained with data .*resume with the same data, or start a new run"):
        train(other)


def test_what_was_refused_late_leaves_nothing_and_the_corrected_command_works(place, monkeypatch):
    def too_large(*_):
        raise ValueError("memory: parameters, optimizer state and codes need 900 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("jaxlm.training.program.check_state_fits", too_large)
        with pytest.raises(ValueError, match="memory"):
            train(config(place, "large"))
    assert not (place / "large").exists()


def test_the_settings_of_a_checkpoint_are_its_own_witness(place, finished):
    resumed = dataclasses.replace(finished, resume=True, num_train_steps=7, seed=5)
    with pytest.raises(ValueError, match="belongs to another config: seed was 0 and is now 5"):
        train(resumed)
    # Also where identity and settings file are of another hand.
    run = place / "finished"
    text = (run / "config.yaml").read_text()
    (run / "identity.json").rename(run / "identity.away")
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    with pytest.raises(ValueError, match="belongs to another config: seed was 0 and is now 5"):
        train(resumed)
    (run / "config.yaml").write_text(text)
    (run / "identity.away").replace(run / "identity.json")
    assert np.isfinite(read_metrics(run / "metrics.jsonl")[-1]["train/loss"])

import json
import math

import numpy as np
import pytest
from rich.console import Console

from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.run.training_report import ReportPlan, TrainingReport
from jaxlm.common.ternary_health import FLIPS, ZEROS, by_layer


@pytest.fixture
def report(tmp_path):
    plan = ReportPlan(num_train_steps=9, log_every_steps=4, tokens_per_step=16, tokens_per_epoch=64)
    return TrainingReport(plan, RunDirectory(tmp_path), 0, lambda: 3, Console(quiet=True))


def numbers(loss: float, grad_norm: float = 1.0):
    return {"train/loss": loss, "train/grad_norm": grad_norm, "train/param_norm": 1.0}


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_the_first_every_fourth_and_the_last_step_are_logged(report, tmp_path):
    with report.training():
        for step in range(1, 10):
            report.step(step, numbers(10 - step))
            # A step is reported when the next one is under way, the first at once.
            assert any(line["step"] == step for line in lines(tmp_path)) == (step == 1)
        report.flush()
    found = lines(tmp_path)
    assert [(line["step"], line["train/loss"], line["data/tokens_seen"]) for line in found] == [
        (1, 9, 16),
        (4, 6, 64),
        (8, 2, 128),
        (9, 1, 144),
    ]
    assert all(line["perf/tokens_per_second"] > 0 for line in found)


def test_numbers_by_layer_are_a_list_in_the_file_and_nothing_on_the_console(tmp_path, capsys):
    plan = ReportPlan(num_train_steps=1, log_every_steps=1, tokens_per_step=16, tokens_per_epoch=64)
    console = Console(width=200)
    report = TrainingReport(plan, RunDirectory(tmp_path), 0, lambda: None, console)
    health = {ZEROS: 0.25, FLIPS: 0.5, by_layer(FLIPS): np.array([1 / 3, math.nan, 0.0], np.float32)}
    with report.training():
        report.step(1, numbers(2) | health)
    (line,) = lines(tmp_path)
    assert line[by_layer(FLIPS)] == [0.33333, None, 0.0] and line[FLIPS] == 0.5
    (shown,) = capsys.readouterr().out.splitlines()
    assert "zeros 25.0%  flips 50.00%" in shown and "33" not in shown


def test_what_is_done_beside_training_is_no_training_time(report, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with report.training():
        now[0] = 1.0
        report.step(1, numbers(2))
        with report.pause():
            now[0] = 100.0
            report.evaluation(1, loss=3, bits_per_byte=2, metrics={"quantize/lambda": 0.5})
        now[0] = 104.0
        report.step(4, numbers(1))
        report.flush()
    first, second = lines(tmp_path)
    assert (first["val/loss"], first["quantize/lambda"], first["perf/step_time_ms"]) == (3, 0.5, 1000)
    assert second["perf/step_time_ms"] == pytest.approx(4000 / 3, abs=0.01)


def test_a_held_out_loss_that_has_risen_is_said(report):
    report.evaluation(2, loss=2.0, bits_per_byte=1.0)
    assert report.overfitting(2.01) is None
    assert "was lower at step 2 (2.0000)" in (report.overfitting(3.0) or "")


def test_the_picture_is_drawn_while_training_and_seldom(report, tmp_path, monkeypatch):
    now, drawn = [0.0], []

    def draw(lines, path):
        drawn.append((now[0], len(lines)))
        now[0] += 2.0

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("jaxlm.common.run.training_report.plot_losses", draw)
    with report.training():
        for step in range(1, 100):
            now[0] += 10.0
            report.step(step, numbers(2))
        report.flush()
    assert drawn[0] == (10.0, 1) and len(drawn) == 5  # 1 % of the time
    report.evaluation(99, loss=3, bits_per_byte=2)
    assert len(drawn) == 6


def test_a_picture_that_cannot_be_drawn_ends_no_run(report, tmp_path, capsys):
    (tmp_path / "loss.png").mkdir()
    report.evaluation(2, loss=2.0, bits_per_byte=1.0)
    assert lines(tmp_path) == [{"step": 2, "val/loss": 2.0, "val/bits_per_byte": 1.0, "data/tokens_seen": 32}]


def test_a_log_that_is_damaged_meanwhile_ends_no_run(report, tmp_path):
    report.evaluation(1, loss=2.0, bits_per_byte=1.0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"#" + path.read_bytes()[1:])
    report.evaluation(2, loss=2.0, bits_per_byte=1.0)
    assert path.read_bytes().count(b"\n") == 2


class Number:
    """A number that whoever reads it has to wait for."""

    def __init__(self, clock, ready):
        self.clock, self.ready = clock, ready

    def __float__(self):
        self.clock[0] = max(self.clock[0], self.ready)
        return 1.0


@pytest.mark.parametrize("works_while_handed_over", [True, False])
def test_every_step_takes_its_own_time_around_a_pause(tmp_path, monkeypatch, works_while_handed_over):
    clock, free = [0.0], [0.0]  # the time now, and when the device has done all that it was given
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    config = ReportPlan(num_train_steps=9, log_every_steps=1, tokens_per_step=16, tokens_per_epoch=64)
    report = TrainingReport(config, RunDirectory(tmp_path), 0, lambda: None, Console(quiet=True))
    with report.training():
        for step in range(1, 10):
            free[0] = max(clock[0], free[0]) + 2.0
            if works_while_handed_over:
                clock[0] = free[0]
            value = Number(clock, free[0])
            report.step(step, {"train/loss": value, "train/grad_norm": value, "train/param_norm": value})
            if step in (1, 4, 5):
                with report.pause():
                    clock[0] += 100
        report.flush()
    assert [line["perf/step_time_ms"] for line in lines(tmp_path)] == [2000] * 9


@pytest.mark.parametrize("values", [numbers(float("nan")), numbers(1, float("inf"))])
def test_numbers_that_are_not_finite_end_the_run(report, values):
    report.step(5, values)
    with pytest.raises(FloatingPointError, match=r"step 5: train/\w+ is (nan|inf); the last checkpoint is of step 3"):
        report.flush()


def test_an_end_before_the_first_checkpoint_says_that_there_is_none():
    config = ReportPlan(num_train_steps=9, log_every_steps=4, tokens_per_step=16, tokens_per_epoch=64)
    early = TrainingReport(config, None, 0, lambda: None, Console(quiet=True))
    with pytest.raises(FloatingPointError, match="step 1: train/loss is nan; there is no checkpoint yet"):
        early.step(1, numbers(float("nan")))

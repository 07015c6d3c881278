import json
import time

import pytest

from jaxlm.common.run.metrics_log import MetricsLog, read_metrics
from jaxlm.studio.reading.metrics_tail import MetricsTail, last_lines


def line(step, **values):
    return json.dumps({"step": step, **{name.replace("_", "/", 1): value for name, value in values.items()}}) + "\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_it_follows_the_log_of_a_training(path):
    log = MetricsLog(path, 0)
    tail = MetricsTail(path)
    for step in range(1, 50):
        log.write({"step": step, "train/loss": 5.0 - step / 50})
        if step % 10 == 0:  # added to the line that is there
            log.write({"step": step, "val/loss": 4.0})
        tail.refresh()
        assert tail.latest["step"] == step
    assert list(tail.lines) == read_metrics(path)
    assert [point[0] for point in tail.curve("val/loss")] == [10, 20, 30, 40]
    assert not tail.refresh()


def test_a_resumed_run_is_read_anew(path):
    log = MetricsLog(path, 0)
    tail = MetricsTail(path)
    for step in range(1, 21):
        log.write({"step": step, "train/loss": 1.0})
    tail.refresh()
    log = MetricsLog(path, 10)
    log.write({"step": 11, "train/loss": 2.0})
    tail.refresh()
    assert list(tail.lines) == read_metrics(path)
    assert tail.latest == {"step": 11, "train/loss": 2.0}


def test_a_long_file_is_thinned_out_fast_and_in_bounded_memory(path):
    with path.open("w") as file:
        for step in range(1, 100_001):
            extra = {"val_loss": 3.0} if step % 500 == 0 else {}
            file.write(line(step, train_loss=5.0, **extra))
    tail, start = MetricsTail(path, points=600), time.perf_counter()
    tail.refresh()
    assert time.perf_counter() - start < 2
    assert 600 <= len(tail.lines) <= 2500 and tail.latest["step"] == 100_000
    assert len(tail.curve("val/loss")) == 200
    kept = len(tail.lines)
    with path.open("a") as file:
        for step in range(100_001, 200_001):
            file.write(line(step, train_loss=5.0))
    tail.refresh()
    assert len(tail.lines) <= 2 * kept and tail.latest["step"] == 200_000
    steps = [each["step"] for each in tail.lines]
    assert steps == sorted(set(steps))


def test_a_damaged_line_is_counted_and_a_line_cut_short_waits(path):
    path.write_text(line(1, train_loss=1.0) + "not json\n[1]\n" + line(2, train_loss=2.0) + '{"step": 3, "tra')
    tail = MetricsTail(path)
    tail.refresh()
    assert tail.damaged == 2 and [each["step"] for each in tail.lines] == [1, 2]
    path.write_text(path.read_text() + 'in/loss": 3.0}\n')
    tail.refresh()
    assert tail.latest == {"step": 3, "train/loss": 3.0}


def test_no_file_and_a_file_that_is_gone(path):
    tail = MetricsTail(path)
    assert not tail.refresh() and not tail.latest
    path.write_text(line(1, train_loss=1.0))
    assert tail.refresh()
    path.unlink()
    assert tail.refresh() and not tail.lines
    assert last_lines(path) == []


def test_numbers_that_are_none_are_no_points(path):
    path.write_text(
        '{"step": 1, "train/loss": NaN}\n{"step": 2, "train/loss": "<script>"}\n{"step": 3, "train/loss": 1}\n'
    )
    tail = MetricsTail(path)
    tail.refresh()
    assert tail.curve("train/loss") == [[3, 1]]

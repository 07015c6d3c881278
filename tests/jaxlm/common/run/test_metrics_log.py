import json

import pytest

from jaxlm.common.run.metrics_log import MetricsLog, read_metrics


def test_metrics_hold_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "train/loss": step / 2})
    log.write({"step": 3, "val/loss": 9.0})
    log.write({"step": 4, "train/loss": 2.0})
    with path.open("a") as file:
        file.write('{"step": 5, "train/lo')  # cut short by a kill
    assert read_metrics(path)[2] == {"step": 3, "train/loss": 1.5, "val/loss": 9.0}
    log = MetricsLog(path, 3)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    log.write({"step": 3, "val/loss": 8.0})
    log.write({"step": 4, "train/loss": 1.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[2] == {"step": 3, "train/loss": 1.5, "val/loss": 8.0}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("garbage\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: holds a line that is not JSON"):
        MetricsLog(tmp_path / "metrics.jsonl", 0)

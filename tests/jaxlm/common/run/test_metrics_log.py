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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", r"found '\{\}', expected an object with a step, line 2"),
        (b"5", "found '5', expected an object with a step, line 2"),
        (b'{"rtep": 2}', "expected an object with a step, line 2"),
        (b'{"step": true}', "expected an object with a step, line 2"),
        (b'{"step": "2"}', "expected an object with a step, line 2"),
        (b'{"step": 2, "a": "\xff"}', "holds a line that is not JSON .*line 2"),
        (b'{"step": 1}', "found step 1 after step 1, expected rising steps, line 2"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl: .*{message}; repair it or move the file away"):
        read_metrics(path)


def test_a_kill_while_a_line_grows_loses_no_number(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write({"step": 40, "train/loss": 2.0})
    contents = []

    class Watched(type(path)):
        """A path whose file is read after everything that is done to it."""

        def open(self, *arguments, **options):
            file = super().open(*arguments, buffering=0, **options)
            return WatchedFile(file)

    class WatchedFile:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def __getattr__(self, name):
            def act(*arguments):
                found = getattr(self._file, name)(*arguments)
                contents.append(path.read_bytes())
                return found

            return act

    log._path = Watched(path)
    log.write({"step": 40, "val/loss": 3.0})
    assert contents and all(json.loads(content)["train/loss"] == 2.0 for content in contents)
    assert read_metrics(path) == [{"step": 40, "train/loss": 2.0, "val/loss": 3.0}]


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        log.write({"step": 1})


def test_a_line_that_is_nested_without_end_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": ' + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: holds a line that is not JSON .* line 1;"):
        read_metrics(tmp_path / "metrics.jsonl")

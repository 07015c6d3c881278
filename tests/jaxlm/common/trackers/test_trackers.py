import json
import sys
import types

import pytest
import yaml

from jaxlm.common.run.metrics_log import MetricsLog
from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.run.training_loop import write_sample
from jaxlm.common.trackers.command import ReportConfig, main
from jaxlm.common.trackers.trackers import open_trackers
from shared_tokenizer.locks import locked_file


class Record:
    """A tracker that keeps what it is sent."""

    def __init__(self, run, sent=0, fails_at=None):
        self.run, self.sent, self.fails_at, self.got, self.ended = run, sent, fails_at, [], None

    def numbers(self, step, values):
        if step == self.fails_at:
            raise RuntimeError("no room\nat the server")
        self.got.append((step, values))

    def text(self, step, name, text):
        self.got.append((step, name, text))

    def picture(self, step, name, path):
        self.got.append((step, name, path.name))

    def close(self, *, failed):
        self.ended = failed


@pytest.fixture
def run(tmp_path):
    (tmp_path / "study" / "mine").mkdir(parents=True)
    found = RunDirectory(tmp_path / "study" / "mine")
    (found.path / "config.yaml").write_text(yaml.safe_dump({"model": {"num_layers": 2}, "seed": 3}))
    return found


@pytest.fixture
def records(monkeypatch):
    """The records of the trackers `one` and `other`, as they are opened, and the settings of the next."""
    found, settings = [], {}

    def open_tracker(run):
        found.append(Record(run, **settings))
        return found[-1]

    for name in ("one", "other"):
        module = types.SimpleNamespace(open_tracker=open_tracker)
        monkeypatch.setitem(sys.modules, f"jaxlm.common.trackers.{name}_tracker", module)
    return found, settings


def steps(record):
    return [step for step, *_ in record.got]


def test_a_run_is_sent_from_its_first_line_to_its_result(run, records):
    with open_trackers(["one"], run, "config.yaml", print) as trackers:
        log = MetricsLog(run.metrics, 0)
        trackers.begin()
        for step in (1, 2, 3):
            line = {"step": step, "train/loss": 1 / step, "kind": "no number", "stopped": False, "zeros": [0.5]}
            log.write(line)
            trackers.write(line)
            if step == 2:
                write_sample(run.samples, 2, "<script>alert(1)</script>")
        run.loss_plot.write_bytes(b"png")
        run.artifact.mkdir()
        (run.artifact / "MANIFEST.sha256").write_text("0123  model.safetensors\n")
        write_sample(run.samples, 3, "the last")
    (record,) = records[0]
    assert record.got == [
        (1, {"train/loss": 1.0}),
        (2, {"train/loss": 0.5}),
        (2, "sample", "<script>alert(1)</script>"),
        (3, {"train/loss": 1 / 3}),
        (3, "sample", "the last"),
        (3, "pictures/loss", "loss.png"),
        (3, "result/manifest", "0123  model.safetensors\n"),
    ]
    assert (record.run.name, record.run.group, record.run.config["seed"]) == ("mine", "study", 3)
    assert record.run.directory == run.path / "one" and record.ended is False


def test_a_run_that_a_kill_took_back_has_no_step_twice(run, records):
    log = MetricsLog(run.metrics, 0)
    for step in range(1, 8):  # then it was killed; its last checkpoint was of step 4
        log.write({"step": step, "train/loss": step})
    log = MetricsLog(run.metrics, 4)
    with open_trackers(["one"], run, "config.yaml", print) as trackers:
        trackers.begin()
        for step in (5, 6):
            log.write({"step": step, "train/loss": -step})
            trackers.write({"step": step, "train/loss": -step})
    (record,) = records[0]
    assert record.got == [(step, {"train/loss": step if step < 5 else -step}) for step in range(1, 7)]
    assert record.run.first_step == 4


def test_what_a_server_has_already_is_not_sent_again(run, records):
    records[1]["sent"] = 2
    log = MetricsLog(run.metrics, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "train/loss": step})
    write_sample(run.samples, 1, "old")
    with open_trackers(["one"], run, "config.yaml", print) as trackers:
        trackers.begin()
        trackers.write({"step": 4, "train/loss": 4})
    assert steps(records[0][0]) == [3, 4]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(run, records, monkeypatch):
    said = []
    records[1]["fails_at"] = 2
    broken = types.SimpleNamespace(open_tracker=lambda run: 1 / 0)
    monkeypatch.setitem(sys.modules, "jaxlm.common.trackers.broken_tracker", broken)
    with open_trackers(["one", "broken"], run, "config.yaml", said.append) as trackers:
        trackers.begin()
        for step in (1, 2, 3):
            trackers.write({"step": step, "train/loss": 1.0})
        assert trackers.failed
    assert steps(records[0][0]) == [1] and len(said) == 2
    assert said[0].startswith(f"note: broken takes no more of {run.path}: division by zero")
    assert "one takes no more" in said[1] and "no room at the server. Send it afterwards: " in said[1]
    assert said[1].endswith(f"report {run.path} --to one")


def test_an_error_of_the_run_ends_the_record_as_failed(run, records):
    with pytest.raises(FloatingPointError), open_trackers(["one"], run, "config.yaml", print) as trackers:
        trackers.begin()
        raise FloatingPointError
    assert records[0][0].ended is True


def test_without_trackers_nothing_is_opened(run, records):
    for names, place in (([], run), (["one"], None)):
        with open_trackers(names, place, "config.yaml", print) as trackers:
            trackers.begin()
            trackers.write({"step": 1, "train/loss": 1.0})
    assert records[0] == []


def test_a_finished_run_is_reported_afterwards(run, records, capsys, monkeypatch):
    monkeypatch.setattr("jaxlm.common.tracker_names.TRACKERS", ("one", "other"))
    monkeypatch.setattr("jaxlm.common.tracker_names.is_installed", lambda name: True)
    config = ReportConfig(run=str(run.path), to=["one,other"])
    with pytest.raises(ValueError, match=r"metrics.jsonl: found no line"):
        main(config)
    run.metrics.write_text(json.dumps({"step": 1, "val/loss": 2.5}) + "\n")
    main(config)
    assert [record.got for record in records[0]] == [[(1, {"val/loss": 2.5})]] * 2
    assert "sent to one, other" in capsys.readouterr().out
    with locked_file(run.path / "run.lock"), pytest.raises(ValueError, match=r"a trainer is at work here; wait"):
        main(config)
    records[1]["fails_at"] = 1
    with pytest.raises(ValueError, match=r"not sent to every one of one, other"):
        main(config)

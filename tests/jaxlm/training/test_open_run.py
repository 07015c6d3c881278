import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from jaxlm.common.command_line import parse
from jaxlm.common.run.run_directory import CONFIG, read_run_config
from jaxlm.training.open_run import check_tokenizer, open_run, resumed_config
from jaxlm.training.train_config import TrainConfig
from shared_tokenizer.manifest import DamagedError, sealed_directory
from tests.conftest import flipped_bit

MODEL = {"num_layers": 2}


@pytest.fixture
def config(tmp_path):
    return TrainConfig(output_dir=str(tmp_path / "run"), data_dir=["data"])


def test_the_resolved_config_is_written_and_accepted_again(config):
    with open_run(config, MODEL) as run:
        assert read_run_config(run.path)["model"] == MODEL
    resumed = replace(config, resume=True, log_every_steps=3)
    with open_run(resumed, MODEL) as run:
        assert read_run_config(run.path)["log_every_steps"] == 3


def test_a_run_is_not_touched_unless_told_to_resume(config):
    with open_run(config, MODEL) as run:
        before = (run.path / CONFIG).read_bytes()
    with (
        pytest.raises(ValueError, match="already holds a run; continue it with --resume"),
        open_run(config, MODEL),
    ):
        pass
    assert (run.path / CONFIG).read_bytes() == before


def test_another_config_is_refused_with_its_differences(config):
    with open_run(config, MODEL) as run:
        before = (run.path / CONFIG).read_bytes()
    other = replace(config, resume=True, batch_size=8)
    with pytest.raises(ValueError, match="belongs to another config: batch_size was 16 and is now 8"):  # noqa: SIM117
        with open_run(other, MODEL):
            pass
    with pytest.raises(ValueError, match=r"model\.num_layers was 2 and is now 3"):  # noqa: SIM117
        with open_run(replace(config, resume=True), {"num_layers": 3}):
            pass
    assert (run.path / CONFIG).read_bytes() == before


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    with (
        pytest.raises(ValueError, match="found no run to resume"),
        open_run(replace(config, resume=True), MODEL),
    ):
        pass
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run"), open_run(config, MODEL):
        pass
    assert (tmp_path / "run" / "thesis.tex").read_text() == "precious"


def test_a_second_trainer_is_refused_while_the_first_is_at_work(config):
    program = (
        "import sys\nfrom jaxlm.training.open_run import open_run\n"
        "from jaxlm.training.train_config import TrainConfig\n"
        f"with open_run(TrainConfig(output_dir={config.output_dir!r}, data_dir=['data']), {MODEL!r}):\n"
        "    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"another trainer is at work here .pid {first.pid} boot"):  # noqa: SIM117
            with open_run(replace(config, resume=True), MODEL):
                pass
        first.kill()
    with open_run(replace(config, resume=True), MODEL):
        pass  # a killed trainer holds no lock


def test_a_damaged_config_is_named(config):
    with open_run(config, MODEL) as run:
        pass
    for content in ("{bad", "", "a: 1"):
        (run.path / CONFIG).write_text(content)
        with pytest.raises(ValueError, match=r"config\.yaml: (not YAML|expected the settings of a run)"):
            read_run_config(run.path)


def test_the_config_is_a_config_file(config, tmp_path):
    from jaxlm.common.command_line import parse

    with open_run(config, {}) as run:
        pass
    assert parse(TrainConfig, ["--config", str(run.path / CONFIG)]) == config
    assert yaml.safe_load((run.path / CONFIG).read_text())["optimizer"]["learning_rate"] == 3e-3


@pytest.fixture
def with_tokenizer(config, tokenizer):
    with open_run(config, MODEL) as run, sealed_directory(run.tokenizer) as directory:
        tokenizer.save(directory)
    return run


def test_the_tokenizer_of_a_run_is_compared_with_its_seal_and_its_data(with_tokenizer, tokenizer):
    check_tokenizer(with_tokenizer, tokenizer.fingerprint)
    with pytest.raises(ValueError, match=r"expected that of data_dir xxx.*; resume with the same data_dir, or remove"):
        check_tokenizer(with_tokenizer, "x" * 64)
    files = [path for path in with_tokenizer.tokenizer.iterdir() if path.is_file()]
    rng = np.random.default_rng(0)
    for _ in range(100):
        with (
            flipped_bit(files, rng),
            pytest.raises(DamagedError, match=r"or remove .*tokenizer, and resume: it is then written again"),
        ):
            check_tokenizer(with_tokenizer, tokenizer.fingerprint)
    shutil.rmtree(with_tokenizer.tokenizer)
    check_tokenizer(with_tokenizer, tokenizer.fingerprint)  # it is written later


def test_more_steps_are_recorded_with_their_history(config):
    with open_run(config, MODEL) as run:
        (run.checkpoints / "7").mkdir(parents=True)
    lines = []
    more = resumed_config(replace(config, resume=True, num_train_steps=2000), lines.append)
    assert "num_train_steps: 1000 before, now 2000; schedule stretched: step 8 has" in lines[0]
    with open_run(more, MODEL):
        recorded = read_run_config(run.path)
    assert recorded["num_train_steps"] == 2000
    assert recorded["schedule_changes"] == [{"step": 7, "from": 1000, "to": 2000, "schedule": "stretch"}]
    flags = ["--resume", "--output_dir", config.output_dir]  # without --config: the settings of the run
    again = resumed_config(replace(parse(TrainConfig, flags), model={}), lines.append)
    assert again == replace(more, model={}) and len(lines) == 1
    with pytest.raises(ValueError, match="num_train_steps: found 5, but the run has taken 7 steps"):
        resumed_config(replace(again, num_train_steps=5), print)


def test_what_may_change_on_resume_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "A run that is resumed keeps its settings; these may change: " in shown
    changeable = shown.partition("these may change: ")[2].partition(".")[0]
    assert {"num_train_steps", "data_dir", "mesh"} <= set(changeable.split(", ")) and "seed" not in changeable

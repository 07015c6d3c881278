"""Whole studies of tiny runs. Their commands run in this process, unless a test is about processes."""

import json
import shutil

import pytest
import yaml

from jaxlm.commands.evaluate import main as evaluate
from jaxlm.common.command_line import parse
from jaxlm.evaluate_config import EvaluateConfig
from jaxlm.study import command, train_run
from jaxlm.study.command import main
from jaxlm.study.study import read_study
from jaxlm.study.study_config import StudyConfig
from jaxlm.study.train_run import COSTS, FAILURE, Job, has_ended
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.trainer import train
from tests.conftest import prepare_texts

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def content(tmp_path_factory, tokenizer):
    """A study of two tiny variants and one seed."""
    data = tmp_path_factory.mktemp("study") / "data"
    texts = [f"def f{number}(x):\n    return x + {number * 7}\n" * 4 for number in range(40)]
    prepare_texts(data, texts, tokenizer)
    return {
        "question": "Does | a rate matter?",
        "settings": {
            "data_dir": [str(data)],
            "preset": "dense-tiny",
            "model": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2},
            "num_train_steps": 4,
            "batch_size": 4,
            "seq_len": 16,
            "eval_every_steps": 2,
            "eval_batches": 1,
            "sample_tokens": 0,
            "log_every_steps": 1,
            "optimizer.warmup_steps": 1,
        },
        "grid": {"optimizer.learning_rate": [0.001, 0.1]},
        "seeds": [3],
    }


@pytest.fixture
def started(monkeypatch):
    """The commands that a study started."""
    commands = []

    def timed(job, command, flags):
        commands.append((command, *flags))
        try:
            if command == "train":
                train(parse(TrainConfig, list(flags)))
            else:
                evaluate(parse(EvaluateConfig, list(flags)))
        except (ValueError, FloatingPointError) as error:
            return str(error)
        (job.directory / COSTS).write_text('{"command": "train", "seconds": 2.0, "peak_bytes": 5000}\n{"comm')
        return None

    monkeypatch.setattr(train_run, "_timed", timed)
    return commands


def write(folder, content):
    path = folder / "rates.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return StudyConfig(study=str(path), output_dir=str(folder / "runs"))


def test_a_study_trains_compares_and_is_not_done_twice(content, started, tmp_path, capsys):
    config = write(tmp_path, content)
    main(config)
    assert len(started) == 2
    written = json.loads((tmp_path / "rates" / "results.json").read_text())
    slow, fast = written["runs"]
    assert (slow["variant"], fast["variant"]) == ("learning_rate=0.001", "learning_rate=0.1")
    assert [tokens for tokens, _ in slow["curve"]] == [128, 256] and slow["tokens"] == 256
    assert slow["bits_per_byte"] == slow["curve"][-1][1]
    assert (slow["seconds"], slow["peak_bytes"], slow["error"]) == (2.0, 5000, None)
    metrics = (tmp_path / "runs" / "learning_rate=0.1" / "seed-3" / "metrics.jsonl").read_text().splitlines()
    assert fast["loss"] == json.loads(metrics[-1])["val/loss"]
    table = (tmp_path / "rates" / "table.md").read_text()
    assert f"{fast['bits_per_byte'] - slow['bits_per_byte']:+.4f}" in table and "Does \\| a rate" not in table
    assert "test text" not in table
    pictures = {path.name for path in (tmp_path / "rates").glob("*.png")}
    assert pictures == {"curves.png", "bytes.png", "time.png", "learning_rate.png"}
    main(config)
    assert len(started) == 2 and "2 of them have ended already" in capsys.readouterr().out


def test_a_finished_run_is_evaluated_once(content, started, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x\n" * 9)
    variants = {"grid": None, "variants": {"only": {}}, "evaluate": {"input": [str(text)], "seq_len": 16}}
    config = write(tmp_path, {name: value for name, value in (content | variants).items() if value is not None})
    main(config)
    main(config)
    assert [command for command, *_ in started] == ["train", "evaluate"]
    (run,) = json.loads((tmp_path / "rates" / "results.json").read_text())["runs"]
    (numbers,) = run["evaluation"]["models"].values()
    table = (tmp_path / "rates" / "table.md").read_text()
    assert f"| {numbers['bits_per_byte']:.4f} | base |" in table and f"Test text: {text}." in table


def test_a_run_that_diverges_is_a_result_and_the_study_goes_on(content, started, tmp_path, capsys):
    main(write(tmp_path, content | {"grid": {"optimizer.learning_rate": [1e30, 0.001]}, "base": "learning_rate=0.001"}))
    lost, good = json.loads((tmp_path / "rates" / "results.json").read_text())["runs"]
    assert "train/" in lost["error"] and lost["bits_per_byte"] is None and good["error"] is None
    assert (tmp_path / "runs" / "learning_rate=1e+30" / "seed-3" / FAILURE).read_text() == lost["error"]
    assert "1 of 1, 1 failed" in capsys.readouterr().out


def test_a_run_of_other_settings_is_not_taken_for_one_of_the_study(content, started, tmp_path):
    config = write(tmp_path, content)
    job = Job(read_study(tmp_path / "rates.yaml").runs()[0], tmp_path / "runs")
    job.directory.mkdir(parents=True)
    (job.directory / "config.yaml").write_text("model: {}\n")
    before = job.run.settings(tmp_path / "runs")
    job.settings_file.write_text(yaml.safe_dump(before | {"num_train_steps": 5}))
    with pytest.raises(ValueError, match=r"seed-3: was begun with other settings \(num_train_steps\); give the study"):
        main(config)
    assert not started


def test_tasks_of_a_job_array_share_the_runs(content, tmp_path, monkeypatch):
    config = write(tmp_path, content | {"seeds": [0, 1]})
    config = StudyConfig(study=config.study, output_dir=config.output_dir, executor="slurm")
    with pytest.raises(ValueError, match=r"executor: found no job array \(SLURM_ARRAY_TASK_ID is not set\)"):
        main(config)
    done = []
    monkeypatch.setattr(command, "do_run", lambda job: done.append(job) or 0.0)
    monkeypatch.setattr(command, "read_result", lambda job: None)
    monkeypatch.setattr(command, "_line", lambda result, seconds: "")
    for task in ("1", "2"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        main(config)
    assert len(done) == 4 and len({job.directory for job in done}) == 4


def test_a_run_that_cannot_begin_ends_the_study_in_a_process_of_its_own(content, tmp_path):
    missing = content | {"settings": content["settings"] | {"data_dir": [str(tmp_path / "nowhere")]}}
    config = write(tmp_path, missing)
    with pytest.raises(ValueError, match=r"seed-3: .*nowhere"):
        main(config)
    run = read_study(tmp_path / "rates.yaml").runs()[0]
    assert not has_ended(Job(run, tmp_path / "runs"))


def test_recorded_runs_are_not_done_again_without_their_directories(content, started, tmp_path):
    config = write(tmp_path, content)
    main(config)
    before = json.loads((tmp_path / "rates" / "results.json").read_text())
    shutil.rmtree(tmp_path / "runs")
    main(config)
    assert len(started) == 2 and json.loads((tmp_path / "rates" / "results.json").read_text()) == before
    write(tmp_path, content | {"seeds": [3, 4]})
    main(config)
    after = json.loads((tmp_path / "rates" / "results.json").read_text())["runs"]
    assert len(started) == 4 and [run["seed"] for run in after] == [3, 3, 4, 4] and after[:2] == before["runs"]
    write(tmp_path, content | {"settings": content["settings"] | {"num_train_steps": 3}})
    (tmp_path / "runs").rename(tmp_path / "kept")
    main(config)
    assert len(started) == 6, "runs of other settings were taken for those of the study"


def test_a_recorded_run_that_a_new_one_names_is_done_again(content, started, tmp_path):
    variants = {"teacher": {}, "other": {"remat": "ternary"}}
    named = {name: value for name, value in content.items() if name != "grid"}
    config = write(tmp_path, named | {"variants": variants})
    main(config)
    shutil.rmtree(tmp_path / "runs")
    pupil = {"teacher": "{runs}/teacher/seed-{seed}"}
    write(tmp_path, named | {"variants": variants | {"pupil": pupil}})
    main(config)
    directories = sorted(path.parent.name for path in (tmp_path / "runs").glob("*/seed-3"))
    assert directories == ["pupil", "teacher"] and len(started) == 4


def test_damaged_results_are_refused_and_stay(content, started, tmp_path):
    config = write(tmp_path, content)
    results = tmp_path / "rates" / "results.json"
    results.parent.mkdir()
    results.write_text('{"runs": ')
    with pytest.raises(ValueError, match=r"results.json: no results of a study .*restore the file, or remove it"):
        main(config)
    assert results.read_text() == '{"runs": ' and not started

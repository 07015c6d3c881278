"""A run directory at every moment of its making, and with files that were changed since."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml

import jaxlm.common.run.run_directory as run_directory
from jaxlm.common.command_line import parse
from jaxlm.common.run.identity import IDENTITY, read_identity
from jaxlm.common.run.run_config import RunConfig
from jaxlm.common.run.run_directory import CONFIG, open_run_directory, read_run_config, read_settings, record_run

DATA = {"data": "d" * 64, "tokenizer": "t" * 64}
MODEL = {"norm_eps": 1e-5, "num_layers": 2}


@pytest.fixture
def config(tmp_path):
    return RunConfig(output_dir=str(tmp_path / "run"), num_train_steps=40)


def opened(config, fingerprints=DATA, **options):
    settings = asdict(config) | {"model": MODEL}
    path = run_directory.Path(config.output_dir)
    return open_run_directory(path, RunConfig, settings, resume=config.resume, fingerprints=fingerprints, **options)


def open_and_close(config, **options):
    with opened(config, **options) as run:
        return run


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up after it."""


@pytest.mark.parametrize("killed_at", ["write_identity", "write_file"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_was_killed_before_its_settings_begins_anew(config, monkeypatch, killed_at, resume):
    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, killed_at, kill)
        with pytest.raises(Killed):
            open_and_close(config)
    path = run_directory.Path(config.output_dir)
    (path / ".config.yaml.ab12_x9z").write_text("half")  # of a kill inside the write
    assert not (path / CONFIG).exists()
    lines = []
    open_and_close(replace(config, resume=resume), log=lines.append)
    assert sorted(each.name for each in path.iterdir()) == [CONFIG, IDENTITY, "run.lock"]
    assert ("starts anew" in " ".join(lines)) == resume


@pytest.mark.parametrize("error", [ValueError("too large"), OSError(28, "full"), MemoryError(), RuntimeError("XLA")])
def test_a_start_that_was_refused_leaves_nothing(config, error):
    with pytest.raises(type(error)), opened(config) as run:
        run.checkpoints.mkdir()
        run.tokenizer.mkdir()
        raise error
    assert not run.path.exists()
    open_and_close(replace(config, seed=5))  # the corrected command


def test_a_refused_start_leaves_what_others_put_there(config):
    run_directory.Path(config.output_dir).mkdir()
    with pytest.raises(ValueError, match="too large"), opened(config) as run:
        (run.path / "thesis.tex").write_text("precious")
        raise ValueError("too large")
    assert [path.name for path in run.path.iterdir()] == ["thesis.tex"]


def test_a_run_that_has_taken_a_step_stays(config):
    with pytest.raises(OSError, match="full"), opened(config) as run:
        run.metrics.write_text('{"step": 1}\n')
        raise OSError(28, "full")
    assert run.metrics.exists() and (run.path / CONFIG).exists()


@pytest.mark.parametrize("name", ["thesis.tex", "data", ".config.yaml.swp", "config.yml"])
def test_a_folder_with_anything_else_is_not_empty(config, name):
    path = run_directory.Path(config.output_dir)
    path.mkdir()
    (path / "run.lock").touch()
    (path / name).write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        open_and_close(config)
    assert (path / name).read_text() == "precious"


def test_a_folder_of_texts_in_a_begun_run_is_not_begun_data(config):
    with pytest.raises(Killed), opened(config, fingerprints=None):
        raise Killed
    texts = run_directory.Path(config.output_dir) / "data"
    texts.mkdir()
    (texts / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run"), opened(config, fingerprints=None):
        pass
    assert (texts / "thesis.txt").read_text() == "precious"


def test_a_run_is_of_its_data_and_tokenizer_before_its_first_checkpoint(config):
    open_and_close(config)
    resumed = replace(config, resume=True)
    open_and_close(resumed)
    for what in DATA:
        with pytest.raises(ValueError, match=f"was trained with {what} .*resume with the same {what}"):
            open_and_close(resumed, fingerprints=DATA | {what: "x" * 64})


def test_fingerprints_that_are_known_later_are_compared_too(config):
    settings = asdict(config) | {"model": MODEL}
    with opened(config, fingerprints=None) as run:
        assert not (run.path / CONFIG).exists() and read_identity(run.path) is not None
        record_run(run, settings, DATA)
    with (
        pytest.raises(ValueError, match="was trained with data"),
        opened(replace(config, resume=True), fingerprints=None) as run,
    ):
        record_run(run, settings, DATA | {"data": "x" * 64})


def test_begun_data_stay_for_the_same_settings_and_go_for_others(config):
    with pytest.raises(Killed), opened(config, fingerprints=None) as run:
        run.data.mkdir()
        raise Killed
    with pytest.raises(Killed), opened(config, fingerprints=None) as run:
        assert run.data.is_dir()
        raise Killed
    with opened(replace(config, seed=1), fingerprints=None) as run:
        assert not run.data.exists()


def resumed_by_file(config, log=lambda line: None):
    flags = ["--config", f"{config.output_dir}/{CONFIG}", "--resume"]
    text = yaml.safe_load(run_directory.Path(flags[1]).read_text("utf-8", "replace"))
    text.pop("model", None)
    return opened(parse(RunConfig, ["--config", yaml.safe_dump(text), "--resume"]), log=log)


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("learning_rate: 0.003", "learning_rate: 0.007", r"optimizer\.learning_rate was 0\.003 and is now 0\.007"),
        ("seed: 5", "seed: 4", "seed was 5 and is now 4"),
        ("seed: 5\n", "", "seed was 5 and is now 0"),  # the default, where a line is gone
    ],
)
def test_a_changed_settings_file_is_named_with_its_change(config, old, new, change):
    run = open_and_close(replace(config, seed=5))
    path = run.path / CONFIG
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with (
        pytest.raises(ValueError, match=rf"config\.yaml: was changed since it was written: {change}\. "),
        resumed_by_file(config),
    ):
        pass
    # The way out: the file is removed, and the identity holds the settings.
    path.unlink()
    (run.checkpoints / "4").mkdir(parents=True)
    settings = yaml.safe_load(RunConfig.settings_of_run(config.output_dir) or "")
    assert settings.pop("model") == MODEL
    with opened(parse(RunConfig, ["--config", yaml.safe_dump(settings), "--resume"])):
        assert path.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("log_every_steps: 7", "log_every_steps: 15", "log_every_steps was 7 and is now 15"),
        ("log_every_steps: 7\n", "", "log_every_steps was 7 and is now 10"),
        ("num_train_steps: 40", "num_train_steps: 48", "num_train_steps was 40 and is now 48"),
        ("seed: 0", "seed:  0", "nothing that has an effect"),
    ],
)
def test_a_change_of_what_may_change_is_said(config, old, new, change):
    run, lines = open_and_close(replace(config, log_every_steps=7)), []
    path = run.path / CONFIG
    path.write_text(path.read_text().replace(old, new))
    with resumed_by_file(config, log=lines.append):
        assert lines == [f"note: {path}: was changed since it was written: {change}"]


def test_flags_go_over_a_changed_file(config):
    run = open_and_close(config)
    path, lines = run.path / CONFIG, []
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    open_and_close(replace(config, resume=True), log=lines.append)  # the flags of the first start
    assert "was changed since it was written: nothing that has an effect" in lines[0]
    assert "seed: 0" in path.read_text()
    path.write_bytes(b"\xff\xfe: [")
    open_and_close(replace(config, resume=True), log=lines.append)
    assert lines[1] == lines[0]
    open_and_close(replace(config, resume=True), log=lines.append)
    assert len(lines) == 2


def test_a_changed_model_is_not_loaded(config):
    run = open_and_close(config)
    assert read_run_config(run.path)["model"] == MODEL
    path = run.path / CONFIG
    path.write_text(path.read_text().replace("norm_eps: 1.0e-05", "norm_eps: 1.0e-04"))
    with pytest.raises(ValueError, match=r"model\.norm_eps was 1e-05 and is now 0\.0001"):
        read_run_config(run.path)


def test_a_flipped_bit_in_the_settings_is_never_trained_on(config):
    run = open_and_close(config)
    path, rng = run.path / CONFIG, np.random.default_rng(0)
    whole, before = path.read_bytes(), replace(config, resume=True)
    found, lines = 0, []
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            lines.clear()
            with resumed_by_file(config, log=lines.append) as run:
                now = yaml.safe_load(path.read_text())
                same = replace(before, resume=False) == replace(RunConfig(**_flat(now)), resume=False)
                assert same or "and is now" in lines[0]
        except (ValueError, AttributeError, yaml.YAMLError):
            found += 1
        path.write_bytes(whole)
    assert found > 15


def _flat(settings):
    from jaxlm.common.run.optimizer_config import OptimizerConfig

    del settings["model"]
    return settings | {"optimizer": OptimizerConfig(**settings["optimizer"])}


def test_a_kill_between_identity_and_settings_file_is_no_change(config, monkeypatch):
    open_and_close(config)

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "write_file", kill)
        with pytest.raises(Killed):
            open_and_close(replace(config, resume=True, log_every_steps=3))
    lines = []
    with resumed_by_file(config, log=lines.append):
        assert not lines


def test_a_run_of_an_earlier_version_has_no_identity_and_gets_one(config):
    run = open_and_close(config)
    (run.path / IDENTITY).unlink()
    settings = yaml.safe_load((run.path / CONFIG).read_text())
    for name in ("schedule_on_resume", "schedule_changes", "document_mask"):  # fields that came later
        del settings[name]
    (run.path / CONFIG).write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="belongs to another config: seed was 0 and is now 1"):
        open_and_close(replace(config, resume=True, seed=1))
    open_and_close(replace(config, resume=True))
    identity = read_identity(run.path)
    assert identity is not None and identity.fingerprints == DATA


def test_a_directory_that_was_moved_is_named(config, tmp_path):
    with (
        pytest.raises(OSError, match="run: was moved or removed while the run was at work; resume it with"),
        opened(config) as run,
    ):
        run.path.rename(tmp_path / "elsewhere")
        run.metrics.open("r+")
    assert (tmp_path / "elsewhere" / CONFIG).exists() and not run.path.exists()


def test_leftovers_of_killed_writes_are_removed_on_resume(config):
    run = open_and_close(config)
    for name in (
        ".artifact.a1b2c3d4",
        ".samples.txt.u6pq_fpf",
        ".tokenizer.abcdefgh",
        ".artifact.new.a1b2c3d4",
        "artifact.new",
        ".removed-20",
    ):
        (run.path / name).mkdir()
        (run.path / name / "half").write_text("half")
    (run.path / ".mine").write_text("kept")
    open_and_close(replace(config, resume=True))
    assert sorted(path.name for path in run.path.iterdir()) == [".mine", CONFIG, IDENTITY, "run.lock"]


@pytest.mark.parametrize("name", ["meta/metadata", "state.json"])
def test_a_run_of_an_earlier_version_is_of_the_data_of_its_checkpoints(config, name):
    run = open_and_close(config)
    (run.path / IDENTITY).unlink()
    before = (run.path / CONFIG).read_bytes()
    for step in (4, 8):
        (run.checkpoints / str(step) / name).parent.mkdir(parents=True)
        (run.checkpoints / str(step) / name).write_text(json.dumps(DATA | {"step": step}))
    (run.checkpoints / "8" / name).write_text("damaged")
    resumed = replace(config, resume=True, log_every_steps=3)
    with pytest.raises(ValueError, match=r"was trained with data ddd.*, found xxx"):
        open_and_close(resumed, fingerprints=DATA | {"data": "x" * 64})
    assert not (run.path / IDENTITY).exists() and (run.path / CONFIG).read_bytes() == before
    open_and_close(resumed)


def test_what_is_refused_on_resume_writes_nothing(config):
    run = open_and_close(config)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}

    def refuse(run):
        raise ValueError("its tokenizer is damaged")

    with pytest.raises(ValueError, match="its tokenizer is damaged"):
        open_and_close(replace(config, resume=True, log_every_steps=3), check=refuse)
    for path in run.path.iterdir():
        assert path.name == "run.lock" or path.read_bytes() == before[path.name]


def test_settings_that_are_nested_without_end_are_refused(tmp_path):
    (tmp_path / CONFIG).write_text("model: " + "[" * 5000)
    with pytest.raises(ValueError, match=r"config\.yaml: not YAML"):
        read_settings(tmp_path)

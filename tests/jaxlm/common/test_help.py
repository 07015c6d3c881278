from dataclasses import dataclass, field
from typing import Any

import pytest

from jaxlm.common.command_line import parse
from jaxlm.common.help import GROUPS
from jaxlm.training.train_config import TrainConfig
from mlxlm.finetune.finetune_config import FinetuneConfig
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner settings."""

    learning_rate: float = setting(0.5, basic=True)
    """A rate."""
    b1: float = setting(0.9)
    """Another."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    data_dir: str = setting(group="data", basic=True)
    """Where the data is."""
    num_epochs: int = setting(1, group="training", basic=True)
    """Passes."""
    seq_len: int = setting(8, group="training")
    """Length."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of a model."""
    optimizer: Inner = setting(factory=Inner)
    """Inner."""
    resume: bool = False
    """Continue."""


NEEDED = ["--data_dir", "d"]


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--lr", "1"], "--optimizer.learning_rate"),
        (["--learning-rate=1"], "--optimizer.learning_rate"),
        (["--epochs", "1"], "--num_epochs"),
        (["--num-epochs", "1"], "--num_epochs"),
        (["--block_size", "1"], "--seq_len"),
        (["--n_layer", "1"], "--model.num_layers"),
        (["--optimizer.lr", "1"], "--optimizer.learning_rate"),
        (["--dataset", "1"], "--data_dir"),
        (["--sequence_len", "1"], "--seq_len"),
    ],
)
def test_a_flag_that_does_not_exist_names_the_one_that_was_meant(flags, hint):
    with pytest.raises(
        ValueError, match=rf"{flags[0].partition('=')[0]}: there is no such flag; did you mean {hint}\?"
    ):
        parse(Config, [*NEEDED, *flags])


def test_a_flag_like_no_other_points_to_the_help():
    with pytest.raises(ValueError, match="--zzz: there is no such flag; see --help_all"):
        parse(Config, [*NEEDED, "--zzz", "1"])
    with pytest.raises(ValueError, match="'stray': found a value without a flag before it"):
        parse(Config, [*NEEDED, "stray"])


def test_a_key_of_a_file_that_does_not_exist_names_the_nearest(tmp_path):
    (tmp_path / "c.yaml").write_text("data_dir: d\nepochs: 3\n")
    with pytest.raises(ValueError, match="epochs: there is no such setting; did you mean num_epochs"):
        parse(Config, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_epochs", "four"], "num_epochs: found four, expected a whole number$"),
        (["--optimizer.learning_rate", "fast"], r"optimizer\.learning_rate: found fast, expected a number$"),
        (["--resume", "maybe"], "resume: found maybe, expected true or false$"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(Config, [*NEEDED, *flags])


def test_a_union_and_a_choice_name_their_values():
    needed = ["--data_dir", "d", "--output_dir", "o"]
    with pytest.raises(ValueError, match="batch_size: found four, expected a whole number or one of auto"):
        parse(TrainConfig, [*needed, "--batch_size", "four"])
    with pytest.raises(ValueError, match="dtype: found f8, expected one of auto, float32, bfloat16, float16"):
        parse(TrainConfig, [*needed, "--dtype", "f8"])


def test_a_nested_key_that_does_not_exist_names_the_nearest(tmp_path):
    (tmp_path / "c.yaml").write_text("data_dir: d\noptimizer: {learning_rte: 3}\n")
    with pytest.raises(ValueError, match=r"optimizer\.learning_rte: there is no such setting; did you mean"):
        parse(Config, ["--config", str(tmp_path / "c.yaml")])


def test_a_flag_replaces_what_excludes_it_in_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("data_dir: [d]\noutput_dir: o\nnum_epochs: 2\n")
    found = parse(TrainConfig, ["--config", str(tmp_path / "c.yaml"), "--num_train_steps", "7"])
    assert (found.num_train_steps, found.num_epochs) == (7, None)
    with pytest.raises(ValueError, match="found both, expected one of the two"):
        parse(TrainConfig, ["--config", str(tmp_path / "c.yaml"), "--num_train_steps", "7", "--num_epochs", "1"])


def test_a_switch_needs_no_value():
    assert parse(Config, [*NEEDED, "--resume"]).resume
    assert parse(Config, ["--resume", *NEEDED]).resume
    assert not parse(Config, [*NEEDED, "--resume", "false"]).resume


def shown(capsys, *words: str, config: type = Config) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(config, list(words), "What it does.")
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_short_help_shows_what_matters_first_in_groups(capsys):
    short = shown(capsys, "--help")
    assert short.index("data:") < short.index("training:") < short.index("optimizer:")
    assert "--num_epochs" in short and "--optimizer.learning_rate" in short
    assert "--seq_len" not in short and "--optimizer.b1" not in short and "--help_all shows all" in short
    full = shown(capsys, "--help_all")
    assert all(flag in full for flag in ("--seq_len", "--optimizer.b1", "--num_epochs", "advanced:"))


@pytest.mark.parametrize(("config", "most"), [(TrainConfig, 16), (FinetuneConfig, 20), (PrepareConfig, 16)])
def test_commands_show_about_a_dozen_settings_first(capsys, monkeypatch, config, most):
    monkeypatch.setenv("COLUMNS", "80")
    short = shown(capsys, "--help", config=config)
    flags = [line for line in short.splitlines() if line.startswith("  --")]
    assert 8 <= len(flags) - 3 <= most  # --config, --debug and --help_all are of every command
    assert all(len(line) <= 80 for line in short.splitlines())
    groups = [line[:-1] for line in short.splitlines() if line.endswith(":") and not line.startswith(" ")]
    known = [name for name in groups if name in GROUPS]
    assert known == [name for name in GROUPS if name in groups]


@pytest.mark.parametrize("config", [TrainConfig, FinetuneConfig, PrepareConfig])
def test_every_setting_has_a_text(capsys, config):
    full = " ".join(shown(capsys, "--help_all", config=config).split())
    assert "(type:" in full and "UNKNOWN" not in full

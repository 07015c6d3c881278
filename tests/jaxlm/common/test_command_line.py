import signal
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from jaxlm.common.command_line import _print_unraisable, parse, run_command
from jaxlm.conversion.convert_config import ConvertConfig
from jaxlm.training.train_config import TrainConfig
from tests.commands import run


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner settings."""

    rate: float = 0.5
    """A rate, per step."""

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate: found {self.rate}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Outer settings."""

    name: str
    """A name."""
    input: list[str] = field(default_factory=list)
    """Inputs."""
    inner: Inner = field(default_factory=Inner)
    """Inner."""


def test_flags_lists_and_nested_settings():
    settings = parse(Settings, ["--input", "a", "b c", "--name", "x", "--inner.rate", "2"])
    assert settings == Settings(name="x", input=["a", "b c"], inner=Inner(rate=2.0))


def test_a_list_may_be_given_with_an_equals_sign():
    assert parse(Settings, ["--name", "x", "--input=a"]) == Settings(name="x", input=["a"])


def test_a_list_takes_names_that_begin_with_a_bracket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[b]").write_text("")
    assert parse(Settings, ["--name", "x", "--input", "[a].txt", "[b]"]).input == ["[a].txt", "[b]"]
    assert parse(Settings, ["--name", "x", "--input", '["c", "d"]']).input == ["c", "d"]


def test_flags_go_over_the_file(tmp_path):
    (tmp_path / "settings.yaml").write_text("name: file\ninner:\n  rate: 3\ninput: [a]\n")
    settings = parse(Settings, ["--config", str(tmp_path / "settings.yaml"), "--name", "flag"])
    assert settings == Settings(name="flag", input=["a"], inner=Inner(rate=3.0))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--name", "x", "--nmae", "y"], "nmae"),
        ([], "name"),
        (["--name", "x", "--inner.rate", "fast"], "rate"),
        (["--name", "x", "--inner.rate", "-1"], "rate: found -1.0, expected 0 or more"),
        (["--name", "x", "--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(Settings, argv)
    assert "\n" not in str(caught.value)


def test_signals_end_a_command_by_an_exception_unless_nohup_ignores_them():
    found = {}

    def command(settings: Inner) -> None:
        found.update({number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)})

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run_command(command, argv=[])
        with pytest.raises(SystemExit) as caught:
            found[signal.SIGTERM](signal.SIGTERM, None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert caught.value.code == 143 and found[signal.SIGHUP] is signal.SIG_IGN


def test_a_second_signal_does_not_disturb_the_leaving():
    cleaned = []

    def command(settings: Inner) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as caught:
            run_command(command, argv=[])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert caught.value.code == 143 and cleaned


def test_a_signal_at_the_end_of_the_process_does_not_disturb_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, dataclasses, signal\n"
        "from jaxlm.common.command_line import run_command\n"
        "@dataclasses.dataclass\n"
        "class Settings:\n    value: int = 1\n"
        "def main(settings: Settings) -> None:\n    print('done')\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    atexit.register(signal.raise_signal, number)\n"
        "run_command(main, argv=[])\n"
    )
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_help_shows_every_field_with_its_text():
    command = [sys.executable, "scripts/train_jax.py", "--help"]
    shown = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "Sequences, or pairs of answers, per optimizer step, over all devices." in shown
    assert "--optimizer.learning_rate LEARNING_RATE Peak learning rate." in shown


@dataclass(frozen=True)
class Switches:
    """Settings with a word by position and bools."""

    source: str
    """By position."""
    verify: bool = True
    """A bool."""
    maybe: bool | None = None
    """A bool that may be null."""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--maybe", "a"], {"maybe": True}),
        (["--maybe", "null", "a"], {}),
        (["--verify", "a"], {}),
        (["--verify", "False", "a"], {"verify": False}),
        (["a", "--verify=false", "--maybe"], {"verify": False, "maybe": True}),
    ],
)
def test_every_bool_may_stand_alone(argv, expected):
    assert parse(Switches, argv, positional=True) == Switches(source="a", **expected)


def test_the_bool_of_a_group_may_stand_alone():
    flags = ["--data_dir", "d", "--output_dir", "o", "--distributed.auto", "--resume"]
    config = parse(TrainConfig, flags)
    assert config.distributed.auto and config.resume


def test_callbacks_of_a_failed_save_are_quiet(monkeypatch):
    handed_on = []
    monkeypatch.setattr(sys, "__unraisablehook__", handed_on.append)
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), None):
        _print_unraisable(SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in handed_on] == ["another", "None"]


def test_settings_that_are_nested_without_end_are_one_line(tmp_path):
    (tmp_path / "deep.yaml").write_text("value: " + "[" * 5000)
    with pytest.raises(ValueError, match="nesting depth"):
        parse(Settings, ["--config", str(tmp_path / "deep.yaml")])


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("a: [1", [], r"^.*settings\.yaml: .*Problems parsing config"),
        ("batch_siZe: 4", [], r"^.*settings\.yaml: batch_siZe: there is no such setting; did you mean batch_size"),
        ("batch_size: -4", [], r"^.*settings\.yaml: batch_size: found -4"),
        ("batch_size: 4", ["--batch_size", "-3"], r"^batch_size: found -3"),
        ("ema: 0.99", [], r"^.*settings\.yaml: ema: weights are not averaged: .*crowd around zero"),
        ("optimizer: {ema_decay: 0.99}", [], r"settings\.yaml: ema_decay: weights are not averaged: "),
        ("batch_size: 4", ["--weight-averaging=1"], r"weight-averaging: weights are not averaged: "),
    ],
)
def test_a_mistake_in_a_file_of_settings_names_the_file(tmp_path, content, flags, message):
    (tmp_path / "settings.yaml").write_text(f"data_dir: [a]\noutput_dir: b\n{content}\n")
    with pytest.raises(ValueError, match=message):
        parse(TrainConfig, ["--config", str(tmp_path / "settings.yaml"), *flags])


@pytest.mark.parametrize("argv", [["--as", "ternary"], ["--as=ternary"], ["--read_as", "ternary"]])
def test_a_flag_may_have_another_name_that_no_field_can_have(argv):
    config = parse(ConvertConfig, ["source", "destination", *argv, "--activation_bits", "8"], positional=True)
    assert (config.source, config.read_as, config.activation_bits) == ("source", "ternary", 8)
    assert parse(ConvertConfig, ["source", "destination"], positional=True).read_as == "found"

import importlib
import inspect
import sys

import pytest

import jaxlm
import jaxlm.__main__
import mlxlm.__main__
from jaxlm.common.command_line import settings_class_of
from jaxlm.common.command_source import read_command

PROGRAMS = {"jaxlm": jaxlm.__main__, "mlxlm": mlxlm.__main__}


@pytest.mark.parametrize(
    ("program", "name"), [(program, name) for program, module in PROGRAMS.items() for name in module.COMMANDS]
)
def test_every_command_is_a_documented_function_of_its_settings(program, name):
    target, text = PROGRAMS[program].COMMANDS[name]
    module, _, function = target.partition(":")
    command = getattr(importlib.import_module(module), function)
    assert settings_class_of(command).__dataclass_fields__ is not None
    assert inspect.getdoc(command) and text
    assert read_command(target) == (settings_class_of(command), inspect.getdoc(command))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_list_of_commands_is_the_help(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program])
    PROGRAMS[program].main()
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in PROGRAMS[program].COMMANDS)
    monkeypatch.setattr(sys, "argv", [program, "--version"])
    PROGRAMS[program].main()
    assert capsys.readouterr().out == f"{program} {jaxlm.__version__}\n"


def test_a_command_that_does_not_exist_names_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxlm", "trian"])
    with pytest.raises(SystemExit) as ended:
        jaxlm.__main__.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: jaxlm: found no command 'trian'; did you mean train?\n"
    monkeypatch.setattr(sys, "argv", ["jaxlm", "finetune"])
    with pytest.raises(SystemExit):
        jaxlm.__main__.main()
    assert capsys.readouterr().err == "error: jaxlm: found no command 'finetune'; that is mlxlm finetune\n"

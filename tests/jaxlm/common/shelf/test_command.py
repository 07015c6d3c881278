import sys

import pytest

from jaxlm.__main__ import COMMANDS, POSITIONAL
from jaxlm.common.command_line import choose_command


@pytest.fixture
def models(shelf, monkeypatch, capsys):
    """Return what `jaxlm models WORDS` prints."""

    def call(*words, code=None):
        monkeypatch.setattr(sys, "argv", ["jaxlm", *words])
        argv = ["models", *map(str, words), *(["--root", str(shelf.root)] if words else [])]
        try:
            choose_command("jaxlm", COMMANDS, argv, positional=POSITIONAL, version="1")
        except SystemExit as error:
            assert error.code == code
        return "".join(capsys.readouterr())

    return call


def test_a_model_from_the_run_to_the_trash_and_back(models, run):
    assert "holds no model; add one" in models("list")
    assert "mine@1: " in models("add", run, "mine", "--license", "mit", "--notes", "two\nlines \x1b[31m")
    assert "mine@1" in models("list") and "1.2500" in models("list")
    shown = models("show", "mine")
    assert "mit" in shown and r"lines \x1b[31m" in shown and "\x1b" not in shown
    assert models("card", "mine@1").startswith("---\nlicense: mit\n")
    assert "mine@1: as it was added" in models("verify")
    assert "mine@1 is in the trash" in models("remove", "mine@1")
    assert "in the trash: mine@1" in models("list")
    assert "mine@1 is on the shelf again" in models("restore", "mine@1")
    assert "mine is now other@1" in models("rename", "mine", "other")


def test_damage_is_an_error_with_its_place(models, run, shelf):
    models("add", run, "mine")
    (shelf.find("mine").model / "config.json").write_text("{}")
    said = models("verify", "mine", code=2)
    assert "mine: differs\n  config.json: found 2 bytes, expected " in said
    assert "error: " in said and "1 of 1 models differ from what was added" in said


def test_the_commands_of_the_group_are_shown(models):
    assert "models restore bring a version back from the trash" in models() and "doctor" not in models()
    assert "error: jaxlm: found no command 'models lst'; did you mean models list?" in models("lst", code=2)

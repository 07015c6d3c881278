import sys

import pytest

from jaxlm.common.next_command import SCRIPTS, next_command
from tests.commands import ROOT


@pytest.fixture
def started(monkeypatch):
    return lambda path: monkeypatch.setattr(sys, "argv", [str(path), "some", "words"])


def test_a_script_of_a_checkout_names_its_neighbour(started):
    started(ROOT / "scripts" / "prepare_data.py")
    words = next_command("train", "--data_dir", "my data").split()
    assert words[0].endswith("python") and words[1] == str(ROOT / "scripts" / "train_jax.py")
    assert next_command("train", "my data").endswith("'my data'")


def test_a_command_names_the_command(started, tmp_path):
    started(tmp_path / "bin" / "jaxlm")
    assert next_command("train", "--resume").endswith("jaxlm train --resume")
    assert next_command("mlx-chat").endswith("mlxlm chat")
    started(tmp_path / "bin" / "mlxlm")
    assert next_command("mlx-chat").endswith("mlxlm chat")


def test_elsewhere_it_is_a_module_of_this_interpreter(started, tmp_path):
    started(tmp_path / "somewhere.py")
    assert next_command("train").endswith("python -m jaxlm train")
    assert next_command("mlx-chat").endswith("python -m mlxlm.chat")


def test_every_script_that_is_named_exists():
    assert all((ROOT / "scripts" / name).is_file() for name in SCRIPTS.values())

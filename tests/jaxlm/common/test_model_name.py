"""A name of the shelf in place of a path, in every command that takes a model."""

import dataclasses
import importlib

import pytest

from jaxlm.__main__ import COMMANDS as JAX_COMMANDS
from jaxlm.common.command_line import parse, settings_class_of
from jaxlm.common.formats.open_model import find_model_tokenizer, model_path, open_model
from jaxlm.common.model_name import ROOT_VARIABLE, find_model, shelf_root, shown_name
from jaxlm.common.sampling import GenerateConfig
from jaxlm.common.shelf.shelf import Shelf
from mlxlm.__main__ import COMMANDS as MLX_COMMANDS
from shared_tokenizer.settings import metadata_of
from tests.jaxlm.common.shelf.conftest import run

__all__ = ["run"]
# Settings that take a model, but one that is no model of the shelf: adapters, or a model of another kind.
MODELS = ("model", "init_from", "teacher", "draft_model", "source", "first", "second")
OTHERS = {("models add", "source"), ("train", "model"), ("train-rl", "model"), ("new-model", "model")}


@pytest.fixture
def shelf(tmp_path, run, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "models"))
    found = Shelf()
    found.add(run, "mine")
    found.add(run, "mine")
    return found


def test_a_name_is_the_path_of_its_model(shelf, run, monkeypatch, tmp_path):
    assert find_model("mine@1") == shelf.root / "mine" / "1" / "model"
    assert find_model("mine") == model_path("mine") == shelf.root / "mine" / "2" / "model"
    assert open_model("mine@2").config.num_layers > 0 and find_model_tokenizer("mine@2", open_model("mine@2")) is None
    with pytest.raises(ValueError, match=r"mine@3: found no such version on the shelf .*, expected one of mine@1"):
        find_model("mine@3")
    with pytest.raises(ValueError, match=r"^other@1: no such file or directory, expected a model"):
        open_model("other@1")
    monkeypatch.chdir(run.parent)
    assert str(find_model("mine")) == "mine"  # a path that is there comes first
    assert shown_name(find_model("mine@2")) == "mine@2" and shown_name(run) == "mine"
    monkeypatch.delenv(ROOT_VARIABLE)
    assert str(shelf_root()) == "models"


def test_settings_hold_the_path(shelf, tmp_path):
    assert parse(GenerateConfig, ["--model", "mine@1"]).model == str(shelf.root / "mine" / "1" / "model")
    settings = tmp_path / "settings.yaml"
    settings.write_text("model: mine\n")
    assert parse(GenerateConfig, ["--config", str(settings)]).model == str(shelf.root / "mine" / "2" / "model")
    with pytest.raises(ValueError, match=r"mine@9: found no such version"):
        parse(GenerateConfig, ["--model", "mine@9"])


@pytest.mark.parametrize(("name", "target"), [*JAX_COMMANDS.items(), *MLX_COMMANDS.items()])
def test_every_setting_that_takes_a_model_takes_a_name(name, target):
    module, _, function = target[0].partition(":")
    settings = settings_class_of(getattr(importlib.import_module(module), function))
    found = {field.name for field in dataclasses.fields(settings) if metadata_of(field).is_model}
    there = {field.name for field in dataclasses.fields(settings) if field.name in MODELS}
    assert found == {field for field in there if (name, field) not in OTHERS}

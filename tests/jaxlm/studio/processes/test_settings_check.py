import json
import operator
import sys

import pytest

from jaxlm.common.command_line import parse
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.studio.processes.settings_check import LEFT_OUT, SettingsCheck, to_nested, to_words
from jaxlm.studio.processes.settings_child import answer, check, describe, field_of
from jaxlm.training.train_config import TrainConfig
from mlxlm.finetune.finetune_config import FinetuneConfig


def test_every_setting_is_described_with_its_help():
    found = {each["name"]: each for each in describe(TrainConfig)}
    assert found["num_train_steps"]["kind"] == "int" and found["num_train_steps"]["resumable"]
    assert found["optimizer.schedule"]["choices"][:2] == ["cosine", "cosine_restarts"]
    assert found["optimizer.schedule"]["group"] == "optimizer"
    assert found["batch_size"]["choices"] == ["auto"] and found["output_dir"]["required"]
    assert found["document_mask"]["default"] is True and found["data_weights"]["kind"] == "other"
    for name, each in found.items():
        assert each["help"] or name.startswith(LEFT_OUT), f"{name} has no help"
    json.dumps(list(found.values()))


def test_the_form_shows_the_defaults_of_the_command():
    config = parse(FinetuneConfig, ["--model", "m", "--data", "d", "--output_dir", "x"])
    found = {each["name"]: each["default"] for each in describe(FinetuneConfig) if not each["required"]}
    assert found == {name: operator.attrgetter(name)(config) for name in found}
    assert found["optimizer.learning_rate"] != OptimizerConfig().learning_rate


NEEDED = ["--output_dir", "x", "--data_dir", "y"]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--optimizer.learning_rate", "-1"], "optimizer.learning_rate"),
        (["--num_train_steps", "many"], "num_train_steps"),
        (["--preset", "none"], None),
        (["--no_such", "1"], "no_such"),
        (["--batch_size", "6", "--grad_accumulation_steps", "4"], "grad_accumulation_steps"),
        (["--num_train_steps", "5", "--num_epochs", "1"], "num_train_steps"),
        (["--optimizer.schedule", "<script>"], "optimizer.schedule"),
    ],
)
def test_the_form_says_what_the_command_line_says(words, field):
    found = check(TrainConfig, [*NEEDED, *words])
    if field is None:  # a preset is looked up when the training starts
        assert found == {"error": None, "field": None}
        return
    with pytest.raises(ValueError) as error:
        parse(TrainConfig, [*NEEDED, *words])
    assert found == {"error": " ".join(str(error.value).split()), "field": field}


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--method", "both"], "method"),
        (["--optimizer.learning_rate", "-1"], "optimizer.learning_rate"),
        (["--method", "qat", "--rank", "4"], "rank"),
        (["--optimizer.name", "muon"], "optimizer.name"),
        (["--batch_size", "0"], "batch_size"),
    ],
)
def test_a_fine_tuning_is_refused_as_its_command_refuses_it(words, field):
    needed = ["--model", "m", "--data", "d", "--output_dir", "x"]
    with pytest.raises(ValueError) as error:
        parse(FinetuneConfig, [*needed, *words])
    found = answer({"command": "mlx-finetune", "argv": [*needed, *words]}, {})
    assert found == {"error": " ".join(str(error.value).split()), "field": field}
    assert answer({"command": "mlx-finetune", "argv": needed}, {}) == {"error": None, "field": None}


def test_a_form_says_how_to_install_what_its_command_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxlm.finetune.command", None)
    for argv in (None, ["--model", "m"]):
        found = answer({"command": "mlx-finetune", "argv": argv}, {})
        assert found["field"] is None and "pip install 'jaxlm[mlx]'" in found["error"]
    assert "expected one of train, " in answer({"command": "no", "argv": None}, {})["error"]


def test_words_are_what_a_person_types():
    values = {
        "seed": "3",
        "sample_prompt": "--x y",
        "dedup": True,
        "model": {"num_layers": 3},
        "empty": "",
        "none": None,
    }
    words = to_words(values | {"data_dir": ["a", "b"], "rate": 0.004, "steps": 10.0})
    assert words == [
        "--seed", "3", "--sample_prompt=--x y", "--dedup", "true", "--model", '{"num_layers": 3}',
        "--data_dir", "a", "b", "--rate", "0.004", "--steps", "10",
    ]  # fmt: skip
    config = parse(TrainConfig, [*to_words({"sample_prompt": "--x y", "output_dir": "o", "data_dir": ["a", "b"]})])
    assert config.sample_prompt == "--x y" and config.data_dir == ["a", "b"]
    assert to_nested({"a.b": 1, "a.c": 2, "d": "", "e": 3}) == {"a": {"b": 1, "c": 2}, "e": 3}


@pytest.mark.parametrize(
    ("message", "field"),
    [("seed: found -1", "seed"), ("--lr: there is no such flag", "lr"), ("a, b: found both", "a"), ("Found it", None)],
)
def test_the_field_of_a_message(message, field):
    assert field_of(message) == field


def test_the_process_answers_and_is_started_again_when_it_died():
    checker = SettingsCheck()
    try:
        assert any(each.name == "vocab_size" for each in checker.describe("prepare"))
        assert checker._process is not None
        checker._process.kill()
        checker._process.wait()
        found = checker.check("prepare", ["--output_dir", "x"])
        assert found is not None and found.field == "tokenizer"
    finally:
        checker.close()

import dataclasses

import pytest

import jaxlm.commands.evaluate
import jaxlm.evaluate
import jaxlm.load
import mlxlm.load
from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.command_line import parse
from mlxlm.evaluate import evaluate_text, main
from mlxlm.evaluate_config import EvaluateConfig
from tests.conftest import VARIANTS

TEXTS = ["def add(a, b):\n    return a + b\n" * 6, "add(a, b)", "# two caf\u00e9s\n" * 4]


@pytest.fixture
def make_artifact(tiny_config, tokenizer, tmp_path):
    files = tmp_path / "tokenizer"
    files.mkdir()
    tokenizer.save(files)

    def make(name, **changes):
        config = dataclasses.replace(tiny_config, **changes)
        save_artifact(tmp_path / name, config, "latent", initial_weights(config, 1), tokenizer_dir=files)
        return tmp_path / name

    return make


@pytest.mark.parametrize("variant", ["ternary", "dense", "mlgru"])
def test_jax_finds_the_same(make_artifact, variant):
    path = make_artifact(variant, **VARIANTS[variant])
    model, params, tokenizer = jaxlm.load.load_model(path)
    expected = jaxlm.evaluate.evaluate_text(model, params, tokenizer, TEXTS, 32, 4)
    found = evaluate_text(*mlxlm.load.load_model(path), TEXTS, 32, 4)
    assert (found.tokens, found.text_bytes) == (expected.tokens, expected.text_bytes)
    assert found.loss == pytest.approx(expected.loss, abs=1e-4)
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-4)


def test_models_are_compared_in_one_table(make_artifact, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXTS[0])
    first = mlxlm.load.load_model(make_artifact("first"))
    make_artifact("second", linear="dense")
    monkeypatch.chdir(tmp_path)
    main(EvaluateConfig(model=["first", "second"], input=["text.txt"], seq_len=16))
    shown = capsys.readouterr().out
    found = evaluate_text(*first, TEXTS[:1], 16, 8)
    for word in ("first", "second", "bits per byte", f"{found.loss:.4f}", f"{found.bits_per_byte:.4f}"):
        assert word in shown


def test_a_model_without_a_tokenizer_is_refused(tiny_config, tmp_path):
    (tmp_path / "text.txt").write_text("text")
    save_artifact(tmp_path / "bare", tiny_config, "latent", initial_weights(tiny_config, 1))
    with pytest.raises(ValueError, match="bare: found no tokenizer"):
        main(EvaluateConfig(model=[str(tmp_path / "bare")], input=[str(tmp_path / "text.txt")]))


@pytest.mark.parametrize("settings_class", [EvaluateConfig, jaxlm.commands.evaluate.EvaluateConfig])
def test_the_text_has_its_former_name_too(settings_class, tmp_path):
    (tmp_path / "settings.yaml").write_text("model: [a]\ndata: [text.txt]\n")
    for argv in (["--model", "a", "--data", "text.txt"], ["--config", str(tmp_path / "settings.yaml")]):
        assert parse(settings_class, argv).input == ["text.txt"]

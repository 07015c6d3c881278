import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.architecture.packing import pack, unpack
from jaxlm.common.architecture.parameters import parameters, scale_name
from jaxlm.common.architecture.ternary import TernaryForm, quantize_weight
from jaxlm.common.artifact.artifact import load_artifact, save_artifact
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.adapters.adapters import add_adapters
from mlxlm.evaluate import evaluate_text
from mlxlm.load import load_model
from mlxlm.merge import main, merge
from mlxlm.merge_config import MergeConfig
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.template import read_chat_format, write_chat_template, write_stop_ids
from shared_tokenizer.manifest import write_manifest
from tests.conftest import VARIANTS

TEXT = "def add(a, b):\n    return a + b\n" * 4
TOKENS = mx.array([[1, 5, 9, 200, 3]])


@pytest.fixture
def make_model(tiny_config, tokenizer, tmp_path):
    files = tmp_path / "tokenizer"
    files.mkdir()
    tokenizer.save(files)

    def make(variant, size=0.05):
        """A latent artifact, and adapters of two kinds of layers in its last block."""
        config = dataclasses.replace(tiny_config, **VARIANTS[variant])
        save_artifact(tmp_path / "model", config, "latent", initial_weights(config, 1), tokenizer_dir=files)
        model, _ = load_model(tmp_path / "model")
        adapters = add_adapters(model, AdapterConfig(rank=4, scale=2.0, keys=("o_proj", "gate_proj"), num_layers=1))
        keys = iter(mx.random.split(mx.random.key(0), 100))
        model.update(tree_map(lambda x: size * mx.random.normal(x.shape, key=next(keys)), model.trainable_parameters()))
        save_adapters(tmp_path / "adapters", model, adapters)
        return config, model

    return make


@pytest.fixture
def merged(tmp_path):
    """Merge, and open what was written."""

    def run(source="model", **settings):
        paths = {"model": source, "adapter_path": "adapters", "output_dir": "merged"}
        report = merge(MergeConfig(**{name: str(tmp_path / path) for name, path in paths.items()}, **settings))
        return report, load_artifact(tmp_path / "merged")

    return run


def updates(model):
    """Return the updates of the adapters, by the name of the parameter."""
    return {
        f"{path}.weight": np.array(2.0 * (module.lora_a @ module.lora_b).T)
        for path, module in model.named_modules()
        if "lora_a" in module
    }


def expected_weights(tmp_path, config, model):
    """Latent weights of the base with the updates added, by attribute, and the names of those that have one."""
    base, added = load_artifact(tmp_path / "model"), updates(model)
    assert len(added) == 2
    weights = {p.attribute: base.tensors[p.name] + added.get(p.attribute, 0) for p in parameters(config)}
    return weights, set(added)


def test_a_dense_model_takes_the_adapters_in_exactly(make_model, merged, tmp_path):
    config, model = make_model("dense")
    report, artifact = merged()
    assert (artifact.config, artifact.kind) == (config, "latent")
    weights, adapted = expected_weights(tmp_path, config, model)
    for parameter in parameters(config):
        np.testing.assert_allclose(artifact.tensors[parameter.name], weights[parameter.attribute], rtol=1e-6, atol=1e-8)
    assert {layer.name for layer in report.layers} == adapted
    assert all(layer.codes_flipped is None and layer.relative_update > 0 for layer in report.layers)
    logits = load_model(tmp_path / "merged")[0](TOKENS)
    np.testing.assert_allclose(np.array(logits), np.array(model(TOKENS)), atol=1e-5)


@pytest.mark.parametrize("variant", ["ternary", "mlgru"])
def test_latent_weights_are_ternarised_anew_and_the_flips_counted(make_model, merged, tmp_path, variant):
    config, model = make_model(variant)
    report, artifact = merged()
    assert (artifact.config, artifact.kind) == (config, "latent")
    weights, adapted = expected_weights(tmp_path, config, model)
    base = load_artifact(tmp_path / "model")
    flips = {}
    for parameter in parameters(config):
        found = artifact.tensors[parameter.name]
        np.testing.assert_allclose(found, weights[parameter.attribute], rtol=1e-6, atol=1e-8)
        if parameter.attribute in adapted:
            codes = [quantize_weight(each, TernaryForm(), np)[0] for each in (base.tensors[parameter.name], found)]
            flips[parameter.attribute] = int((codes[0] != codes[1]).sum())
    assert {layer.name: layer.codes_flipped for layer in report.layers} == flips
    assert all(flips.values())


def packed_model(tmp_path, config):
    """The base with nothing left of its ternary weights but codes and scales."""
    tensors = dict(load_artifact(tmp_path / "model").tensors)
    for parameter in parameters(config):
        if parameter.storage == "ternary":
            shape = config.ternary_form.stored_shape(*parameter.shape)
            codes, scale = quantize_weight(tensors[parameter.name], config.ternary_form, np)
            tensors |= {
                parameter.name: pack(codes),
                scale_name(parameter.name): scale.reshape(shape),
            }
    save_artifact(tmp_path / "packed", config, "packed", tensors.__getitem__)


def test_a_packed_model_is_refused_with_what_would_be_lost(make_model, merged, tmp_path):
    packed_model(tmp_path, make_model("ternary")[0])
    with pytest.raises(
        ValueError, match=r"packed: found a packed model.*would flip [\d,]+ of 3,072 codes.*--from_packed true"
    ):
        merged("packed")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("size", [1e-6, 0.05])
def test_a_packed_model_keeps_its_scales_and_takes_in_what_crosses_half_a_step(make_model, merged, tmp_path, size):
    config, model = make_model("ternary", size)
    packed_model(tmp_path, config)
    report, artifact = merged("packed", from_packed=True)
    base, added = load_artifact(tmp_path / "packed"), updates(model)
    for parameter in parameters(config):
        name, update = parameter.name, added.get(parameter.attribute)
        if update is None:
            np.testing.assert_array_equal(artifact.tensors[name], base.tensors[name])
            continue
        scale = base.tensors[scale_name(name)]
        np.testing.assert_array_equal(artifact.tensors[scale_name(name)], scale)
        codes = unpack(base.tensors[name], parameter.shape[0])
        expected = np.clip(np.round(codes + update / scale), -1, 1)
        np.testing.assert_array_equal(unpack(artifact.tensors[name], parameter.shape[0]), expected)
    flips = [layer.codes_flipped for layer in report.layers]
    assert all(flips) if size == 0.05 else not any(flips)


def test_the_loss_of_base_adapters_and_merged_is_reported(make_model, tmp_path, capsys):
    _, model = make_model("ternary")
    (tmp_path / "text.txt").write_text(TEXT)
    names = {"model": "model", "adapter_path": "adapters", "output_dir": "merged"}
    main(MergeConfig(**{k: str(tmp_path / v) for k, v in names.items()}, data=[str(tmp_path / "text.txt")], seq_len=32))
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "merged" / "merge.json").read_text())
    losses = {name: found["nats"] / found["tokens"] for name, found in report["evaluations"].items()}
    (base, tokenizer), (merged, _) = load_model(tmp_path / "model"), load_model(tmp_path / "merged")
    for name, each in (("base", base), ("with adapters", model), ("merged", merged)):
        assert losses[name] == pytest.approx(evaluate_text(each, tokenizer, [TEXT], 32, 8).loss)
    assert len(set(losses.values())) == 3
    assert all(f"{loss:.4f}" in shown for loss in losses.values()) and "ternary codes: " in shown


def test_nothing_is_left_where_it_fails(make_model, merged, tmp_path):
    make_model("ternary")
    with pytest.raises(ValueError, match="seq_len: found 9 without data to evaluate on"):
        merged(seq_len=9)
    with pytest.raises(ValueError, match="no such file or folder"):
        merged(data=[str(tmp_path / "none")])
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("")
    with pytest.raises(ValueError, match="already exists and is not empty"):
        merged()
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine"]


def test_the_merged_model_talks_as_its_adapters_were_taught(make_model, merged, tokenizer, tmp_path):
    make_model("ternary")
    for write in (write_chat_template, write_stop_ids):
        write(tmp_path / "adapters", CHATML, tokenizer)
    write_manifest(tmp_path / "adapters")
    merged()
    assert read_chat_format(tmp_path / "merged") is CHATML
    kept = "generation_config.json"
    assert (tmp_path / "merged" / kept).read_bytes() == (tmp_path / "adapters" / kept).read_bytes()

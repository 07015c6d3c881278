import ast
import dataclasses
import json
import subprocess
import sys
from itertools import product

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

import mlxlm.load
from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import parameters, scale_name
from jaxlm.common.architecture.ternary import quantize_rows, quantize_weight
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats.mlx import needs_model_file, open_mlx, write_mlx
from jaxlm.common.sampling import Sampling
from mlxlm.generate import generate
from mlxlm.model.model_file import model_file_source
from shared_tokenizer.manifest import sealed_directory, verify_manifest
from tests.conftest import LINEAR, LLAMA3, VARIANTS, YARN

FORMS = ("packed", "float")
UNPACKED = [
    (name, "packed") for name, changes in VARIANTS.items() if changes.get("linear") == "dense"
]  # nothing to pack

PLAIN = {"linear": "dense", "sub_norm": False}
LORA = {"rank": 4, "scale": 2.0, "dropout": 0.0}


def latent_values(config):
    rng = np.random.default_rng(0)
    return {
        p.name: (rng.standard_normal(p.shape) * 0.1 + p.name.endswith("norm.weight")).astype(np.float32)
        for p in parameters(config)
    }


def packed_values(config):
    values = latent_values(config)
    for p in parameters(config):
        if p.storage == "ternary":
            shape = config.ternary_form.stored_shape(*p.shape)
            codes, scale = quantize_weight(values[p.name], config.ternary_form, np)
            values |= {
                p.name: pack(codes),
                scale_name(p.name): scale.reshape(shape),
            }
        elif p.storage == "int8":
            values[p.name], values[scale_name(p.name)] = quantize_rows(values[p.name], np)
    return values


def mlx_directory(path, config, form, **options):
    """Write an MLX directory of random weights, the same in both forms."""
    values = packed_values(config) if form == "packed" else latent_values(config)
    model_file = model_file_source() if needs_model_file(config) else None
    with sealed_directory(path) as temporary:
        write_mlx(temporary, config, values.__getitem__, form=form, model_file=model_file, **options)
    return path


def own_model(path, config):
    """Return mlxlm's model of the same weights."""
    save_artifact(path, config, "latent", latent_values(config).__getitem__)
    return mlxlm.load.load_model(path)[0]


def stock_model(path):
    """Return stock mlx-lm's model of a directory."""
    return mlx_lm.utils.load_model(path, trust_remote_code=True)[0]


def imports(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_file_stands_alone_and_is_clean():
    source = model_file_source()
    roots = {name.partition(".")[0] for name in imports(source)}
    assert roots - sys.stdlib_module_names == {"mlx", "mlx_lm", "numpy"}
    defined = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == len(set(defined))
    for command in (["check", "--select", "E,F,I"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", "-"]
        done = subprocess.run(ruff, input=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_imports_nothing_of_ours_and_no_jaxtyping(tmp_path, tiny_config):
    directory = mlx_directory(tmp_path / "mlx", tiny_config, "packed")
    program = (
        "import sys\n"
        "for name in ('jaxtyping', 'jaxlm', 'mlxlm', 'shared_tokenizer'): sys.modules[name] = None\n"  # no import works
        "import pathlib, mlx.core, mlx_lm.utils\n"
        f"model, _ = mlx_lm.utils.load_model(pathlib.Path({str(directory)!r}), trust_remote_code=True)\n"
        "print(*model(mlx.core.array([[1, 5, 9]])).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 3 {tiny_config.vocab_size}\n"


def test_it_is_run_only_where_the_user_allows_it(tmp_path, tiny_config):
    directory = mlx_directory(tmp_path / "mlx", tiny_config, "packed")
    with pytest.raises(ValueError, match=r"custom module \('model.py'\).*trust_remote_code=True"):
        mlx_lm.utils.load_model(directory)


@pytest.mark.parametrize(("variant", "form"), [case for case in product(VARIANTS, FORMS) if case not in UNPACKED])
def test_stock_mlx_lm_computes_the_model(tmp_path, tiny_config, variant, form):
    config = dataclasses.replace(tiny_config, **VARIANTS[variant])
    directory = mlx_directory(tmp_path / "mlx", config, form)
    ours, theirs = own_model(tmp_path / "own", config), stock_model(directory)
    prompt = np.random.default_rng(1).integers(0, 300, 10).tolist()
    logits = [np.array(model(mx.array([prompt]))) for model in (ours, theirs)]
    np.testing.assert_array_equal(*logits)
    tokens = [token for token, _ in generate_step(mx.array(prompt), theirs, max_tokens=8)]
    assert tokens == list(generate(ours, prompt, Sampling(max_tokens=8)))
    verify_manifest(directory)  # what Python left there is no damage


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": LINEAR},
        {"rope_scaling": LLAMA3},
        {"attention_bias": True, "tie_word_embeddings": False},
        {"qk_norm": True, "head_dim": 16, "rope_scaling": YARN},
    ],
)
def test_stock_mlx_lm_computes_its_own_models_without_a_model_file(tmp_path, tiny_config, changes):
    config = dataclasses.replace(tiny_config, **PLAIN | changes)
    theirs = mlx_lm.utils.load_model(mlx_directory(tmp_path / "mlx", config, "float"))[0]
    tokens = mx.array(np.random.default_rng(1).integers(0, 300, (1, 10)))
    expected = np.array(own_model(tmp_path / "own", config)(tokens))
    np.testing.assert_allclose(np.array(theirs(tokens)), expected, atol=1e-5)


@pytest.mark.parametrize("changes", [PLAIN, PLAIN | {"qk_norm": True, "rope_scaling": YARN}, {}])
def test_what_mlx_lm_saved_is_read_back(tmp_path, tiny_config, changes):
    config = dataclasses.replace(tiny_config, eos_id=2, **changes)
    form = "packed" if config.has_packed_form else "float"
    model, content = mlx_lm.utils.load_model(mlx_directory(tmp_path / "mlx", config, form), trust_remote_code=True)
    mlx_lm.utils.save_model(tmp_path / "saved", model)
    mlx_lm.utils.save_config(content, tmp_path / "saved" / "config.json")
    artifact, expected = open_mlx(tmp_path / "saved"), open_mlx(tmp_path / "mlx")
    assert (artifact.config, artifact.kind) == (config, expected.kind)
    for name in expected.tensors:
        np.testing.assert_array_equal(artifact.tensors[name], expected.tensors[name])


def lora_model(directory):
    model = stock_model(directory)
    model.freeze()
    linear_to_lora_layers(model, num_layers=2, config=LORA)
    return model


def test_stock_lora_trains_the_adapters_of_every_linear_and_nothing_else(tmp_path, tiny_config):
    config = dataclasses.replace(tiny_config, **VARIANTS["hybrid"] | {"num_layers": 3})
    model = lora_model(mlx_directory(tmp_path / "mlx", config, "packed"))
    names = set(dict(tree_flatten(model.trainable_parameters())))
    # Two layers of seven linears each, with an A and a B.
    assert len(names) == 2 * 7 * 2 and all(name.endswith(("lora_a", "lora_b")) for name in names)
    tokens = mx.array(np.random.default_rng(1).integers(0, 300, (2, 10)))
    step = nn.value_and_grad(model, lambda: nn.losses.cross_entropy(model(tokens), tokens).mean())
    gradients = dict(tree_flatten(step()[1]))
    assert set(gradients) == names
    assert all(mx.abs(gradients[name]).max() > 0 for name in names if name.endswith("lora_b"))


def test_stock_mlx_lm_loads_adapters(tmp_path, tiny_config):
    directory = mlx_directory(tmp_path / "mlx", tiny_config, "packed")
    model = lora_model(directory)
    tokens = mx.array([[1, 5, 9]])
    before = np.array(model(tokens))
    np.testing.assert_array_equal(before, np.array(stock_model(directory)(tokens)))
    trained = {name: value + 0.1 for name, value in tree_flatten(model.trainable_parameters())}
    model.load_weights(list(trained.items()), strict=False)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), trained)
    settings = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": LORA}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    loaded = np.array(load_adapters(stock_model(directory), tmp_path)(tokens))
    np.testing.assert_array_equal(loaded, np.array(model(tokens)))
    assert np.abs(loaded - before).max() > 0.1

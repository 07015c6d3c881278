"""Inspections of directories and files in every form of the same models, and of other families."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlm.common.architecture.parameters import stored_tensors, tensor_bytes
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.artifact.safetensors import TensorFile
from jaxlm.common.gguf.writer import write_gguf
from jaxlm.conversion.inspection import inspect_model, lora_memory, our_forms, qat_memory
from tests.conftest import TINY
from tests.jaxlm.common.formats.test_as_ternary import DENSE, latents, unpacked
from tests.jaxlm.common.formats.test_hub import write as write_hub
from tests.jaxlm.common.formats.test_mlx_quantized import GROUPED, packed_tensors
from tests.jaxlm.common.formats.test_mlx_quantized import write as write_mlx

Q = "model.layers.0.self_attn.q_proj.weight"


def inspected(path):
    lines = []
    return inspect_model(path, lines.append), lines


def by_name(inspection):
    return {matrix.name: matrix for matrix in inspection.matrices}


@pytest.mark.parametrize("form", ["floats", "mlx", "gguf", "packed"])
def test_the_same_model_is_the_same_in_every_form(tmp_path, form):
    tensors = packed_tensors(GROUPED)
    path = tmp_path / form
    if form == "floats":
        unpacked(path, GROUPED, tensors)
    elif form == "mlx":
        write_mlx(path, GROUPED, tensors)
    elif form == "gguf":
        path = path.with_suffix(".gguf")
        write_gguf(path, GROUPED, tensors.__getitem__, kind="packed")
    else:
        save_artifact(path, GROUPED, "packed", tensors.__getitem__)
    found, _ = inspected(path)
    assert found.config == GROUPED
    assert found.is_hidden == (form == "floats")
    matrix = by_name(found)[Q]
    assert (matrix.form, matrix.scale_per, matrix.scale_dtype) == ("ternary", "group:64", "float16")
    expected = np.mean([(tensors[Q] >> shift & 3) == 1 for shift in (0, 2, 4, 6)])
    assert matrix.zeros == pytest.approx(expected)
    assert len(found.matrices) == 15


def test_what_config_and_weights_say_is_told_apart(tmp_path):
    unpacked(tmp_path / "floats", GROUPED, packed_tensors(GROUPED))
    found, lines = inspected(tmp_path / "floats")
    assert found.is_hidden and len(lines) == 1 and "since nothing in its files names a quantizer" in lines[0]
    dense, lines = inspected(write_hub(tmp_path / "dense", DENSE, latents()))
    assert dense.config is not None and dense.config.linear == "dense" and not dense.is_hidden and lines == []
    assert {matrix.form for matrix in dense.matrices} == {"dense"}
    shapes = {tensor.name: tensor.shape for tensor in stored_tensors(TINY, "latent")}
    save_artifact(tmp_path / "latent", TINY, "latent", lambda name: np.full(shapes[name], 0.5, np.float32))
    latent, _ = inspected(tmp_path / "latent")
    assert latent.config == TINY and not latent.is_hidden


def test_one_file_of_weights_is_looked_at_without_a_config(tmp_path):
    directory = unpacked(tmp_path / "floats", GROUPED, packed_tensors(GROUPED))
    found, _ = inspected(directory / "model.safetensors")
    assert found.config is None
    assert by_name(found)[Q].scale_per == "group:64"
    assert set(by_name(found)) == {n for n in TensorFile(directory / "model.safetensors") if "norm" not in n}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: np.sign(weight), r"q_proj.weight: found weights of another family \(binary\)"),
        (lambda weight: np.clip(np.round(weight), -2, 1), r"another family \(quantized to 4 levels\)"),
    ],
)
def test_another_family_is_refused_by_its_weights(tmp_path, change, message):
    tensors = latents()
    directory = write_hub(tmp_path / "other", DENSE, tensors | {Q: change(tensors[Q]).astype(np.float32)})
    with pytest.raises(ValueError, match=message):
        inspected(directory)


def test_another_family_is_refused_by_its_config(tmp_path):
    directory = write_hub(tmp_path / "other", DENSE | {"num_local_experts": 8}, latents())
    with pytest.raises(ValueError, match=r"found a mixture of experts .*num_local_experts 8"):
        inspected(directory)
    content = json.loads((directory / "config.json").read_text()) | {"num_local_experts": 1, "model_type": "gemma3"}
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model_type: found 'gemma3'"):
        inspected(directory)


def test_every_form_has_its_bytes_or_a_reason(tmp_path):
    forms = {form.name: form for form in our_forms(GROUPED)}
    assert list(forms) == ["packed", "latent", "dequantized", "mlx", "gguf Q2_0", "gguf TQ2_0", "gguf TQ1_0"]
    assert forms["packed"].bytes == tensor_bytes(GROUPED, "packed")
    write_gguf(tmp_path / "model.gguf", GROUPED, packed_tensors(GROUPED).__getitem__, kind="packed")
    in_file = (tmp_path / "model.gguf").stat().st_size
    size = forms["gguf Q2_0"].bytes
    assert size is not None and size < in_file < size + 8192
    assert forms["gguf TQ2_0"].bytes is None and "multiple of 256" in forms["gguf TQ2_0"].note
    assert forms["mlx"].note == "for stock mlx-lm as it is"
    with_int8 = dataclasses.replace(GROUPED, activation_bits=8)
    assert {form.name: form.note for form in our_forms(with_int8)}["mlx"] == "with a model file"
    dense = dataclasses.replace(TINY, linear="dense", sub_norm=False)
    assert [form.name for form in our_forms(dense)] == ["latent", "mlx", "gguf"]
    assert 0 < lora_memory(GROUPED, 16) < qat_memory(GROUPED, 16)

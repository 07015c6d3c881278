import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.open_model import open_model
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapters import add_adapters
from mlxlm.finetune.qat import latent_model
from mlxlm.load import built_model
from mlxlm.model.loss import _chunks, batch_nats, loss_sum
from mlxlm.model.trees import flat_arrays
from tests.conftest import VARIANTS


@pytest.fixture(autouse=True)
def uncompiled():
    """Turn compilation off: on a CPU, MLX compiles with g++, which takes seconds per test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def batch():
    ids = mx.random.randint(0, 300, (3, 9), key=mx.random.key(0))
    mask = mx.arange(24).reshape(3, 8) % 5 > 0
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": mx.zeros((3, 8), mx.int32), "loss_mask": mask}


def value_and_gradient(model, chunks):
    def mean_loss(model, batch):
        total, count = loss_sum(model, batch, chunks)
        return 3 * total / count  # not 1: the backward pass has to scale

    loss, gradients = nn.value_and_grad(model, mean_loss)(model, batch())
    return {"loss": loss} | flat_arrays(gradients)


def value_and_gradient_of_rows(model, chunks):
    def loss(model, batch):  # whose gradient by a token depends on the others of its row
        return mx.sum(mx.square(mx.sum(batch_nats(model, batch, chunks) * batch["loss_mask"], axis=1) - 20))

    value, gradients = nn.value_and_grad(model, loss)(model, batch())
    return {"loss": value} | flat_arrays(gradients)


def assert_a_loss_in_chunks_is_that_of_all_logits(model):
    expected, found = value_and_gradient(model, 1), value_and_gradient(model, 5)
    assert found.keys() == expected.keys()
    rows = value_and_gradient_of_rows(model, 5), value_and_gradient_of_rows(model, 1)
    for path, array in rows[1].items():
        np.testing.assert_allclose(rows[0][path], array, atol=1e-5 * max(1, mx.abs(array).max().item()), err_msg=path)
    for path, array in expected.items():
        np.testing.assert_allclose(found[path], array, atol=1e-5 * max(1, mx.abs(array).max().item()), err_msg=path)
    model.eval()
    np.testing.assert_allclose(loss_sum(model, batch(), 5)[0], loss_sum(model, batch(), 1)[0], rtol=1e-6)
    np.testing.assert_allclose(batch_nats(model, batch(), 5), batch_nats(model, batch(), 1), rtol=1e-5)


@pytest.mark.parametrize("variant", ["ternary", "dense", "ternary_head", "int8_embedding", "ternary_embedding"])
def test_a_loss_in_chunks_is_that_of_all_logits(tiny_config, tmp_path, variant):
    save_blank_artifact(tmp_path / "model", dataclasses.replace(tiny_config, **VARIANTS[variant]), seed=1)
    assert_a_loss_in_chunks_is_that_of_all_logits(latent_model(open_model(tmp_path / "model")))


def test_so_it_is_where_the_head_is_not_trained(tiny_config, tmp_path):
    save_blank_artifact(tmp_path / "model", tiny_config, seed=1)
    model = built_model(open_model(tmp_path / "model"))
    add_adapters(model, AdapterConfig(rank=4))
    assert_a_loss_in_chunks_is_that_of_all_logits(model)


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "trained", "cpu", "gpu"),
    [
        (2048, 300, 0, 1, 1),
        (2048, 32000, 0, 32, 1),
        (2048, 32000, 512 * 32000, 4, 1),
        (8192, 128256, 0, 128, 4),
        (100, 128256, 0, 2, 1),
    ],
)
def test_logits_of_a_chunk_are_small_or_of_few_tokens(tokens, vocab_size, trained, cpu, gpu, monkeypatch):
    for device, expected in ((mx.cpu, cpu), (mx.gpu, gpu)):
        monkeypatch.setattr("mlxlm.model.loss.mx.default_device", lambda device=device: mx.Device(device))
        assert _chunks(tokens, vocab_size, trained) == expected


@pytest.mark.parametrize("variant", ["ternary", "mlgru"])
def test_a_batch_without_segments_is_one_segment_a_row(tiny_config, tmp_path, variant):
    save_blank_artifact(tmp_path / "model", dataclasses.replace(tiny_config, **VARIANTS[variant]), seed=1)
    model = latent_model(open_model(tmp_path / "model"))
    whole = {name: rows for name, rows in batch().items() if name != "segment_ids"}
    np.testing.assert_allclose(loss_sum(model, whole)[0], loss_sum(model, batch())[0], rtol=1e-6)

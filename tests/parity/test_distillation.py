"""Distillation in JAX and in MLX from the same models, and by the formulas in numpy."""

import dataclasses
from typing import Any, cast

import jax
import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.objectives import distillation as formulas
from jaxlm.common.objectives.distillation import Distillation, relation_heads
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.ternary_linear import quantize_params, ternarize, with_ternary
from jaxlm.training.objectives.distillation import distillation
from jaxlm.training.objectives.objective import Sums
from mlxlm.finetune.objectives.distillation import distillation as mlx_distillation
from mlxlm.finetune.qat import latent_model
from mlxlm.load import built_model
from mlxlm.model.trees import flat_arrays
from tests.conftest import TINY, VARIANTS
from tests.parity.test_training_step import as_mlx, batch, by_attribute, distance

DENSE = VARIANTS["dense"] | {"head_dim": 8}
STUDENTS = {
    "logits": (DENSE, Distillation(weight=0.3, temperature=2.0)),
    "both": (DENSE, Distillation(weight=1.0, temperature=1.5, top_k=5, relations_weight=3.0, relations_layer=0)),
    "pattern": (VARIANTS["hybrid"] | {"num_layers": 3}, Distillation(weight=0.0, relations_weight=3.0)),
    "ternary_head": (VARIANTS["ternary_head"] | {"num_layers": 1}, Distillation(weight=0.5)),
}


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A wider and deeper float model."""
    path = tmp_path_factory.mktemp("teacher") / "artifact"
    wider = {"hidden_size": 48, "num_heads": 6, "num_kv_heads": 3, "num_layers": 3}
    save_blank_artifact(path, dataclasses.replace(TINY, **DENSE | wider), seed=2)
    return open_model(path)


@pytest.fixture(params=STUDENTS)
def student(request, tmp_path):
    changes, settings = STUDENTS[request.param]
    save_blank_artifact(tmp_path / "student", dataclasses.replace(TINY, **changes), seed=1)
    return open_model(tmp_path / "student"), settings


def of_jax(student, teacher, settings, arrays):
    """In one program: logits and projections of both models; the objective in one part, and in three with gradients."""
    model, extras = LanguageModel(student.config), {"teacher": artifact_params(teacher)}
    layers = settings.layers(student.config, teacher.config)

    def outputs(artifact, params, layer):
        model, params = LanguageModel(artifact.config), {"params": ternarize(params, artifact.config)}
        inputs = arrays["inputs"], arrays["positions"], arrays["segment_ids"]
        _, projections = model.apply(params, *inputs, layer, method="operands_and_projections")
        return model.apply(params, *inputs), [each.reshape(2, 12, -1) for each in jax.tree.leaves(projections)]

    def loss(params, chunks):
        weights = with_ternary(params, quantize_params(params, student.config))
        found = distillation(teacher.config, settings, chunks)(model, weights, arrays, extras)
        return found.loss, found

    @jax.jit
    def everything(params):
        both = outputs(student, params, layers[0]), outputs(teacher, extras["teacher"], layers[1])
        in_parts = (jax.value_and_grad(loss, has_aux=True)(params, chunks) for chunks in (1, 3))
        return both, loss(params, 3)[1], *((found, gradients) for (_, found), gradients in in_parts)

    return everything(artifact_params(student))


def by_formula(student, teacher, settings, arrays, outputs):
    """The objective's loss and metrics in numpy."""
    (learned, ours), (taught, theirs) = jax.tree.map(np.asarray, outputs)
    mask = arrays["loss_mask"]
    probabilities = np.exp(learned - learned.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    heads = relation_heads(student.config, teacher.config)
    per_token = {
        "next_token": -np.log(np.take_along_axis(probabilities, arrays["targets"][..., None], axis=-1))[..., 0]
    }
    if settings.weight:
        divergence = formulas.logits_divergence(taught, learned, settings.temperature, settings.top_k)
        per_token["teacher_divergence"] = divergence
    if settings.relations_weight:
        pairs = zip(theirs, ours, strict=True)
        found = [formulas.relations_divergence(*pair, heads, arrays["segment_ids"]) for pair in pairs]
        per_token["relations"] = np.mean(found, axis=0)
    sums = {name: float((numbers * mask).sum()) for name, numbers in per_token.items()}
    loss = (1 - settings.weight) * sums["next_token"]
    loss += settings.weight * settings.temperature**2 * sums.get("teacher_divergence", 0)
    return loss + settings.relations_weight * sums.get("relations", 0), sums


def test_one_step_of_both_is_the_formula(student, teacher):
    student, settings = student
    config, arrays = student.config, batch(student.config.vocab_size)
    outputs, without_gradients, (whole, gradients), (parts, of_parts) = of_jax(student, teacher, settings, arrays)
    expected, sums = by_formula(student, teacher, settings, arrays, outputs)
    is_float = config.linear == "dense"
    tolerance = 2e-6 if is_float else 1e-3  # where one last bit may flip a rounding
    assert float(whole.loss) == pytest.approx(expected, rel=tolerance)
    assert {name: float(value) for name, value in whole.metrics.items()} == pytest.approx(sums, rel=10 * tolerance)
    assert int(whole.num_examples) == arrays["loss_mask"].sum()
    flat = by_attribute(config, gradients)
    for found in (parts, without_gradients):
        assert float(found.loss) == pytest.approx(float(whole.loss), rel=1e-6)
    assert distance(by_attribute(config, of_parts), flat) < 1e-5

    ours = latent_model(student)
    frozen = built_model(teacher)
    frozen.freeze()
    for chunks in (1, 3):
        objective = mlx_distillation(frozen, settings, chunks)
        found, mlx_gradients = mlx.nn.value_and_grad(ours, lambda *inputs: tuple(objective(*inputs)))(  # noqa: B023
            ours, as_mlx(arrays)
        )
        found = Sums(*found)
        if is_float:
            count = float(whole.num_examples)
            assert found.loss.item() / count == pytest.approx(float(whole.loss) / count, abs=1e-6)
            assert distance(flat_arrays(mlx_gradients), flat) < 1e-5
        else:
            assert found.loss.item() == pytest.approx(float(whole.loss), rel=1e-3)
        assert {name: value.item() for name, value in found.metrics.items()} == pytest.approx(sums, rel=10 * tolerance)


def test_a_model_has_nothing_to_learn_from_itself(teacher):
    settings = Distillation(weight=1.0, relations_weight=1.0, top_k=7)
    arrays, params = cast(Any, batch(300)), artifact_params(teacher)
    objective, model = distillation(teacher.config, settings), LanguageModel(teacher.config)
    found = jax.jit(lambda params: objective(model, params, arrays, {"teacher": params}))(params)
    assert abs(float(found.loss)) < 1e-4 and float(found.metrics["next_token"]) > 10
    same = built_model(teacher)
    assert abs(mlx_distillation(same, settings)(same, as_mlx(arrays)).loss.item()) < 1e-4

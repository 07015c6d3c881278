"""A stored teacher teaches what the teacher itself does: losses and gradients, in JAX and in MLX."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxlm.checkpoints.weights import artifact_params, frozen_params
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.objectives.distillation import Distillation
from jaxlm.common.objectives.stored_teacher import taught_sets
from jaxlm.model.language_model import LanguageModel
from jaxlm.training.objectives.distillation import distillation, stored_distillation
from jaxlm.training.store_teacher import main
from jaxlm.training.store_teacher_config import StoreTeacherConfig
from mlxlm.finetune.objectives.distillation import distillation as mlx_distillation
from mlxlm.finetune.objectives.distillation import stored_distillation as mlx_stored_distillation
from mlxlm.finetune.qat import latent_model
from mlxlm.load import built_model
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.data.batches import evaluation_batches
from shared_tokenizer.data.data_sets import DataSets
from tests.conftest import TINY, VARIANTS, prepare_texts
from tests.mlxlm.small_models import save_model
from tests.parity.test_training_step import as_mlx, distance

DENSE = VARIANTS["dense"] | {"num_layers": 1, "head_dim": 8}
SEQ_LEN, STORED = 16, 8
# Of the tokens that are stored: all, and the likeliest of them.
SETTINGS = {"windows": Distillation(weight=0.3), "best_fit": Distillation(weight=1.0, top_k=5)}


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with shards, a teacher and a student."""
    path = tmp_path_factory.mktemp("stored")
    prepare_texts(path / "data", [f"def f{number}(x):\n    return x + {number}\n" for number in range(30)], tokenizer)
    save_model(path / "teacher", TINY, tokenizer, **DENSE | {"logit_softcap": 9.0, "embedding_range": 0.5})
    save_model(path / "student", TINY, tokenizer, **DENSE | {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2})
    return path


@pytest.mark.parametrize("packing", ["windows", "best_fit"])
def test_losses_and_gradients_are_those_of_the_teacher(place, packing):
    settings = SETTINGS[packing]
    stored = StoreTeacherConfig(
        teacher=str(place / "teacher"),
        data_dir=[str(place / "data")],
        output_dir=str(place / f"stored-{packing}"),
        seq_len=SEQ_LEN,
        teacher_top_k=STORED,
        batch_size=4,
        packing=packing,
    )
    main(stored)
    sets = DataSets.open([place / "data"], SEQ_LEN, packing=packing)
    taught = taught_sets(Path(stored.output_dir), sets, SEQ_LEN, settings, document_mask=True, verify=True)
    batch: Any = evaluation_batches(taught.train, 4, 1)[0]
    teacher, student = open_model(place / "teacher"), open_model(place / "student")
    live = dataclasses.replace(settings, top_k=settings.top_k or STORED)

    model, extras = LanguageModel(student.config), {"teacher": frozen_params(teacher)}

    def mean(params, objective):
        sums = objective(model, params, batch, extras)
        return sums.loss / sums.num_examples, sums.metrics["teacher_divergence"]

    @jax.jit
    def both(params):
        objectives = distillation(teacher.config, live), stored_distillation(settings, 2)
        return [jax.value_and_grad(mean, has_aux=True)(params, objective) for objective in objectives]

    (expected, by_teacher), (found, by_stored) = both(artifact_params(student))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[1] > 1 and distance(flatten_dict(by_stored), flatten_dict(by_teacher)) < 1e-6

    ours, frozen = latent_model(student), built_model(teacher)
    frozen.freeze()
    results = []
    for objective in mlx_distillation(frozen, live), mlx_stored_distillation(settings, 2):
        gradients = mlx.nn.value_and_grad(ours, lambda model, batch: tuple(objective(model, batch)))  # noqa: B023
        results.append(gradients(ours, as_mlx(batch)))
    (whole, by_teacher), (parts, by_stored) = results
    assert parts[0].item() == pytest.approx(whole[0].item(), rel=1e-6)
    assert parts[0].item() / parts[1].item() == pytest.approx(float(found[0]), abs=1e-6)
    assert distance(flat_arrays(by_stored), flat_arrays(by_teacher)) < 1e-6

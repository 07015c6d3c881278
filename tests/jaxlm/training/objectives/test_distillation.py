"""Runs with a teacher: resumed equal to the bit, and refused with another teacher; ternary teachers."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest

from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.model.language_model import LanguageModel
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.training.inputs import open_sets
from jaxlm.training.objectives.choose import choose_objective
from jaxlm.training.trainer import train
from tests.conftest import TINY, VARIANTS, prepare_texts
from tests.jaxlm.training.test_train_step import make_batch
from tests.jaxlm.training.test_trainer import config as run_config
from tests.mlxlm.small_models import save_model, save_packed


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with shards, a float model and a ternary one."""
    path = tmp_path_factory.mktemp("distillation")
    texts = [f"def f{number}(x):\n    return x + {number}\n" * 4 for number in range(40)]
    prepare_texts(path / "data", texts, tokenizer)
    save_model(path / "teacher", TINY, tokenizer, **VARIANTS["dense"] | {"num_layers": 2, "head_dim": 8})
    save_packed(path / "packed", save_model(path / "latent", TINY, tokenizer))
    return path


def config(place, name, teacher="teacher", **settings):
    return run_config(place, name, teacher=str(place / teacher), **settings)


@pytest.mark.whole
def test_a_run_with_a_teacher_resumes_equal_to_the_bit_and_knows_its_teacher(place, capsys):
    settings = {"teacher_relations_weight": 2.0, "teacher_top_k": 5, "grad_accumulation_steps": 2}
    whole = config(place, "whole", **settings)
    assert train(whole)
    assert re.search(r"memory per device: state .*, teacher .*, a step ", capsys.readouterr().out)
    lines = read_metrics(place / "whole" / "metrics.jsonl")
    names = ("train/loss", "train/next_token", "train/teacher_divergence", "train/relations")
    assert all(0 < line[name] < 20 for line in lines for name in names)
    found, cross_entropy, divergence, relations = (lines[0][name] for name in names)
    assert found == pytest.approx(0.5 * cross_entropy + 0.5 * 4 * divergence + 2 * relations, rel=1e-5)

    shutil.copytree(place / "whole", place / "parts")
    shutil.rmtree(place / "parts" / "checkpoints" / "4")
    parts = dataclasses.replace(whole, output_dir=str(place / "parts"), resume=True)
    assert train(parts)
    assert "resuming after step 2" in capsys.readouterr().out
    model = "artifact/model.safetensors"
    assert (place / "parts" / model).read_bytes() == (place / "whole" / model).read_bytes()

    shutil.move(place / "teacher", place / "moved")
    shutil.copytree(place / "latent", place / "teacher")
    with pytest.raises(ValueError, match=r"was trained with teacher .*resume with the same teacher"):
        train(parts)
    shutil.rmtree(place / "teacher")
    shutil.move(place / "moved", place / "teacher")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_relations_weight": 1.0, "teacher_relations_layer": 1}, "teacher_relations_layer: found 1, expected"),
        ({"model": {"vocab_size": 320, "num_layers": 1}}, "found a vocabulary of 300 tokens, expected the model's 320"),
        ({"teacher": "nowhere"}, "nowhere"),
        ({"teacher_weight": 0.0}, "teacher_weight, teacher_relations_weight: found 0 for both"),
        ({"teacher_layer": 1}, "teacher_layer: has no effect without teacher_relations_weight"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(place, settings, message):
    with pytest.raises(ValueError, match=message):
        train(config(place, "refused", **settings))
    assert not (place / "refused").exists()


def test_a_ternary_teacher_teaches_what_it_computes_packed(place):
    sets, found = open_sets(config(place, "unused"), make_mesh(MeshConfig())), []
    for name in ("latent", "packed"):
        found.append(choose_objective(config(place, "unused", name, teacher_weight=1.0), sets, 16, 1))
    latent, packed = (objective.read_extras() for objective in found)
    jax.tree.map(np.testing.assert_array_equal, latent, packed)
    student = open_model(place / "teacher")
    model, params = LanguageModel(student.config), artifact_params(student)
    sums = jax.jit(lambda params, extras: found[0].function(model, params, make_batch(), extras))(params, packed)
    assert float(sums.loss) == pytest.approx(4 * float(sums.metrics["teacher_divergence"])) and float(sums.loss) > 0

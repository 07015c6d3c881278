"""The layers and heads that a distillation compares, and its formulas."""

import dataclasses

import numpy as np
import pytest

from jaxlm.common.objectives.distillation import Distillation, logits_divergence, relation_heads, relations_divergence
from tests.conftest import TINY, VARIANTS

STUDENT = dataclasses.replace(TINY, **VARIANTS["dense"] | {"num_layers": 6, "head_dim": 8})
TEACHER = dataclasses.replace(STUDENT, num_layers=9, hidden_size=48, num_heads=6, num_kv_heads=3)
MLGRU = dataclasses.replace(TINY, **VARIANTS["mlgru"])
HYBRID = dataclasses.replace(TINY, **VARIANTS["hybrid"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, (5, 8)), ({"relations_layer": 3}, (3, 5)), ({"relations_layer": 0}, (0, 1)), ({"teacher_layer": 0}, (5, 0))],
)
def test_layers_are_of_the_same_relative_depth(settings, expected):
    assert Distillation(**settings).layers(STUDENT, TEACHER) == expected


@pytest.mark.parametrize(
    ("settings", "student", "teacher", "message"),
    [
        ({"relations_layer": 6}, STUDENT, TEACHER, "teacher_relations_layer: found 6, expected 0 to 5, the layers of"),
        ({"teacher_layer": 9}, STUDENT, TEACHER, "teacher_layer: found 9, expected 0 to 8, the layers of the teacher"),
        ({}, STUDENT, MLGRU, "teacher_layer: found layer 1, which is mlgru and has no queries.*model with attention"),
        ({"relations_layer": 3}, HYBRID, TEACHER, r"found layer 3, which is mlgru .* expected one of \[2, 5\]"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(settings, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**settings).layers(student, teacher)


def test_heads_divide_the_widths_of_all_projections():
    # Widths 32 and 16 of the student, 48 and 24 of the teacher: divisors of 8, at most 4 heads.
    assert relation_heads(STUDENT, TEACHER) == 4
    assert relation_heads(dataclasses.replace(STUDENT, num_heads=6, num_kv_heads=6, head_dim=10), STUDENT) == 4


def test_the_divergence_of_logits_is_that_of_the_outcomes():
    teacher, student = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), np.log([[0.2, 0.2, 0.6], [0.1, 0.1, 0.8]])
    expected = 0.5 * np.log(0.5 / 0.2) + 0.3 * np.log(0.3 / 0.2) + 0.2 * np.log(0.2 / 0.6)
    np.testing.assert_allclose(logits_divergence(teacher, student, 1.0), [expected, 0], atol=1e-12)
    # The likeliest token, and the others together.
    expected = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)
    np.testing.assert_allclose(logits_divergence(teacher, student, 1.0, top_k=1), [expected, 0], atol=1e-12)


def test_relations_see_their_own_document_up_to_a_token():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 1, 4, 6))
    segments = np.array([[0, 0, 1, 1]])
    found = relations_divergence(teacher, student, 3, segments)
    assert found[0, 0] == found[0, 2] == 0 and found[0, 1] > 0 and found[0, 3] > 0
    expected = 0.0
    for head in range(3):
        pair = []
        for features in (teacher, student):
            part = features[0, :, 2 * head : 2 * head + 2]
            weights = np.exp([part[1] @ part[0] / np.sqrt(2), part[1] @ part[1] / np.sqrt(2)])
            pair.append(weights / weights.sum())
        expected += np.sum(pair[0] * np.log(pair[0] / pair[1])) / 3
    assert found[0, 1] == pytest.approx(expected)

"""Teachers that fit are opened, float or ternary; others are refused with the way out."""

import dataclasses

import pytest

from jaxlm.common.objectives.distillation import Distillation
from jaxlm.common.objectives.teacher import check_student, open_teacher
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.conftest import TINY, VARIANTS
from tests.mlxlm.small_models import save_model, save_packed


def test_teachers_that_do_not_fit_are_refused(tmp_path, tokenizer):
    path = save_model(tmp_path / "teacher", TINY, tokenizer, **VARIANTS["dense"] | {"num_layers": 1, "head_dim": 8})
    config = open_teacher(path, tokenizer, 128).config
    with pytest.raises(ValueError, match="found a context of 128, expected at least seq_len 129"):
        open_teacher(path, tokenizer, 129)
    with pytest.raises(ValueError, match=r"found tokenizer .*, expected the data's .*prepare the data with"):
        open_teacher(path, train_tokenizer(["one two"] * 9, 290), 64)
    student = dataclasses.replace(config, vocab_size=304)
    with pytest.raises(ValueError, match=r"of 300 tokens, expected the model's 304; .*--model.vocab_size 300"):
        check_student(path, config, student, Distillation())
    check_student(path, config, config, Distillation(relations_layer=7))  # which is not used
    with pytest.raises(ValueError, match="teacher_relations_layer: found 7, expected 0 to 0"):
        check_student(path, config, config, Distillation(relations_layer=7, relations_weight=1))


def test_a_teacher_may_be_ternary(tmp_path, tokenizer):
    latent = save_model(tmp_path / "latent", TINY, tokenizer)
    packed = save_packed(tmp_path / "packed", latent)
    assert [open_teacher(path, tokenizer, 64).kind for path in (latent, packed)] == ["latent", "packed"]

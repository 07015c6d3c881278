"""Distillation: its loss, and the teachers that are refused."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from mlxlm.finetune.objectives.distillation import distillation, open_teacher
from mlxlm.load import load_model
from mlxlm.model.loss import loss_sum
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.conftest import TINY, VARIANTS
from tests.mlxlm.small_models import save_model

DENSE = dataclasses.replace(TINY, **VARIANTS["dense"] | {"num_layers": 1})


def test_the_loss_is_the_formula_over_the_tokens_of_the_mask(tmp_path):
    save_blank_artifact(tmp_path / "student", DENSE, seed=1)
    save_blank_artifact(tmp_path / "teacher", dataclasses.replace(DENSE, hidden_size=16), seed=2)
    student, teacher = (load_model(tmp_path / name)[0] for name in ("student", "teacher"))
    ids = mx.random.randint(0, 300, (2, 9), key=mx.random.key(0))
    mask = mx.arange(16).reshape(2, 8) % 3 > 0
    batch = {
        "inputs": ids[:, :-1],
        "targets": ids[:, 1:],
        "segment_ids": mx.zeros((2, 8), mx.int32),
        "loss_mask": mask,
    }
    found, tokens, _ = distillation(teacher, 0.3, 2.0)(student, batch)

    def log_softmax(model):
        logits = np.array(model(batch["inputs"]), np.float64) / 2
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    taught = log_softmax(teacher)
    divergence = (np.exp(taught) * (taught - log_softmax(student))).sum(axis=-1)[np.array(mask)].sum()
    assert divergence > 1e-3 and tokens.item() == mask.sum().item()
    nats = loss_sum(student, batch)[0].item()
    assert found.item() == pytest.approx(0.7 * nats + 0.3 * 4 * divergence, rel=1e-6)
    in_chunks = distillation(teacher, 0.3, 2.0, chunks=3)
    assert in_chunks(student, batch)[0].item() == pytest.approx(found.item(), rel=1e-6)
    student.train()  # now with gradients
    assert in_chunks(student, batch)[0].item() == pytest.approx(found.item(), rel=1e-6)
    # From itself a model has nothing to learn.
    assert distillation(student, 1.0, 2.0)(student, batch)[0].item() == pytest.approx(0, abs=1e-5)


def test_teachers_that_do_not_fit_are_refused(tmp_path, tokenizer):
    student = save_model(tmp_path / "student", DENSE, tokenizer)
    config = load_model(student)[0].config
    assert not flat_arrays(open_teacher(student, config, tokenizer, 128).trainable_parameters())
    with pytest.raises(ValueError, match="found a context of 128, expected at least seq_len 129"):
        open_teacher(student, config, tokenizer, 129)
    with pytest.raises(ValueError, match="found a vocabulary of 300 tokens, expected the model's 304"):
        open_teacher(student, dataclasses.replace(config, vocab_size=304), tokenizer, 64)
    with pytest.raises(ValueError, match=r"found tokenizer .*, expected the data's"):
        open_teacher(student, config, train_tokenizer(["one two"] * 9, 290), 64)
    save_model(tmp_path / "ternary", TINY, tokenizer)
    with pytest.raises(ValueError, match="found a quantized model, expected a dense one"):
        open_teacher(tmp_path / "ternary", config, tokenizer, 64)

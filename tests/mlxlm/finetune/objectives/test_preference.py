"""Preferences in fine-tuning: every method, the stored reference, resumed and refused."""

import dataclasses
import shutil

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.optimizer_config import OptimizerConfig
from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.trainer import finetune
from tests.conftest import TINY, VARIANTS, prepare_pairs
from tests.mlxlm.small_models import save_model


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a dense model, a latent ternary one and pairs."""
    path = tmp_path_factory.mktemp("preference")
    save_model(path / "latent", TINY, tokenizer)
    save_model(path / "dense", TINY, tokenizer, **VARIANTS["dense"] | {"head_dim": 8})
    prepare_pairs(path / "pairs", 24, tokenizer)
    return path


def config(place, name, model="dense", **settings):
    settings = {
        "data": [str(place / "pairs")],
        "objective": "dpo",
        "num_train_steps": 4,
        "batch_size": 4,
        "seq_len": 32,
        "log_every_steps": 1,
        "checkpoint_every_steps": 2,
        "sample_tokens": 0,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
    } | settings
    return FinetuneConfig(model=str(place / model), output_dir=str(place / name), **settings)


METHODS = {
    "lora": {"rank": 4, "dropout": 0.1},
    "full": {"method": "full", "loss_chunks": 3},
    "qat": {"model": "latent", "method": "qat", "objective": "ipo", "grad_accumulation_steps": 2},
    "orpo": {"model": "latent", "method": "qat", "objective": "orpo"},
}


def logged(run):
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_prefers_more_and_a_resumed_one_is_equal_to_the_bit(name, place, capsys):
    settings = config(place, name, **METHODS[name])
    assert finetune(settings)
    lines = logged(place / name)
    # Of LoRA the first step has dropout, which the reference has not.
    if settings.has_reference and name != "lora":
        assert lines[0]["train/margin"] == pytest.approx(0, abs=1e-3)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] and lines[-1]["val/margin"] > lines[0]["train/margin"]
    assert "accuracy" in capsys.readouterr().out and 0 <= lines[-1]["val/accuracy"] <= 1
    shutil.rmtree(place / name / "checkpoints" / "4")
    assert finetune(dataclasses.replace(settings, resume=True))
    printed = capsys.readouterr().out
    assert "resuming after step 2" in printed and "reference log-probabilities" not in printed
    assert logged(place / name) == lines


def test_pairs_are_prepared_from_rows_and_other_data_is_refused(place, capsys):
    rows = str(place / "pairs-source" / "texts.jsonl")
    assert finetune(config(place, "rows", data=[rows], num_train_steps=1))
    stored, expected = (np.load(place / name / "reference" / "log_probs.npy") for name in ("rows", "full"))
    assert stored.shape == expected.shape == (24, 2)
    with pytest.raises(ValueError, match=r"pairs: found pairs of answers.*--objective orpo"):
        finetune(config(place, "refused", objective="next_token"))
    assert not (place / "refused").exists()

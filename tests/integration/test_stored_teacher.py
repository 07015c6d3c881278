"""Runs that learn from a stored teacher: as from the teacher itself, resumed equal to the bit, refused where unfit."""

import dataclasses
import shutil

import mlx.core as mx
import pytest

from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.training.store_teacher import main
from jaxlm.training.store_teacher_config import StoreTeacherConfig
from jaxlm.training.trainer import train
from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.trainer import finetune
from tests.conftest import TINY, VARIANTS, prepare_texts
from tests.jaxlm.training.test_trainer import config as run_config
from tests.mlxlm.small_models import save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with shards, two float models and what one says of the shards."""
    path = tmp_path_factory.mktemp("stored")
    texts = [f"def f{number}(x):\n    return x + {number}\n" * 4 for number in range(40)]
    prepare_texts(path / "data", texts, tokenizer)
    save_model(path / "teacher", TINY, tokenizer, **VARIANTS["dense"] | {"num_layers": 2, "head_dim": 8})
    save_model(path / "student", TINY, tokenizer, **VARIANTS["dense"] | {"num_layers": 1, "head_dim": 4})
    store(path, "stored")
    return path


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def store(place, name, teacher_top_k=5):
    main(
        StoreTeacherConfig(
            teacher=str(place / "teacher"),
            data_dir=[str(place / "data")],
            output_dir=str(place / name),
            seq_len=16,
            teacher_top_k=teacher_top_k,
        )
    )


def jax_config(place, name, teacher, **settings):
    return run_config(place, name, teacher=str(place / teacher), grad_accumulation_steps=2, **settings)


def mlx_config(place, name, teacher, **settings):
    return FinetuneConfig(
        model=str(place / "student"),
        data=[str(place / "data")],
        method="full",
        teacher=str(place / teacher),
        output_dir=str(place / name),
        num_train_steps=4,
        batch_size=4,
        seq_len=16,
        log_every_steps=1,
        checkpoint_every_steps=2,
        sample_tokens=0,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        **settings,
    )


@pytest.mark.parametrize(("framework", "config", "run"), [("jax", jax_config, train), ("mlx", mlx_config, finetune)])
def test_a_run_is_that_of_the_teacher_itself_and_resumes_equal_to_the_bit(place, framework, config, run, capsys):
    assert run(config(place, f"{framework}-live", "teacher", teacher_top_k=5))
    stored = config(place, f"{framework}-stored", "stored")
    assert run(stored)
    expected, found = (read_metrics(place / f"{framework}-{name}" / "metrics.jsonl") for name in ("live", "stored"))
    assert len(found) == len(expected) and found[0]["train/teacher_divergence"] > 0
    for name in ("train/loss", "train/next_token", "train/grad_norm", "val/loss"):
        pairs = [(mine[name], theirs[name]) for mine, theirs in zip(found, expected, strict=True) if name in theirs]
        assert pairs and all(mine == pytest.approx(theirs, rel=1e-4) for mine, theirs in pairs)

    parts = dataclasses.replace(stored, output_dir=str(place / f"{framework}-parts"), resume=True)
    shutil.copytree(place / f"{framework}-stored", place / f"{framework}-parts")
    shutil.rmtree(place / f"{framework}-parts" / "checkpoints" / "4")
    assert run(parts) and "resuming after step 2" in capsys.readouterr().out
    model = "artifact/model.safetensors"
    assert (place / f"{framework}-parts" / model).read_bytes() == (place / f"{framework}-stored" / model).read_bytes()

    (place / "kept").mkdir()
    (place / "stored").rename(place / "kept" / "stored")
    store(place, "stored", teacher_top_k=6)
    with pytest.raises(ValueError, match=r"was trained with teacher .*resume with the same teacher"):
        run(parts)
    shutil.rmtree(place / "stored")
    (place / "kept" / "stored").rename(place / "stored")
    (place / "kept").rmdir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_top_k": 6}, "teacher_top_k: found 6, expected at most 5"),
        ({"document_mask": False}, "was stored with document_mask True, found False in this run"),
        ({"seq_len": 12}, "was stored with seq_len 16, found 12 in this run"),
        ({"seq_len_schedule": "8:0.5,16:1"}, "seq_len_schedule: found with the stored teacher"),
        ({"model": {"vocab_size": 320, "num_layers": 1}}, "found a vocabulary of 300 tokens, expected the model's 320"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(place, settings, message):
    with pytest.raises(ValueError, match=message):
        train(jax_config(place, "refused", "stored", **settings))
    assert not (place / "refused").exists()


def test_more_tokens_than_the_vocabulary_has_are_refused(place):
    with pytest.raises(ValueError, match="teacher_top_k: found 300, expected at most 299"):
        store(place, "all", teacher_top_k=300)

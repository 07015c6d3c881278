"""Preferences in JAX: what counts in a batch, whole runs, resumed and refused."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.common.architecture.presets import preset
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.model.language_model import LanguageModel, init_params
from jaxlm.ops.ternary_linear import quantize_params, with_ternary
from jaxlm.training.objectives.preference import preference
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.trainer import train
from shared_tokenizer.data.batches import evaluation_batches
from shared_tokenizer.data.data_sets import DataSets
from tests.conftest import prepare_pairs, prepare_texts
from tests.mlxlm.small_models import save_model

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a set of pairs, one of texts, and a model that was never trained."""
    path = tmp_path_factory.mktemp("preference")
    prepare_pairs(path / "pairs", 30, tokenizer)
    prepare_texts(path / "data", [f"def f{i}(x):\n    return x + {i}\n" * 4 for i in range(40)], tokenizer)
    shape = dataclasses.replace(preset("ternary-tiny"), **SIZES, head_dim=8)
    save_model(
        path / "start", shape, tokenizer, **SIZES, vocab_size=tokenizer.vocab_size, max_seq_len=shape.max_seq_len
    )
    return path


def config(place, name, **settings):
    settings = {
        "data_dir": [str(place / "pairs")],
        "objective": "dpo",
        "preset": "ternary-tiny",
        "model": SIZES,
        "num_train_steps": 4,
        "batch_size": 4,
        "seq_len": 32,
        "eval_every_steps": 2,
        "eval_batches": 2,
        "checkpoint_every_steps": 2,
        "sample_tokens": 0,
        "log_every_steps": 1,
        "optimizer": OptimizerConfig(warmup_steps=0),
    } | settings
    return TrainConfig(output_dir=str(place / name), **settings)


def logged(run):
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def finished(place):
    """The settings of a finished run of dpo."""
    settings = config(place, "dpo", init_from=str(place / "start"))
    assert train(settings)
    return settings


def test_dpo_starts_at_its_reference_and_prefers_more_and_more(place, finished):
    lines = logged(place / "dpo")
    assert lines[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert lines[0]["train/margin"] == pytest.approx(0, abs=1e-4)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    held_out = lines[-1]
    assert held_out["val/margin"] > 0.01 and 0 <= held_out["val/accuracy"] <= 1
    assert held_out["val/reward_difference"] == pytest.approx(0.1 * held_out["val/margin"], rel=1e-5)
    assert held_out["val/bits_per_byte"] > 0
    assert held_out["data/tokens_seen"] == 4 * 4 * 2 * 32


@pytest.mark.whole
def test_a_resumed_run_is_equal_to_the_bit_with_the_stored_reference_and_without(place, finished, capsys):
    expected = logged(place / "dpo")
    for name, is_kept in (("kept", True), ("lost", False)):
        run = place / name
        shutil.copytree(place / "dpo", run)
        shutil.rmtree(run / "checkpoints" / "4")
        if not is_kept:
            shutil.rmtree(run / "reference")
        capsys.readouterr()
        assert train(dataclasses.replace(finished, output_dir=str(run), resume=True))
        printed = capsys.readouterr().out
        assert "resuming after step 2" in printed
        assert ("reference log-probabilities of 30 pairs" in printed) == (not is_kept)
        assert logged(run) == expected
        ours, theirs = (path / "artifact" / "model.safetensors" for path in (run, place / "dpo"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_orpo_needs_no_model_to_start_from(place):
    assert train(config(place, "orpo", objective="orpo", num_train_steps=2, grad_accumulation_steps=2))
    lines = logged(place / "orpo")
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] and not (place / "orpo" / "reference").exists()


def test_sets_that_do_not_fit_the_objective_are_refused_with_the_way_out(place):
    with pytest.raises(ValueError, match=r"pairs: found pairs of answers.*--objective orpo"):
        train(config(place, "refused", objective="next_token"))
    with pytest.raises(ValueError, match=r"data: found texts or chats.*--objective next_token"):
        train(config(place, "refused", objective="orpo", data_dir=[str(place / "data")]))
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "dpo"}, "objective: found dpo without init_from"),
        ({"objective": "next_token", "beta": 0.2}, "beta: has no effect with objective next_token, only with orpo"),
        ({"objective": "orpo", "beta": 0.0}, "beta: found 0"),
        ({"objective": "orpo", "packing": "windows"}, "packing: has no effect with objective orpo"),
        ({"objective": "orpo", "batch_size": "auto"}, "objective: found orpo with an auto size"),
    ],
)
def test_settings_that_mean_nothing_are_refused(place, settings, message):
    with pytest.raises(ValueError, match=message):
        config(place, "refused", **settings)


def test_filling_counts_nothing_and_micro_batches_add_up(place, tiny_config):
    sets = DataSets.open([place / "pairs"], 32, pairs=True)
    model = LanguageModel(tiny_config)
    params = jax.jit(init_params, static_argnums=0)(tiny_config, jax.random.key(0))
    weights = with_ternary(params, quantize_params(params, tiny_config))
    objective, count = preference("ipo", 0.5), len(sets.val[0])
    extras = {"reference": jnp.zeros((30, 2))}
    compiled = jax.jit(lambda batch: objective(model, weights, batch, extras))
    found = [compiled(batch) for batch in evaluation_batches(sets.val, 4, 9)]
    assert sum(int(sums.num_examples) for sums in found) == count and count % 4
    one_by_one = [compiled(batch) for batch in evaluation_batches(sets.val, 1, 99)]
    for read in (lambda sums: float(sums.loss), lambda sums: float(sums.metrics["margin"])):
        assert sum(map(read, found)) == pytest.approx(sum(map(read, one_by_one)), rel=1e-4)

"""Files that version 0.1.0 wrote before its code had rooms still load, convert and resume.

`tests/old_files` holds a tiny shard set with its tokenizer, a packed and a latent artifact of one model, the settings
of a training and of a fine-tuning run, and what that code made of them. Checkpoints are missing: they hold absolute
paths. Never write these files anew: add others beside them.
"""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest

import jaxlm.generate
import jaxlm.load
import mlxlm.generate
import mlxlm.load
from jaxlm.common.command_line import parse
from jaxlm.common.run.run_directory import read_run_config
from jaxlm.common.sampling import Sampling
from jaxlm.conversion.convert import Conversion, convert
from jaxlm.training.open_run import open_run
from jaxlm.training.train_config import TrainConfig
from mlxlm.finetune.finetune_config import FinetuneConfig
from shared_tokenizer.data.batches import BatchOrder, training_batches
from shared_tokenizer.data.data_sets import DataSets

OLD = Path(__file__).parent / "old_files"
EXPECTED = json.loads((OLD / "expected.json").read_text())


def test_shards_open_with_the_same_fingerprint_and_give_the_same_batch():
    sets = DataSets.open([OLD / "shards"], 32, verify=True)
    assert sets.fingerprint == EXPECTED["data_fingerprint"]
    assert sets.tokenizer.fingerprint == EXPECTED["tokenizer_fingerprint"]
    assert sets.train_examples == EXPECTED["train_examples"]
    batch = next(iter(training_batches(sets.train, BatchOrder(4, 0))))
    assert batch["inputs"].sum() == EXPECTED["first_batch_sum"]


@pytest.mark.parametrize("kind", ["artifact", "latent"])
def test_models_load_and_compute_the_same_in_jax(kind):
    model, params, tokenizer = jaxlm.load.load_model(OLD / kind)
    assert tokenizer is not None
    assert tokenizer.encode_prompt("the cat sat") == EXPECTED["prompt_ids"]
    logits = model.apply({"params": params}, jnp.array([EXPECTED["prompt_ids"]]))
    np.testing.assert_allclose(np.asarray(logits)[0, -1, :8], EXPECTED["logits"], atol=3e-2)
    greedy = list(jaxlm.generate.generate(model, params, EXPECTED["prompt_ids"], Sampling(max_tokens=24)))
    assert greedy == EXPECTED["greedy"]


def test_a_packed_model_loads_and_computes_the_same_in_mlx():
    model, _ = mlxlm.load.load_model(OLD / "artifact")
    logits = np.array(model(mx.array([EXPECTED["prompt_ids"]])))[0, -1, :8]
    np.testing.assert_allclose(logits, EXPECTED["logits"], atol=3e-2)


def test_a_latent_model_is_packed_to_the_same_file(tmp_path):
    report = convert(OLD / "latent", tmp_path / "packed", Conversion(form="packed"))
    assert report.weights.codes_differing == 0
    old, new = (path / "model.safetensors" for path in (OLD / "artifact", tmp_path / "packed"))
    assert new.read_bytes() == old.read_bytes()


def test_the_settings_of_a_run_are_read_and_resumed(tmp_path):
    shutil.copy(OLD / "config.yaml", tmp_path / "config.yaml")
    flags = ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path), "--resume"]
    config = parse(TrainConfig, flags)
    with open_run(config, read_run_config(tmp_path)["model"]):
        assert config.num_train_steps == 12 and config.optimizer.warmup_steps == 2
    with pytest.raises(ValueError, match="belongs to another config: batch_size was 4 and is now 8"):
        open_run(parse(TrainConfig, [*flags, "--batch_size", "8"]), config.model).__enter__()


def test_the_settings_of_a_fine_tuning_run_have_an_earlier_name():
    where = ["--model", "m", "--output_dir", "o"]
    assert parse(FinetuneConfig, ["--config", str(OLD / "finetune.yaml"), *where]).num_epochs == 0.5

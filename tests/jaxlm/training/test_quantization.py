"""Runs that begin as a float model and end as a ternary one."""

import dataclasses
import shutil

import numpy as np
import pytest

from jaxlm.common.artifact.artifact import load_artifact
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.trainer import train
from tests.conftest import TINY, prepare_texts

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
COURSE = {"quantize": "ternary", "quantize_from_step": 1.0, "quantize_steps": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a shard set, and a ternary model."""
    path = tmp_path_factory.mktemp("quantization")
    texts = [f"def f{number}(x):\n    return x + {number * 7}\n" * 4 for number in range(40)]
    prepare_texts(path / "data", texts, tokenizer)
    save_blank_artifact(path / "ternary", dataclasses.replace(TINY, num_layers=1))
    return path


@pytest.fixture(scope="module")
def dense(place):
    """A finished run of a dense model."""
    assert train(config(place, "dense", preset="dense-tiny", model=SIZES, num_train_steps=2))
    return place / "dense"


def config(place, name, **settings):
    settings = {
        "data_dir": [str(place / "data")],
        "num_train_steps": 6,
        "batch_size": 4,
        "seq_len": 16,
        "eval_every_steps": 1,
        "eval_batches": 1,
        "checkpoint_every_steps": 3,
        "keep_last_checkpoints": 3,
        "sample_tokens": 0,
        "log_every_steps": 1,
        "optimizer": OptimizerConfig(warmup_steps=0),
    } | settings
    return TrainConfig(output_dir=str(place / name), **settings)


def shares(run):
    return [line["quantize/lambda"] for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]


@pytest.mark.whole
def test_a_float_model_becomes_ternary_and_a_resumed_run_is_equal_to_the_bit(place, dense, capsys):
    settings = config(place, "whole", init_from=str(dense), insert_sub_norm=True, **COURSE)
    assert train(settings)
    printed = capsys.readouterr().out
    assert all(f"compiling the training step{phase} ..." in printed for phase in (" (float)", " (mixed)", ""))
    lines = read_metrics(place / "whole" / "metrics.jsonl")
    assert shares(place / "whole") == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])
    # The first step computes what the dense model does.
    before = [line["val/loss"] for line in read_metrics(dense / "metrics.jsonl") if "val/loss" in line][-1]
    first = next(line["val/loss"] for line in lines if "val/loss" in line)
    assert abs(first - before) < 0.1
    artifact = load_artifact(place / "whole" / "artifact")
    assert artifact.kind == "packed" and artifact.config.sub_norm and artifact.config.hidden_size == 16

    shutil.copytree(place / "whole", place / "again")
    shutil.rmtree(place / "again" / "checkpoints" / "6")
    shutil.rmtree(place / "again" / "artifact")
    assert train(dataclasses.replace(settings, output_dir=str(place / "again"), resume=True))
    assert "(float)" not in capsys.readouterr().out
    again = load_artifact(place / "again" / "artifact")
    for name, tensor in artifact.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor, name)


def test_a_fresh_ternary_model_may_start_as_a_float_one(place):
    settings = config(place, "fresh", model=SIZES, num_train_steps=4, quantize_from_step=0.5)
    assert train(settings)
    assert shares(place / "fresh") == [0, 0, 1, 1]
    # The best checkpoint is chosen among those of the ternary model.
    assert {path.name for path in (place / "fresh" / "checkpoints").iterdir() if path.name.isdigit()} <= {"3", "4"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantize": "ternary"}, "quantize: found no init_from, expected the float model to make ternary"),
        ({"insert_sub_norm": True}, "insert_sub_norm: has no effect without quantize"),
        ({"quantize_steps": 2, "preset": "dense-tiny"}, "found a model without ternary weights"),
        ({"quantize_from_step": 6.0}, "quantize_from_step: found 6, expected at most 5"),
        ({"quantize": "ternary", "init_from": "dense", "preset": "dense-5m"}, "preset: has no effect with quantize"),
        ({"quantize": "ternary", "init_from": "ternary"}, "has ternary linear layers already; leave quantize out"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(place, settings, words):
    given = {"model": SIZES} | settings
    if "init_from" in settings:
        given |= {"model": {}, "init_from": str(place / settings["init_from"])}
    with pytest.raises(ValueError, match=words):
        train(config(place, "refused", **given))
    assert not (place / "refused").exists()

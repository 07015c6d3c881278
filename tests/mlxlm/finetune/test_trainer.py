"""Fine-tuning runs, from text and chats to adapters or an artifact, stopped and resumed, and refused."""

import dataclasses
import json
import os
import signal
import sys

import mlx.core as mx
import numpy as np
import pytest
import yaml

import mlxlm.finetune.checkpoint
import mlxlm.finetune.trainer
from jaxlm.common.architecture.packing import unpack
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.command_line import parse
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.optimizer_config import OptimizerConfig
from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.qat import ternary_paths
from mlxlm.finetune.trainer import finetune
from mlxlm.load import load_model
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.messages import stop_ids
from shared_tokenizer.chat.template import read_chat_format
from tests.conftest import VARIANTS, prepare_texts
from tests.mlxlm.small_models import save_chats, save_model, save_packed


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU, MLX compiles with g++: seconds a test."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with models, chats and token shards."""
    from tests.conftest import TINY

    path = tmp_path_factory.mktemp("finetune")
    save_model(path / "latent", TINY, tokenizer)
    save_packed(path / "packed", path / "latent")
    grouped = VARIANTS["scales_by_group"] | {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    save_model(path / "grouped-latent", TINY, tokenizer, **grouped)
    save_packed(path / "grouped", path / "grouped-latent")
    save_model(path / "dense", TINY, tokenizer, **VARIANTS["dense"] | {"head_dim": 8})
    save_chats(path / "chats.jsonl")
    prepare_texts(path / "shards", [f"def f{i}(x):\n    return x + {i}\n" for i in range(60)], tokenizer)
    return path


def config(place, name, model="packed", **settings):
    settings = {
        "data": [str(place / "shards")],
        "num_train_steps": 6,
        "batch_size": 4,
        "seq_len": 32,
        "log_every_steps": 1,
        "checkpoint_every_steps": 2,
        "sample_tokens": 4,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
    } | settings
    if "teacher" in settings:
        settings["teacher"] = str(place / settings["teacher"])
    optimizer = OptimizerConfig(**settings.pop("optimizer"))
    return FinetuneConfig(model=str(place / model), output_dir=str(place / name), optimizer=optimizer, **settings)


METHODS = {
    "lora": {"model": "packed", "rank": 4, "dropout": 0.1},
    "qat": {"model": "latent", "method": "qat", "grad_accumulation_steps": 2, "grad_checkpoint": True},
    "full": {"model": "dense", "method": "full", "num_layers": 1},
    "qat-packed": {"model": "grouped", "method": "qat", "latent_dtype": "bfloat16", "num_layers": 1},
    "quantize": {"model": "dense", "method": "qat", "quantize": "ternary", "eval_every_steps": 2, "teacher": "dense"}
    | {"loss_chunks": 3, "teacher_relations_weight": 1.0},
    "muon": {"model": "latent", "method": "qat", "optimizer": {"name": "muon", "warmup_steps": 0}},
}


def numbers(run):
    """Return what was logged of every step, except time and memory."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_equals_never_stopped(place, method, monkeypatch):
    whole = config(place, f"{method}-whole", **METHODS[method])
    assert finetune(whole)
    lines = numbers(place / f"{method}-whole")
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] and lines[-1]["val/bits_per_byte"] > 0
    taken = mlxlm.finetune.trainer.TrainStep.__call__
    seen = []

    def stopped_in_the_third(step, batch):
        seen.append(batch)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return taken(step, batch)

    monkeypatch.setattr(mlxlm.finetune.trainer.TrainStep, "__call__", stopped_in_the_third)
    parts = config(place, f"{method}-parts", **METHODS[method])
    assert not finetune(parts)
    assert sorted(path.name for path in (place / f"{method}-parts" / "checkpoints").iterdir()) == ["2", "3"]
    assert finetune(dataclasses.replace(parts, resume=True))
    assert numbers(place / f"{method}-parts") == lines
    result = "adapters/adapters.safetensors" if method == "lora" else "artifact/model.safetensors"
    assert (place / f"{method}-parts" / result).read_bytes() == (place / f"{method}-whole" / result).read_bytes()


def test_lora_leaves_the_model_as_it_was_and_lowers_the_loss_of_chats(place):
    before = flat_arrays(load_model(place / "packed")[0].parameters())
    settings = {
        "data": [str(place / "chats.jsonl")],
        "seq_len": 96,
        "num_train_steps": None,
        "num_epochs": 3,
        "val_fraction": 0.2,
    }
    assert finetune(config(place, "chats", sample_tokens=0, **settings | {"scale": 4.0, "eval_every_steps": 1}))
    losses = [line["val/loss"] for line in numbers(place / "chats") if "val/loss" in line]
    assert losses[-1] < losses[0]
    model, tokenizer = load_model(place / "packed", adapter_path=place / "chats" / "adapters")
    after = {path.replace(".linear.", "."): array for path, array in flat_arrays(model.parameters()).items()}
    for path, array in before.items():
        assert mx.array_equal(after[path], array), path
    # The base was never told of chats; its adapters say how to talk, and where an answer ends.
    adapters = place / "chats" / "adapters"
    assert read_chat_format(place / "packed") is None and read_chat_format(adapters) is CHATML
    ends = json.loads((adapters / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == set(stop_ids(tokenizer, CHATML))
    assert tokenizer is not None and (place / "chats" / "loss.png").is_file()


def test_what_qat_gives_is_a_latent_artifact_with_other_codes(place):
    if not (place / "qat-whole" / "artifact").exists():
        assert finetune(config(place, "qat-whole", **METHODS["qat"]))
    before, after = open_model(place / "latent"), open_model(place / "qat-whole" / "artifact")
    assert after.kind == "latent" and dataclasses.replace(after.config) == before.config
    changed = [name for name in before.tensors if not np.array_equal(before.tensors[name], after.tensors[name])]
    assert {f"model.{path}" for path in ternary_paths(before.config)} <= set(changed)
    assert load_model(place / "qat-whole" / "artifact")[1] is not None


def test_qat_of_a_packed_model_gives_a_packed_one_whose_other_weights_are_the_same(place, capsys):
    assert finetune(config(place, "packed-result", **METHODS["qat-packed"]))
    printed = capsys.readouterr().out
    before, after = open_model(place / "grouped"), open_model(place / "packed-result" / "artifact")
    assert (after.kind, after.config) == ("packed", before.config)
    same = {name for name in before.tensors if np.array_equal(before.tensors[name], after.tensors[name])}
    assert {name for name in before.tensors if ".layers.1." not in name} <= same
    trained = [p for p in parameters(before.config) if p.storage == "ternary" and ".layers.1." in p.name]
    flips = 0
    for parameter in trained:
        old, new = (unpack(each.tensors[parameter.name], parameter.shape[0]) for each in (before, after))
        flips += int(np.sum(old != new))
    assert flips > 100
    assert f"codes changed    {flips:,} of {sum(parameter.size for parameter in trained):,} trained" in printed
    assert "made from its codes" in printed and "memory: about" in printed


def test_a_dense_model_quantized_on_the_way_gives_a_ternary_artifact(place):
    if not (place / "quantize-whole" / "artifact").exists():
        assert finetune(config(place, "quantize-whole", **METHODS["quantize"]))
    # Half of the steps is the default.
    lines = numbers(place / "quantize-whole")
    assert [line["quantize/lambda"] for line in lines] == [0, 1 / 3, 2 / 3, 1, 1, 1]
    assert [line["step"] for line in lines if "val/loss" in line] == [2, 4, 6]
    before, after = open_model(place / "dense"), open_model(place / "quantize-whole" / "artifact")
    assert after.config == dataclasses.replace(before.config, linear="ternary") and after.kind == "latent"
    model, tokenizer = load_model(place / "quantize-whole" / "artifact")
    assert model.layers[0].mlp.down_proj.weight.dtype == mx.uint32 and tokenizer is not None


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(place, monkeypatch):
    write = mlxlm.finetune.checkpoint.write_tensors

    def full(path, tensors, read):
        if path.parent.name.startswith(".4."):
            raise OSError(28, "No space left on device")
        write(path, tensors, read)

    monkeypatch.setattr(mlxlm.finetune.checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match=r"step 4: could not be saved: .*No space.*; the last one is of step 2"):
        finetune(config(place, "full-disk", sample_tokens=0))
    assert [path.name for path in (place / "full-disk" / "checkpoints").iterdir()] == ["2"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(place, monkeypatch):
    taken = mlxlm.finetune.trainer.TrainStep.__call__
    steps = []

    def diverged(step, batch):
        steps.append(batch)
        metrics = taken(step, batch)
        return metrics | ({"train/loss": mx.array(float("nan"))} if len(steps) == 4 else {})

    monkeypatch.setattr(mlxlm.finetune.trainer.TrainStep, "__call__", diverged)
    with pytest.raises(FloatingPointError, match="step 4: train/loss is nan; the last checkpoint is of step 2"):
        finetune(config(place, "diverged", sample_tokens=0))
    assert [path.name for path in (place / "diverged" / "checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "latent", "method": "full"}, "method: found 'full', expected 'lora' or 'qat' for this model"),
        ({"model": "dense", "method": "qat"}, "method: found 'qat', expected 'lora' or 'full' for this model"),
        ({"model": "latent", "method": "qat", "quantize": "ternary"}, "quantize: found .* quantized already"),
        (
            {"model": "dense", "method": "qat", "quantize": "ternary", "quantize_steps": 6},
            "quantize_steps: found 6, expected at most 5",
        ),
        (
            {"teacher": "packed", "teacher_relations_weight": 1.0, "teacher_layer": 2},
            "teacher_layer: found 2, expected 0 to 1",
        ),
        ({"rank": 9}, "rank: found 9, expected at most 8, the smaller side of"),
        ({"keys": ["c_attn"]}, "keys: found 'c_attn', expected linear layers of the blocks"),
        ({"model": "latent", "method": "qat", "num_layers": 5}, "num_layers: found 5, expected at most the model's 2"),
        ({"seq_len": 129}, "seq_len: found 129, expected at most the model's context of 128"),
        ({"batch_size": 400}, "batch_size: found 400, but the training data holds only"),
        ({"data": ["nowhere.txt"]}, "nowhere.txt"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(place, settings, message):
    with pytest.raises(ValueError, match=message):
        finetune(config(place, "refused", **settings))
    assert not (place / "refused").exists()


def test_chats_without_an_answer_are_refused_and_leave_nothing(place, tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n' * 40)
    with pytest.raises(ValueError, match=r"found no text|nothing to learn|assistant"):
        finetune(config(place, "refused", data=[str(tmp_path / "chats.jsonl")]))
    assert not (place / "refused").exists()


def test_bad_rows_are_skipped_up_to_a_limit(place, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text((place / "chats.jsonl").read_text("utf-8") + '{"messages": []}\n{"mess')
    settings = {"data": [str(chats)], "seq_len": 96, "val_fraction": 0.2, "num_train_steps": 1, "sample_tokens": 0}
    with pytest.raises(ValueError, match=r"chats\.jsonl:41: messages: found an empty list.*raise max_bad_rows"):
        finetune(config(place, "bad-rows", **settings))
    assert finetune(config(place, "bad-rows", max_bad_rows=2, **settings))


def test_shards_of_another_tokenizer_are_refused(place, tmp_path):
    from shared_tokenizer.tokenizers.train import train_tokenizer

    other = train_tokenizer(["one two"] * 9, 290)
    prepare_texts(tmp_path / "other", ["one two three\n" * count for count in range(1, 40)], other)
    with pytest.raises(ValueError, match="shards were made with tokenizer"):
        finetune(config(place, "refused", data=[str(tmp_path / "other")]))
    assert not (place / "refused").exists()


def test_a_finished_run_goes_on_with_more_steps_and_keeps_its_result(place, capsys):
    first = config(place, "longer", sample_tokens=0, num_train_steps=3)
    assert finetune(first)
    before = (place / "longer" / "adapters" / "adapters.safetensors").read_bytes()
    # The flag alone: the settings are those of the run.
    more = parse(FinetuneConfig, ["--resume", "--output_dir", first.output_dir, "--num_train_steps", "5"])
    assert finetune(more)
    assert "num_train_steps: 3 before, now 5; schedule stretched" in capsys.readouterr().out
    assert [line["step"] for line in numbers(place / "longer")] == [1, 2, 3, 4, 5]
    kept = place / "longer" / "adapters-step-3" / "adapters.safetensors"
    assert kept.read_bytes() == before != (place / "longer" / "adapters" / "adapters.safetensors").read_bytes()
    recorded = yaml.safe_load((place / "longer" / "finetune.yaml").read_text())
    assert recorded["schedule_changes"] == [{"step": 3, "from": 3, "to": 5, "schedule": "stretch"}]


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up after it."""


def test_a_run_that_was_killed_before_its_first_checkpoint_is_of_its_model_and_data(place, monkeypatch, tmp_path):
    def killed(step, batch):
        raise Killed

    first = config(place, "killed-early", sample_tokens=0)
    with monkeypatch.context() as patch:
        patch.setattr(mlxlm.finetune.trainer.TrainStep, "__call__", killed)
        with pytest.raises(Killed):
            finetune(first)
    resumed = dataclasses.replace(first, resume=True)
    with pytest.raises(ValueError, match=r"was trained with model .*resume with the same model"):
        finetune(dataclasses.replace(resumed, model=str(place / "dense")))
    other = prepare_texts(tmp_path / "other", [f"x = {i}\n" * 9 for i in range(60)], load_model(place / "packed")[1])
    with pytest.raises(ValueError, match=r"was trained with data .*resume with the same data"):
        finetune(dataclasses.replace(resumed, data=[str(other)]))
    assert finetune(resumed)


def test_a_start_that_was_killed_while_preparing_begins_anew(place, monkeypatch):
    settings = {"data": [str(place / "chats.jsonl")], "seq_len": 96, "val_fraction": 0.2, "num_train_steps": 1}
    first = config(place, "killed-preparing", sample_tokens=0, **settings)

    def killed(*_, **__):
        raise Killed

    for name in ("prepare", "record_run"):  # before the data are there, and after
        with monkeypatch.context() as patch:
            patch.setattr(f"mlxlm.finetune.inputs.{name}", killed)
            with pytest.raises(Killed):
                finetune(first)
    assert not (place / "killed-preparing" / "finetune.yaml").exists()
    assert finetune(dataclasses.replace(first, seed=3))  # the corrected command


def test_a_closed_pipe_saves_and_ends_the_run(place, monkeypatch):
    class Closed:
        def write(self, text):
            if "step 2/" in text:
                raise BrokenPipeError(32, "Broken pipe")

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Closed())
    assert not finetune(config(place, "piped", sample_tokens=0, checkpoint_every_steps=0))
    assert [path.name for path in (place / "piped" / "checkpoints").iterdir()] == ["3"]
    assert (place / "piped" / "run.log").read_text().endswith("SIGPIPE: saved step 3\n")


def test_a_run_of_another_model_is_not_resumed(place):
    first = config(place, "moved", sample_tokens=0)
    assert finetune(first)
    with pytest.raises(ValueError, match=r"was trained with model .*resume with the same model"):
        finetune(dataclasses.replace(first, model=str(place / "dense"), resume=True, num_train_steps=6))


def test_a_sample_that_a_signal_interrupts_is_missing_and_not_cut(place, monkeypatch):
    real = mlxlm.finetune.trainer.generate

    def interrupted(*arguments):
        for number, token in enumerate(real(*arguments)):
            if number == 1:
                signal.raise_signal(signal.SIGTERM)
            yield token

    monkeypatch.setattr("mlxlm.finetune.trainer.generate", interrupted)
    assert not finetune(config(place, "sampled", sample_tokens=4, sample_every_steps=2, checkpoint_every_steps=0))
    assert not (place / "sampled" / "samples.txt").exists()
    assert [path.name for path in (place / "sampled" / "checkpoints").iterdir()] == ["2"]

"""The files of examples/ do what they say, on models that take seconds."""

import contextlib
import io
import json
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.conftest import TEXT
from tests.pages import ROOT, read_command

pytestmark = pytest.mark.whole

TINY_MODEL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
}
TINY_RUN = {
    "num_train_steps": 3,
    "batch_size": 2,
    "seq_len": 16,
    "optimizer.warmup_steps": 1,
    "eval_batches": 1,
    "sample_tokens": 2,
}


def flags(settings: Mapping[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def call(*words: object) -> str:
    """Run a command of ours in this process, which has imported what it needs, and return what it printed."""
    command = read_command(shlex.join(map(str, words)))
    assert command is not None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.run()
    return printed.getvalue()


@pytest.fixture(scope="module")
def first_model(tmp_path_factory) -> Path:
    """A folder with data/ and run/, made by the commands of first_model.sh."""
    place = tmp_path_factory.mktemp("first")
    source = place / "texts"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.txt").write_text(f"{TEXT}value = {number}\n" * 5, "utf-8")
    # The script runs with an interpreter that notes its words: starting four real ones takes longer than all else.
    python = place / "bin" / "python"
    python.parent.mkdir()
    notes = place / "notes.txt"
    python.write_text(f"#!/bin/sh\nfor word; do printf '%s\\n' \"$word\" >> {notes}; done\nprintf '\\n' >> {notes}\n")
    python.chmod(0o755)
    environment = {
        "BIN": python.parent,
        "DATA": place / "data",
        "RUN": place / "run",
        "INPUT": source,
        "VOCABULARY": 310,
    }
    script = [ROOT / "examples" / "first_model.sh", *flags(TINY_RUN | TINY_MODEL)]
    values = {name: str(value) for name, value in environment.items()}
    subprocess.run(script, cwd=ROOT, env={"PATH": "/usr/bin:/bin"} | values, check=True)
    commands = [part.splitlines() for part in notes.read_text("utf-8").strip().split("\n\n")]
    assert len(commands) == 4
    printed = [call("python", *command) for command in commands]
    from_jax, from_mlx = (text.partition("\n")[0] for text in printed[2:])
    assert from_jax.startswith("def get") and from_mlx.startswith("def get")
    return place


def test_first_model(first_model):
    assert (first_model / "data" / "MANIFEST.sha256").is_file()
    assert (first_model / "run" / "artifact" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["own_text", "pretrain_700m"])
def test_training_examples(name, first_model, tmp_path):
    config = ["--config", f"examples/{name}.yaml", "--data_dir", first_model / "data", "--output_dir", tmp_path / "run"]
    small = TINY_RUN | TINY_MODEL | {"grad_accumulation_steps": 1}
    call("jaxlm", "train", *config, *flags(small))
    assert (tmp_path / "run" / "artifact" / "MANIFEST.sha256").is_file()


def save_chats(path: Path) -> Path:
    turns = [[("user", f"{number} and 1?"), ("assistant", f"{number + 1}")] * 2 for number in range(20)]
    messages = [[{"role": role, "content": content} for role, content in chat] for chat in turns]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in messages), "utf-8")
    return path


def test_sft_example(first_model, tmp_path):
    data, base, run = tmp_path / "data", first_model / "run", tmp_path / "run"
    chats = ["--input", save_chats(tmp_path / "chats.jsonl"), "--tokenizer", base, "--output_dir", data]
    call("jaxlm", "prepare", *chats, "--val_fraction", 0.3, "--num_workers", 1)
    where = {"init_from": base, "data_dir": data, "output_dir": run, "preset": "ternary-tiny"}
    small = TINY_RUN | TINY_MODEL | {"num_train_steps": 2, "seq_len": 64}
    printed = call("jaxlm", "train", "--config", "examples/sft.yaml", *flags(where | small))
    assert f"mlxlm.chat --model {run / 'artifact'}" in printed
    settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    assert settings["objective"] == "sft" and settings["init_from"] == str(base)
    assert (run / "artifact" / "chat_template.jinja").is_file()


def test_distillation_example(first_model, tmp_path):
    where = {"teacher": first_model / "run", "data_dir": first_model / "data", "output_dir": tmp_path / "run"}
    call("jaxlm", "train", "--config", "examples/distill.yaml", *flags(where | TINY_RUN | TINY_MODEL))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    assert first["train/relations"] > 0 and first["train/teacher_divergence"] > 0


def test_chat_example(first_model, tmp_path):
    chats = save_chats(tmp_path / "chats.jsonl")
    where = {"model": first_model / "run" / "artifact", "data": chats, "output_dir": tmp_path / "tuned"}
    small = {"num_epochs": 0.5, "batch_size": 2, "seq_len": 48, "rank": 2, "val_fraction": 0.3, "sample_tokens": 2}
    call("mlxlm", "finetune", "--config", "examples/chat.yaml", *flags(where | small))
    assert (tmp_path / "tuned" / "adapters" / "adapters.safetensors").is_file()


def test_rewards_example(first_model, tmp_path):
    small = {
        "num_train_steps": 2,
        "prompts_per_step": 2,
        "samples_per_prompt": 2,
        "num_held_out": 4,
        "eval_samples": 1,
        "optimizer.warmup_steps": 0,
    }
    where = {"init_from": first_model / "run", "output_dir": tmp_path / "run"}
    call("jaxlm", "train-rl", "--config", "examples/rewards.yaml", *flags(where | small))
    assert (tmp_path / "run" / "artifact" / "MANIFEST.sha256").is_file()


def test_preferences(first_model, tmp_path):
    pairs = [{"prompt": f"add {i}", "chosen": f"{i} + a", "rejected": f"b + {i}"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), "utf-8")
    data = {"input": tmp_path / "pairs.jsonl", "tokenizer": first_model / "run", "output_dir": tmp_path / "data"}
    call("jaxlm", "prepare", *flags(data | {"val_fraction": 0.3, "num_workers": 1}))
    where = {"init_from": first_model / "run", "data_dir": tmp_path / "data", "output_dir": tmp_path / "run"}
    small = {"num_epochs": 0.5, "batch_size": 2, "seq_len": 32, "eval_batches": 1} | TINY_MODEL
    call("jaxlm", "train", "--config", "examples/preferences.yaml", *flags(where | small))
    assert (tmp_path / "run" / "reference" / "MANIFEST.sha256").is_file()
    assert (tmp_path / "run" / "artifact" / "MANIFEST.sha256").is_file()


def test_notebook(first_model, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "argv", ["notebook.py", str(first_model / "run")])
    runpy.run_path(str(ROOT / "examples" / "notebook.py"))
    assert len(capsys.readouterr().out.splitlines()) >= 6
    assert (first_model / "run" / "notebook.png").is_file()

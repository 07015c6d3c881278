"""Two processes that fine-tune one model, over the ring backend on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.metrics_log import read_metrics
from tests.conftest import TINY, prepare_texts
from tests.mlxlm.small_models import save_model

ROOT = Path(__file__).parent.parent.parent
FLAGS = "--num_train_steps 3 --batch_size 4 --seq_len 32 --log_every_steps 1 --sample_tokens 0 --method qat"

# Three times in one start, which takes longer than all of them: to the end; until the second process is interrupted in
# its second step; and on from there.
PROGRAM = """
import os, signal, sys
from jaxlm.common.command_line import parse
from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.train_step import TrainStep
from mlxlm.finetune.trainer import finetune

def run(name, *flags):
    return finetune(parse(FinetuneConfig, [*sys.argv[1:], "--output_dir", name, *flags]))

print("two:", run("two"))
step = TrainStep.__call__
def interrupted(self, batch):
    if self.step == 1 and os.environ["MLX_RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, batch)
TrainStep.__call__ = interrupted
print("parts:", run("parts"))
TrainStep.__call__ = step
print("parts:", run("parts", "--resume", "true"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with a model and token shards."""
    path = tmp_path_factory.mktemp("processes")
    save_model(path / "model", TINY, tokenizer)
    prepare_texts(path / "data", [f"def f{i}(x):\n    return x + {i}\n" for i in range(60)], tokenizer)
    return path


@pytest.fixture(scope="module")
def printed(place):
    """Fine-tune in two processes, and return what they print."""
    (place / "program.py").write_text(PROGRAM)
    launch = ["-c", "from mlx._distributed_utils.launch import main; main()"]
    launch += ["-n", "2", "--backend", "ring", "--python", sys.executable]
    return python(place, *launch, "program.py")


def python(place, *words):
    """Start a Python in a folder to fine-tune the model there, and return what it prints."""
    # On a CPU, MLX compiles with g++: seconds a run.
    environment = os.environ | {"MLX_DISABLE_COMPILE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words, "--model", "model", "--data", "data", *FLAGS.split()]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(run):
    return {line["step"]: line["train/loss"] for line in read_metrics(run / "metrics.jsonl")}


def test_two_processes_fine_tune_as_one_does(place, printed):
    assert printed.count("two: True") == 2, printed
    python(place, "-m", "mlxlm.finetune", "--output_dir", "one")
    found, expected = losses(place / "two"), losses(place / "one")
    assert found == pytest.approx(expected, rel=1e-5) and len(expected) == 3
    tensors = [open_model(place / name / "artifact").tensors for name in ("one", "two")]
    for name in tensors[0]:
        np.testing.assert_allclose(tensors[1][name], tensors[0][name], atol=1e-4)


def test_two_processes_one_of_which_was_interrupted_go_on_as_if_nothing_had_happened(place, printed):
    assert printed.count("parts: False") == printed.count("parts: True") == 2, printed
    assert "another process: saved step 2." in printed and "resuming after step 2" in printed
    assert losses(place / "parts") == losses(place / "two")
    weights = [(place / name / "artifact" / "model.safetensors").read_bytes() for name in ("parts", "two")]
    assert weights[0] == weights[1]

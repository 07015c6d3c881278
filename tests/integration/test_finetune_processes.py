"""Two processes that fine-tune one model, over the ring backend on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxlm.spec.open_model import open_model
from jaxlm.spec.run.metrics_log import read_metrics
from tests.conftest import TINY, prepare_texts
from tests.mlxlm.small_models import save_model

ROOT = Path(__file__).parent.parent.parent
FLAGS = "--num_train_steps 3 --batch_size 4 --seq_len 32 --log_every_steps 1 --sample_tokens 0 --method qat"


def test_two_processes_fine_tune_as_one_does(tmp_path, tokenizer):
    save_model(tmp_path / "model", TINY, tokenizer)
    prepare_texts(tmp_path / "data", [f"def f{i}(x):\n    return x + {i}\n" for i in range(60)], tokenizer)
    # On a CPU, MLX compiles with g++: seconds a run.
    environment = os.environ | {"MLX_DISABLE_COMPILE": "1", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
    launch += ["-n", "2", "--backend", "ring", "--python", sys.executable]
    for name, program in (("two", launch), ("one", [sys.executable])):
        flags = ["--model", tmp_path / "model", "--data", tmp_path / "data", "--output_dir", tmp_path / name]
        command = [*program, "-m", "mlxlm.finetune", *map(str, flags), *FLAGS.split()]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    losses = [
        [line["train/loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("one", "two")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    tensors = [open_model(tmp_path / name / "artifact").tensors for name in ("one", "two")]
    for name in tensors[0]:
        np.testing.assert_allclose(tensors[1][name], tensors[0][name], atol=1e-4)

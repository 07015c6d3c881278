"""Logits of a model on disk, computed by the program that the directory was written for."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.common.artifact.model_files import read_config


def other_program(form: str) -> Callable[[Path, np.ndarray], tuple[str, np.ndarray] | None]:
    """Return the function that computes the logits of a conversion to this form with the program that it is for."""
    return run_in_mlx_lm if form == "mlx" else run_elsewhere


def run_in_mlx_lm(directory: Path, token_ids: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Return mlx-lm and its logits `[1, L, V]` float32; None where it is not installed."""
    return _run_with_mlx_lm(directory, token_ids) if _is_here("mlx_lm") else None


def run_elsewhere(directory: Path, token_ids: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Return the name of the program and its logits `[1, L, V]` float32; None where no such program is installed.

    mlx-lm runs an MLX directory, and with it the model file that this project has generated; transformers runs a
    directory of a model type that it has a class for.
    """
    content = read_config(directory)
    if "model_file" in content:
        return run_in_mlx_lm(directory, token_ids)
    if content.get("model_type") in ("llama", "qwen2", "qwen3", "bitnet") and _is_here("transformers", "torch"):
        return _run_with_transformers(directory, token_ids)
    return None


def _is_here(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _run_with_mlx_lm(directory: Path, token_ids: np.ndarray) -> tuple[str, np.ndarray]:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, config = load_model(directory, trust_remote_code=True)
    if "quantization" in config:
        model.set_dtype(mx.float32)  # scales of float16 round the activations too, and are slow on CPUs
    return "mlx-lm", np.array(model(mx.array(token_ids)).astype(mx.float32))


def _run_with_transformers(directory: Path, token_ids: np.ndarray) -> tuple[str, np.ndarray]:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return "transformers", model(torch.from_numpy(token_ids)).logits.numpy()

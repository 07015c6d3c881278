"""A latent artifact of a model that was never trained, written tensor by tensor: it may be larger than memory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.artifact.artifact import save_artifact, weight_file_bytes
from jaxlm.common.sampling import LARGEST_SEED

# What config, index and manifest take beside the weights, at most.
_ROOM_FOR_THE_REST = 10**6


def save_blank_artifact(
    directory: Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    float_dtype: str = "float32",
    advance: Callable[[int], None] = lambda parameters: None,
) -> None:
    """Write fresh weights as a latent artifact, for training to start from (`--init_from`) on any machine.

    `advance` is told how many parameters each tensor brings. Raises ValueError, before anything is written, where the
    disk has no room for it or the place is taken.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed: found {seed}, expected 0 or more and at most {LARGEST_SEED}")
    _check_room(directory, weight_file_bytes(config, "latent", float_dtype) + _ROOM_FOR_THE_REST)
    weights = initial_weights(config, seed)

    def read(name: str) -> np.ndarray:
        weight = weights(name)
        advance(weight.size)
        return weight

    save_artifact(directory, config, "latent", read, float_dtype=float_dtype)


def _check_room(directory: Path, needed: int) -> None:
    """Raise ValueError where the disk under a directory to create has not so many bytes free."""
    there = next(path for path in directory.absolute().parents if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"{directory}: found {free:,} bytes free, expected at least {needed:,} for the artifact; choose another "
            "disk, a smaller model, or float_dtype bfloat16"
        )

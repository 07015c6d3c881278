"""A latent artifact of an untrained model, written tensor by tensor, so that it may be larger than memory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.artifact.artifact import save_artifact, weight_file_bytes
from jaxlm.common.sampling import LARGEST_SEED

# An upper bound for the bytes of config, index and manifest.
_OTHER_FILES_BYTES = 10**6


def save_blank_artifact(
    directory: Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    float_dtype: str = "float32",
    advance: Callable[[int], None] = lambda parameters: None,
) -> None:
    """Write fresh weights as a latent artifact, for training to start from (`--init_from`) on any machine.

    `advance` receives the number of parameters of each tensor, for a progress bar. Raises ValueError, before anything
    is written, where the disk is too small, the directory is taken or the seed is out of range.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed: found {seed}, expected 0 or more and at most {LARGEST_SEED}")
    _check_disk_space(directory, weight_file_bytes(config, "latent", float_dtype) + _OTHER_FILES_BYTES)
    weights = initial_weights(config, seed)

    def read(name: str) -> np.ndarray:
        weight = weights(name)
        advance(weight.size)
        return weight

    save_artifact(directory, config, "latent", read, float_dtype=float_dtype)


def _check_disk_space(directory: Path, needed: int) -> None:
    """Raise ValueError where the disk of a directory that does not exist yet has fewer bytes free than needed."""
    existing = next(path for path in directory.absolute().parents if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"{directory}: found {free:,} bytes free, expected at least {needed:,} for the artifact; choose another "
            "disk, a smaller model, or float_dtype bfloat16"
        )

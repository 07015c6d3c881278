"""Checkpoints of a fine-tuning run: trained parameters, optimizer state, position in the data; each one sealed."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from jaxlm.common.architecture.parameters import StoredTensor
from jaxlm.common.artifact.model_files import check_tensors, read_json_object
from jaxlm.common.artifact.safetensors import TensorFile, write_tensors
from jaxlm.common.run.complete_checkpoints import checkpoint_steps, quarantine_damaged
from mlxlm.finetune.optimizer import Arrays, OptimizerState
from mlxlm.finetune.processes import is_first, wait_for_all
from mlxlm.model.layers import to_numpy
from shared_tokenizer.manifest import sealed_directory

ARRAYS = "arrays.safetensors"
STATE = "state.json"
PARTS = ("parameters", "first_moment", "second_moment")


@dataclass(frozen=True)
class Restored:
    """The content of a checkpoint."""

    step: int
    parameters: Arrays
    optimizer_state: OptimizerState
    data_state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, open for writing. `log` receives a line on anything unusual.

    `belongs_to` maps what a checkpoint depends on (model, tokenizer, data) to its fingerprint. `settings` are saved
    with every checkpoint; `check_settings` receives those of the one that is restored, and raises ValueError where they
    are not those of the run.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int,
        belongs_to: Mapping[str, str],
        log: Callable[[str], None],
        settings: Mapping[str, Any] | None = None,
        check_settings: Callable[[Mapping[str, Any]], None] = lambda settings: None,
    ):
        self._settings, self._check_settings = settings, check_settings
        self._directory, self._keep_last, self._belongs_to = directory, keep_last, dict(belongs_to)
        if is_first():
            directory.mkdir(exist_ok=True)
            for unfinished in directory.glob(".*"):
                shutil.rmtree(unfinished)
            quarantine_damaged(directory, log)
        wait_for_all()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return max(checkpoint_steps(self._directory), default=None)

    def save(self, step: int, parameters: Arrays, optimizer_state: OptimizerState, data_state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove the oldest. Raises OSError where it cannot be written; the others stay."""
        arrays = _flat(parameters, optimizer_state)
        before = self.latest
        try:
            with sealed_directory(self._directory / str(step)) as temporary:
                content: dict[str, Any] = {"step": step, "data_state": data_state, **self._belongs_to}
                if self._settings is not None:
                    content["settings"] = dict(self._settings)
                (temporary / STATE).write_text(json.dumps(content), "utf-8")
                write_tensors(temporary / ARRAYS, _stored(arrays), lambda name: to_numpy(arrays[name]))
        except OSError as error:
            raise OSError(
                f"checkpoint of step {step}: could not be saved: {error}; the last one is of step {before}"
            ) from error
        for old in checkpoint_steps(self._directory)[: -self._keep_last]:
            # Renamed first: a directory that is removed in part must not count as a checkpoint.
            removed = (self._directory / str(old)).rename(self._directory / f".{old}")
            shutil.rmtree(removed)

    def restore_latest(self, parameters: Arrays, optimizer_state: OptimizerState) -> Restored | None:
        """Return the newest checkpoint, whose arrays have these names, shapes and dtypes; None where there is none.

        Raises ValueError where it belongs to another model, tokenizer or data.
        """
        step = self.latest
        if step is None:
            return None
        directory = self._directory / str(step)
        content = read_json_object(directory / STATE)
        for what, fingerprint in self._belongs_to.items():
            if (found := content.get(what)) != fingerprint:
                raise ValueError(
                    f"{directory}: was trained with {what} {str(found)[:12]}..., found {fingerprint[:12]}...; resume "
                    f"with the same {what}, or start a new run"
                )
        if "settings" in content:  # checkpoints of earlier versions hold none
            self._check_settings(content["settings"])
        expected = _flat(parameters, optimizer_state)
        file = TensorFile(directory / ARRAYS)
        check_tensors(directory, {name: file.stored(name) for name in file}, _stored(expected))
        arrays = {name: mx.array(file[name]).astype(array.dtype) for name, array in expected.items()}
        parts = {part: _part(arrays, part) for part in PARTS}
        return Restored(step, parts.pop("parameters"), parts, content["data_state"])


def _flat(parameters: Arrays, optimizer_state: OptimizerState) -> Arrays:
    parts = {"parameters": parameters, **optimizer_state}
    return {f"{part}/{path}": array for part, arrays in parts.items() for path, array in arrays.items()}


def _part(arrays: Arrays, part: str) -> Arrays:
    return {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{part}/")}


def _stored(arrays: Arrays) -> list[StoredTensor]:
    return [
        StoredTensor(name, tuple(array.shape), str(array.dtype).rpartition(".")[2]) for name, array in arrays.items()
    ]

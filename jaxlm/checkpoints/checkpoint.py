"""Training checkpoints of orbax, written in the background, each sealed by a sha256 manifest.

A checkpoint is complete if its manifest holds. A damaged one (interrupted save, flipped bit) is moved to `damaged/`
with a warning, and training resumes from the previous one. An old checkpoint is removed only after a newer one is
sealed.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from jaxlm.common.run.complete_checkpoints import checkpoint_steps, directory_id, quarantine_damaged
from jaxlm.parallel.distributed import is_first, wait_for_all
from shared_tokenizer.manifest import MANIFEST, DamagedError, verify_manifest, write_manifest

VAL_LOSS = "val_loss"
_METRICS = "metrics/metrics"  # file of orbax in a checkpoint


@dataclass(frozen=True)
class Restored:
    """The training state of a checkpoint."""

    step: int
    params: Any
    opt_state: Any


class Position(Protocol):
    """The place of a run in its data, as `grain.DatasetIterator` has it."""

    def get_state(self) -> Any:
        """Return the place, as JSON can hold it."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a place that `get_state` returned."""
        ...


class Checkpoints:
    """The checkpoints of one run, open for writing. `log` receives one line per damaged checkpoint.

    `check_settings` receives the settings that a checkpoint was saved with, and raises ValueError where they are not
    those of the run; `settings` are saved with every checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int,
        keep_best: int,
        tokenizer_fingerprint: str,
        data_fingerprint: str,
        log: Callable[[str], None],
        settings: Mapping[str, Any] | None = None,
        check_settings: Callable[[Mapping[str, Any]], None] = lambda settings: None,
    ):
        self._directory = directory.resolve()
        self._directory.mkdir(exist_ok=True)
        self._place = directory_id(self._directory)
        self._keep_last, self._keep_best = keep_last, keep_best
        self._belongs_to = {"tokenizer": tokenizer_fingerprint, "data": data_fingerprint}
        self._settings, self._check_settings = settings, check_settings
        if is_first():
            for removed in self._directory.parent.glob(".removed-[0-9]*"):
                shutil.rmtree(removed)
            quarantine_damaged(self._directory, log)
        wait_for_all("damaged checkpoints are quarantined")
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=LatestN(None),  # orbax would remove one before the next is sealed
                best_fn=lambda metrics: -metrics[VAL_LOSS],  # without it orbax does not write the metrics
                cleanup_tmp_directories=True,
            ),
        )
        self._sealer = ThreadPoolExecutor(1)
        self._unsealed: int | None = None
        self._sealing: Future[None] | None = None
        self._has_failed = False

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any, data: Position, val_loss: float | None) -> None:
        """Start to save a checkpoint. The arrays are copied before this returns; the files are written afterwards.

        Raises OSError where this one or the one before cannot be written; those before stay.
        """
        self.finish()
        meta = {"step": step, "data_state": data.get_state(), **self._belongs_to}
        if self._settings is not None:
            meta["settings"] = dict(self._settings)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            opt_state=ocp.args.StandardSave(opt_state),
            # The position in the data is the same on every host, so another number of hosts can resume from it.
            meta=ocp.args.JsonSave(meta),
        )
        metrics = None if val_loss is None else {VAL_LOSS: val_loss}
        with self._errors_of(step):
            self._check_place()
            self._manager.save(step, args=items, metrics=metrics)
        self._unsealed = step

    def poll(self) -> None:
        """Seal the last save if all of its files are written. It is cheap, so call it every step.

        Raises OSError where the save has failed.
        """
        if self._unsealed is not None and not self._manager.is_saving_in_progress():
            self._seal()
        if self._sealing is not None and self._sealing.done():
            self._finish_sealing()

    def finish(self) -> None:
        """Wait until the last save is written and sealed. Raises OSError where that has failed."""
        if self._unsealed is not None:
            self._seal()
        if self._sealing is not None:
            self._finish_sealing()

    def _seal(self) -> None:
        step, self._unsealed = self._unsealed, None
        assert step is not None
        with self._errors_of(step):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._check_place()
        if is_first():
            self._sealing = self._sealer.submit(self._seal_files, step)

    def _seal_files(self, step: int) -> None:
        with self._errors_of(step):
            write_manifest(self._directory / str(step))
        self._remove_old()

    def _finish_sealing(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def _remove_old(self) -> None:
        """Remove the sealed checkpoints that are neither among the last nor among the best."""
        sealed = [
            step for step in checkpoint_steps(self._directory) if (self._directory / str(step) / MANIFEST).exists()
        ]
        losses = {step: loss for step in sealed if (loss := _val_loss(self._directory / str(step))) is not None}
        best = sorted(losses, key=lambda step: (losses[step], -step))[: self._keep_best]
        for step in set(sealed) - set(sealed[-self._keep_last :]) - set(best):
            # Renamed first: a directory that is removed in part must not count as a checkpoint.
            removed = self._directory.parent / f".removed-{step}"
            (self._directory / str(step)).rename(removed)
            shutil.rmtree(removed)

    def _check_place(self) -> None:
        if is_first() and directory_id(self._directory) != self._place:
            raise FileNotFoundError("the run directory was moved or removed while training")

    @contextlib.contextmanager
    def _errors_of(self, step: int) -> Iterator[None]:
        """Raise every error of a save as an OSError that names the checkpoint."""
        try:
            yield
        except Exception as error:
            self._has_failed = True
            where = self._directory / str(step)
            sealed = [old for old in checkpoint_steps(self._directory) if old != step]
            last = f"the last one is of step {max(sealed)}" if sealed else "there is none yet"
            reason = " ".join(str(error).split()) or type(error).__name__
            if len(reason) > 400:  # a library repeats the path; the cause stands at the end
                reason = f"{reason[:150]} ... {reason[-200:]}"
            raise OSError(f"{where}: checkpoint of step {step} could not be saved: {reason}; {last}") from error

    def restore_latest(self, params: Any, opt_state: Any, data: Position) -> Restored | None:
        """Restore the newest checkpoint into trees of these shapes and shardings, and set `data` to its position.

        Returns None where there is no checkpoint. Raises ValueError where the checkpoint was trained with another
        tokenizer, other data or other settings.
        """
        step = self.latest
        if step is None:
            return None
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(params)),
                opt_state=ocp.args.StandardRestore(_abstract(opt_state)),
                meta=ocp.args.JsonRestore(),
            ),
        )
        self._check_settings(found["meta"].get("settings") or {})
        for what, fingerprint in self._belongs_to.items():
            if found["meta"][what] != fingerprint:
                raise ValueError(
                    f"{self._directory / str(step)}: was trained with {what} {found['meta'][what][:12]}..., found "
                    f"{fingerprint[:12]}...; resume with the same data_dir, or start a new run with init_from"
                )
        data.set_state(found["meta"]["data_state"])
        return Restored(step, found["params"], found["opt_state"])

    def close(self) -> None:
        """Finish the last save and release the threads."""
        try:
            self.finish()
        finally:
            self._sealer.shutdown()
            with contextlib.suppress(Exception) if self._has_failed else contextlib.nullcontext():
                self._manager.close()


def restore_params(directory: Path, params: Any, log: Callable[[str], None]) -> tuple[int, Any]:
    """Return the step and the parameters of the newest complete checkpoint below `directory`, which is only read.

    `params` has the shapes and, where set, the shardings. Raises ValueError where there is no complete checkpoint.
    """
    step = newest_complete_step(directory, log)
    with ocp.CheckpointManager(directory.resolve(), options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
        return step, manager.restore(step, args=args)["params"]


def newest_complete_step(directory: Path, log: Callable[[str], None]) -> int:
    """Return the step of the newest complete checkpoint. `log` receives one line per damaged checkpoint.

    Raises ValueError where there is no complete checkpoint.
    """
    for step in reversed(checkpoint_steps(directory)):
        try:
            verify_manifest(directory / str(step))
        except DamagedError as error:
            log(f"checkpoint {step} is damaged and is ignored: {error}")
        else:
            return step
    raise ValueError(f"{directory}: found no complete checkpoint; train the run further, or use another one")


def _val_loss(checkpoint: Path) -> float | None:
    """Return the held-out loss that was saved with a checkpoint, None where there was no evaluation.

    Raises DamagedError where the file holds no such number.
    """
    path = checkpoint / _METRICS
    if not path.is_file():
        return None
    try:
        return float(json.loads(path.read_text("utf-8"))[VAL_LOSS])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path}: found no {VAL_LOSS}; restore the file, or remove this checkpoint") from error


def _abstract(tree: Any) -> Any:
    # The devices that saved the checkpoint do not matter: a leaf without a sharding goes to one device of this process.
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or one_device), tree)

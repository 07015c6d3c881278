"""Training checkpoints of orbax, written in the background, each sealed by a sha256 manifest.

A checkpoint is complete if its manifest holds. A damaged one (interrupted save, flipped bit) is moved to `damaged/`
with a warning, and training resumes from the previous one.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxlm.common.run.complete_checkpoints import checkpoint_steps, quarantine_damaged
from jaxlm.parallel.distributed import is_first, wait_for_all
from shared_tokenizer.manifest import DamagedError, verify_manifest, write_manifest

VAL_LOSS = "val_loss"


@dataclass(frozen=True)
class Restored:
    """The training state of a checkpoint."""

    step: int
    params: Any
    opt_state: Any


class Checkpoints:
    """The checkpoints of one run, open for writing. `log` receives one line per damaged checkpoint."""

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int,
        keep_best: int,
        tokenizer_fingerprint: str,
        data_fingerprint: str,
        log: Callable[[str], None],
    ):
        self._directory = directory.resolve()
        self._directory.mkdir(exist_ok=True)
        self._belongs_to = {"tokenizer": tokenizer_fingerprint, "data": data_fingerprint}
        if is_first():
            quarantine_damaged(self._directory, log)
        wait_for_all("damaged checkpoints are quarantined")
        policies: list[Any] = [LatestN(keep_last)]
        if keep_best:
            best = BestN(get_metric_fn=_negative_loss, n=keep_best, keep_checkpoints_without_metrics=False)
            policies.append(best)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=_negative_loss,  # without it orbax does not write the metrics
                cleanup_tmp_directories=True,
            ),
        )
        self._sealer = ThreadPoolExecutor(1)
        self._unsealed: int | None = None
        self._sealing: Future[None] | None = None

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any, data: grain.DatasetIterator, val_loss: float | None) -> None:
        """Start to save a checkpoint. The arrays are copied before this returns; the files are written afterwards."""
        self.finish()
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            opt_state=ocp.args.StandardSave(opt_state),
            # The position in the data is the same on every host, so another number of hosts can resume from it.
            meta=ocp.args.JsonSave({"step": step, "data_state": data.get_state(), **self._belongs_to}),
        )
        metrics = None if val_loss is None else {VAL_LOSS: val_loss}
        self._manager.save(step, args=items, metrics=metrics)
        self._unsealed = step

    def poll(self) -> None:
        """Seal the last save if all of its files are written. It is cheap, so call it every step."""
        if self._unsealed is not None and not self._manager.is_saving_in_progress():
            self._seal()

    def finish(self) -> None:
        """Wait until the last save is written and sealed."""
        if self._unsealed is not None:
            self._manager.wait_until_finished()
            self._seal()
        if self._sealing is not None:
            self._sealing.result()
            self._sealing = None

    def _seal(self) -> None:
        if is_first():
            self._sealing = self._sealer.submit(write_manifest, self._directory / str(self._unsealed))
        self._unsealed = None

    def restore_latest(self, params: Any, opt_state: Any, data: grain.DatasetIterator) -> Restored | None:
        """Restore the newest checkpoint into trees of these shapes and shardings, and set `data` to its position.

        Returns None where there is no checkpoint. Raises ValueError where the checkpoint was trained with another
        tokenizer or other data.
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
        self.finish()
        self._sealer.shutdown()
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


def _negative_loss(metrics: dict[str, float]) -> float:
    """Return the number that orbax ranks checkpoints by, the highest first."""
    return -metrics[VAL_LOSS]


def _abstract(tree: Any) -> Any:
    # The devices that saved the checkpoint do not matter: a leaf without a sharding goes to one device of this process.
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or one_device), tree)

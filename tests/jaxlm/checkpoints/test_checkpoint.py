import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoints.checkpoint import Checkpoints, newest_complete_step, restore_params
from shared_tokenizer.data.batches import BatchOrder, training_batches
from shared_tokenizer.data.examples import Windows
from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.manifest import MANIFEST, verify_manifest
from tests.conftest import flipped_bit


def make_iterator():
    windows = Windows(TokenShards.from_documents([np.arange(1, 1002)]), 10, "test")
    return iter(training_batches([windows], BatchOrder(10, seed=0)))


class Run:
    """A small imitation of a run: parameters that count steps, and a data iterator."""

    def __init__(self, directory, **settings):
        self.logged: list[str] = []
        settings = {"keep_last": 2, "keep_best": 0, "tokenizer_fingerprint": "a", "data_fingerprint": "d"} | settings
        self.checkpoints = Checkpoints(directory, log=self.logged.append, **settings)
        self.iterator = make_iterator()

    def save(self, step, val_loss=None):
        next(self.iterator)
        self.checkpoints.save(step, params(step), opt_state(step), self.iterator, val_loss)

    def restore(self):
        return self.checkpoints.restore_latest(params(0), opt_state(0), self.iterator)


def params(step):
    return {"layer": {"weight": jnp.full((3, 2), float(step))}}


def opt_state(step):
    return (jnp.int32(step), {"mu": params(step)})


def test_everything_comes_back(tmp_path):
    run = Run(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        run.save(step)
    run.checkpoints.close()
    expected = next(run.iterator)["inputs"]
    again = Run(tmp_path / "checkpoints")
    restored = again.restore()
    assert restored is not None and restored.step == 3
    np.testing.assert_array_equal(restored.params["layer"]["weight"], 3.0)
    np.testing.assert_array_equal(restored.opt_state[1]["mu"]["layer"]["weight"], 3.0)
    np.testing.assert_array_equal(next(again.iterator)["inputs"], expected)
    assert not again.logged
    again.checkpoints.close()
    for step in (2, 3):
        verify_manifest(tmp_path / "checkpoints" / str(step))


def test_the_last_and_the_best_are_kept(tmp_path):
    run = Run(tmp_path / "checkpoints", keep_last=2, keep_best=1)
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 6.0), (5, None)):
        run.save(step, loss)
    run.checkpoints.close()
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == [2, 4, 5]
    again = Run(tmp_path / "checkpoints", keep_last=2, keep_best=1)  # the losses are on disk, not in memory
    again.save(6, 7.0)
    again.checkpoints.close()
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == [2, 5, 6]


@pytest.mark.parametrize("keep_best", [0, 1])
def test_the_last_checkpoint_is_removed_only_when_the_next_is_sealed(tmp_path, monkeypatch, keep_best):
    run = Run(tmp_path / "checkpoints", keep_last=1, keep_best=keep_best)
    run.save(4)
    run.save(8)
    run.checkpoints.finish()
    assert kept_steps(tmp_path) == [8]

    def killed(directory):
        assert kept_steps(tmp_path) == [8, 12]  # complete, and not yet sealed
        verify_manifest(tmp_path / "checkpoints" / "8")
        raise OSError(28, "No space left on device", str(directory))

    monkeypatch.setattr("jaxlm.checkpoints.checkpoint.write_manifest", killed)
    run.save(12)
    with pytest.raises(
        OSError, match=r"checkpoint of step 12 could not be saved: .*No space.*; the last one is of step 8"
    ):
        run.checkpoints.close()
    monkeypatch.undo()
    again = Run(tmp_path / "checkpoints", keep_last=1, keep_best=keep_best)
    restored = again.restore()
    assert restored is not None and restored.step == 8
    again.checkpoints.close()


def kept_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def test_a_failed_save_is_noticed_before_the_next_one(tmp_path, monkeypatch):
    run = Run(tmp_path / "checkpoints")
    run.save(1)
    run.checkpoints.finish()

    def failed():
        raise ValueError("RESOURCE_EXHAUSTED: " + "/a/long/path" * 60 + ": No space left on device")

    monkeypatch.setattr(run.checkpoints._manager, "check_for_errors", failed)
    run.save(2)
    message = (
        r"checkpoints/2: checkpoint of step 2 could not be saved: RESOURCE_EXHAUSTED.*No space left on device; the last"
    )
    with pytest.raises(OSError, match=message):
        for _ in range(1000):
            run.checkpoints.poll()
            time.sleep(0.01)
    run.checkpoints.close()  # without a second error
    assert newest_complete_step(tmp_path / "checkpoints", print) == 1


def test_a_moved_run_directory_is_not_written_anew(tmp_path):
    run = Run(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="the run directory was moved or removed while training"):
        run.save(1)
    run.checkpoints.close()
    assert not (tmp_path / "checkpoints").exists()


def test_the_settings_of_a_checkpoint_are_compared(tmp_path):
    run = Run(tmp_path / "checkpoints", settings={"seed": 0, "optimizer": {"b1": 0.9}})
    run.save(1)
    run.checkpoints.close()
    found = []
    again = Run(tmp_path / "checkpoints", check_settings=found.append)
    again.restore()
    assert found == [{"seed": 0, "optimizer": {"b1": 0.9}}]
    again.checkpoints.close()


@pytest.fixture
def two_checkpoints(tmp_path):
    run = Run(tmp_path / "checkpoints")
    run.save(1)
    run.save(2)
    run.checkpoints.close()
    return tmp_path / "checkpoints"


def test_an_unsealed_checkpoint_is_quarantined_with_a_warning(two_checkpoints):
    (two_checkpoints / "2" / MANIFEST).unlink()
    run = Run(two_checkpoints)
    restored = run.restore()
    assert restored is not None and restored.step == 1
    assert len(run.logged) == 1 and "checkpoint 2 is damaged" in run.logged[0]
    run.save(2)  # the step can be saved again
    run.checkpoints.close()
    verify_manifest(two_checkpoints / "2")
    assert (two_checkpoints.parent / "damaged" / "2").is_dir()


def test_a_flipped_bit_anywhere_is_never_trained_on(two_checkpoints):
    files = [path for path in (two_checkpoints / "2").rglob("*") if path.is_file() and path.stat().st_size]
    rng = np.random.default_rng(0)
    for _ in range(200):
        logged: list[str] = []
        with flipped_bit(files, rng):
            assert newest_complete_step(two_checkpoints, logged.append) == 1
        assert "checkpoint 2 is damaged" in logged[0]
    assert restore_params(two_checkpoints, params(0), print)[0] == 2


@pytest.mark.parametrize(("what", "before"), [("tokenizer", "a"), ("data", "d")])
def test_another_tokenizer_and_other_data_are_refused(two_checkpoints, what, before):
    run = Run(two_checkpoints, **{f"{what}_fingerprint": "b" * 20})
    with pytest.raises(ValueError, match=rf"was trained with {what} {before}\.\.\., found bbbbbbbbbbbb\.\.\.; resume"):
        run.restore()
    run.checkpoints.close()


def test_no_checkpoint_is_no_error_for_the_trainer_alone(tmp_path):
    run = Run(tmp_path / "checkpoints")
    assert run.restore() is None
    with pytest.raises(ValueError, match="found no complete checkpoint"):
        restore_params(tmp_path / "checkpoints", params(0), print)
    run.checkpoints.close()

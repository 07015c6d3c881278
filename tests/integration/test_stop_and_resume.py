"""A run that was stopped or killed goes on as if nothing had happened."""

import functools
import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.load import load_model
from shared_tokenizer.manifest import verify_manifest
from tests.commands import run, start
from tests.conftest import prepare_texts

# Dies by SIGKILL when the checkpoint of step 20 has its files but not yet its manifest.
KILLED_WHILE_SAVING = """
import os, signal, sys
import jaxlm.checkpoints.checkpoint
seal = jaxlm.checkpoints.checkpoint.write_manifest
def write_manifest(directory):
    if directory.name == "20":
        os.kill(os.getpid(), signal.SIGKILL)
    seal(directory)
jaxlm.checkpoints.checkpoint.write_manifest = write_manifest
exec(compile(open("scripts/train_jax.py").read(), "train_jax.py", "exec"))
"""

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2}
# Settings of runs that must go on equal to the bit.
KINDS = {
    "ternary": {"batch_size": "auto"},
    "mmfree": {"preset": "mmfree-tiny", "model": json.dumps(SHAPE)},
    "accumulated hybrid": {
        "grad_accumulation_steps": 2,
        "model": json.dumps(SHAPE | {"num_heads": 2, "token_mixer": ["mlgru", "attention"]}),
    },
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tokenizer):
    """A folder with token shards and a place for compiled programs."""
    path = tmp_path_factory.mktemp("work")
    prepare_texts(path / "data", [f"def f{i}(x):\n    return x + {i * 7}\n" * 4 for i in range(80)], tokenizer)
    return path


def flags(workplace, name, **settings):
    settings = {
        "data_dir": workplace / "data",
        "output_dir": workplace / name,
        "preset": "ternary-tiny",
        "num_train_steps": 40,
        "batch_size": 4,
        "seq_len": 32,
        "eval_every_steps": 10,
        "eval_batches": 2,
        "checkpoint_every_steps": 10,
        "keep_last_checkpoints": 10,
        "sample_tokens": 0,
        "log_every_steps": 5,
        "optimizer.warmup_steps": 4,
        "model": json.dumps(SHAPE | {"num_heads": 2}),
        "compilation_cache_dir": workplace / "compiled",
    } | settings
    return [word for flag, value in settings.items() for word in (f"--{flag}", str(value))]


def train(arguments):
    return run("scripts/train_jax.py", *arguments)


@pytest.fixture(scope="module")
def straight(workplace):
    """The directory of an undisturbed run of a kind; made once."""

    @functools.cache
    def directory(kind):
        done = train(flags(workplace, f"straight-{kind}", **KINDS[kind]))
        assert done.returncode == 0, done.stderr
        assert "compilation cache" not in done.stderr  # where jax cannot write a program, the trainer says so itself
        return workplace / f"straight-{kind}"

    return directory


def final_state(run_dir: Path):
    """Parameters, optimizer state and place in the data of the last checkpoint, as plain arrays."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(
        run_dir / "checkpoints", options=ocp.CheckpointManagerOptions(read_only=True)
    ) as manager:
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(), opt_state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
        )
        found = manager.restore(40, args=items)
    assert found["meta"]["data_state"] == {"next_index": 40}
    return found["params"], found["opt_state"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_saving_and_resumed_equals_never_stopped(workplace, straight, kind):
    broken = f"broken-{kind}"
    (workplace / "killed.py").write_text(KILLED_WHILE_SAVING)
    killed = run(workplace / "killed.py", *flags(workplace, broken, **KINDS[kind]))
    assert killed.returncode == -signal.SIGKILL
    resumed = train(["--config", str(workplace / broken / "config.yaml"), "--resume", "true"])
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint 20 is damaged" in resumed.stdout
    assert "resuming after step 10" in resumed.stdout
    expected, found = final_state(straight(kind)), final_state(workplace / broken)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    losses = [
        [(line["step"], line.get("train/loss"), line.get("val/loss")) for line in read_metrics(path)]
        for path in (straight(kind) / "metrics.jsonl", workplace / broken / "metrics.jsonl")
    ]
    assert losses[0] == losses[1]
    assert [step for step, *_ in losses[0]] == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert (workplace / broken / "loss.png").stat().st_size > 1000
    verify_manifest(workplace / broken / "artifact")


def test_training_goes_on_from_a_latent_artifact(workplace, straight):
    source, latent = straight("ternary"), workplace / "latent"
    done = run("scripts/convert.py", source, latent, "--to", "latent")
    assert done.returncode == 0, done.stderr
    done = train(flags(workplace, "continued", init_from=latent, num_train_steps=10))
    assert done.returncode == 0, done.stderr
    before = read_metrics(source / "metrics.jsonl")
    after = read_metrics(workplace / "continued" / "metrics.jsonl")
    # The same first batch, seen by a fresh model and by the trained one.
    assert after[0]["train/loss"] < before[0]["train/loss"] - 0.5
    packed = train(flags(workplace, "refused", init_from=source / "artifact"))
    assert packed.returncode == 2 and "packed and holds no latent weights" in packed.stderr


@pytest.mark.parametrize(
    ("line_start", "number"),
    [
        ("compiling the training step", signal.SIGTERM),
        ("step 5/", signal.SIGINT),
        ("step 10  epoch", signal.SIGHUP),
    ],
)
def test_a_signal_saves_and_leaves_with_the_resume_command(workplace, line_start, number):
    name = f"stopped-by-{number.name}"
    # A cache would make the compilation too short to be caught in.
    arguments = flags(
        workplace, name, num_train_steps=4000, compilation_cache_dir=workplace / name / ".." / number.name
    )
    with start("scripts/train_jax.py", *arguments) as command:
        command.wait_for(f"\n{line_start}")
        command.send_signal(number)
        assert command.wait() == 0, command.stderr
        printed = command.stdout
    assert f"{number.name}: saved step" in printed
    assert f"--config {workplace / name / 'config.yaml'} --resume true" in printed
    saved = sorted((workplace / name / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    verify_manifest(saved[-1])
    assert f"saved step {saved[-1].name}." in printed
    load_model(workplace / name)


def test_a_diverged_run_stops_and_keeps_its_last_checkpoint(workplace):
    settings = {"optimizer.learning_rate": 1e17, "optimizer.grad_clip_norm": 0, "optimizer.warmup_steps": 30}
    done = train(flags(workplace, "diverged", **settings, preset="dense-tiny", checkpoint_every_steps=1))
    assert done.returncode == 2
    assert re.search(r"error: step \d+: train/\w+ is (nan|inf); the last checkpoint is of step", done.stderr)
    assert done.stderr.count("\n") == 1
    checkpoints = workplace / "diverged" / "checkpoints"
    if any(checkpoints.iterdir()):
        _, params, _ = load_model(workplace / "diverged")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))

"""Small inputs of every command, and the results of undisturbed runs that everything else is compared with."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.common.run.complete_checkpoints import checkpoint_steps
from shared_tokenizer.manifest import DamagedError, verify_manifest
from tests.commands import preload, run
from tests.faults.injected import Injection

# Imported by the commands of the campaign, which are forked from a server that has done so already.
preload(
    "jaxlm.commands.train",
    "jaxlm.commands.convert",
    "mlxlm.finetune.command",
    "mlxlm.evaluate",
    "matplotlib.pyplot",
)

STEPS = 12
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1}
# TQ2_0 has blocks of 256.
GGUF_SHAPE = SHAPE | {"hidden_size": 256, "intermediate_size": 256}
_OFTEN = {"num_train_steps": STEPS, "log_every_steps": 1, "eval_every_steps": 6, "eval_batches": 1}
_TRAIN = _OFTEN | {
    "batch_size": 2,
    "seq_len": 16,
    "sample_tokens": 3,
    "sample_every_steps": 5,
    "optimizer.warmup_steps": 2,
    "model": json.dumps(SHAPE),
}
_FINETUNE = _OFTEN | {"batch_size": 2, "seq_len": 16, "sample_tokens": 3, "sample_every_steps": 5}
SAMPLE_ORDER = "order of the samples"
# Measured times differ from run to run.
_TIMES = ("perf/",)
# Files that the campaign puts beside an output.
_OURS = {"reference.json", "changes.txt", "stdout", "stderr"}


@dataclass(frozen=True)
class Job:
    """A command that writes one output, and how that is compared with the output of an undisturbed run."""

    name: str
    words: Callable[["Workplace", Path], list[str]]
    """The command that writes a path."""
    digest: Callable[[Path], dict[str, str]]
    """Everything that has to be equal to the bit, by name."""
    resume: Callable[[Path], list[str]] | None = None
    """The command that goes on with a begun output; None repeats the command."""
    settings: str = ""
    """File whose presence says that there is something to resume."""

    def again(self, workplace: "Workplace", output: Path) -> list[str]:
        """Return the command that finishes an output after an interruption."""
        if self.resume is not None and (output / self.settings).is_file():
            return self.resume(output)
        return self.words(workplace, output)


@dataclass(frozen=True)
class Reference:
    """The result of an undisturbed run of a job."""

    digest: dict[str, str]
    names: frozenset[str]
    """Files and folders at the top of the output, and beside it."""
    changes: int
    """Number of times that it changed files, which is the number of moments for a fault."""
    seconds: float


@dataclass(frozen=True)
class Workplace:
    """A folder with the inputs, made once."""

    path: Path

    @property
    def text(self) -> Path:
        return self.path / "text"

    @property
    def other_text(self) -> Path:
        return self.path / "other-text"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def other_data(self) -> Path:
        """Shards of another text by another tokenizer of the same size."""
        return self.path / "other-data"

    @property
    def cache(self) -> Path:
        return self.path / "compiled"

    def finished(self, job: str) -> Path:
        """Return the output of the undisturbed run of a job."""
        return self.path / "finished" / job / "output"

    def has(self, job: str) -> bool:
        """Return True where a job has run here."""
        return (self.path / "finished" / job).is_dir()

    def reference(self, job: str) -> Reference:
        """Return what the undisturbed run of a job left."""
        content = json.loads((self.path / "finished" / job / "reference.json").read_text())
        return Reference(content["digest"], frozenset(content["names"]), content["changes"], content["seconds"])


def flags(settings: Mapping[str, object]) -> list[str]:
    """Return settings as words of a command line."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def _train(preset: str, more: Mapping[str, object] | None = None, data: str = "data") -> Callable[..., list[str]]:
    def words(workplace: Workplace, output: Path) -> list[str]:
        places = {"data_dir": workplace.path / data, "output_dir": output, "compilation_cache_dir": workplace.cache}
        often = {"checkpoint_every_steps": 3}
        return ["scripts/train_jax.py", *flags({"preset": preset} | _TRAIN | places | often | dict(more or {}))]

    return words


def _resume_training(output: Path) -> list[str]:
    return ["scripts/train_jax.py", "--config", str(output / "config.yaml"), "--resume", "true"]


def _finetune(source: str, more: Mapping[str, object]) -> Callable[..., list[str]]:
    def words(workplace: Workplace, output: Path) -> list[str]:
        places = {"model": workplace.path / source, "data": workplace.data, "output_dir": output}
        often = {"checkpoint_every_steps": 2}
        return ["-m", "mlxlm.finetune", *flags(_FINETUNE | places | often | dict(more))]

    return words


def _resume_finetuning(output: Path) -> list[str]:
    return ["-m", "mlxlm.finetune", "--config", str(output / "finetune.yaml"), "--resume", "true"]


def _prepare(text: str, more: Mapping[str, object]) -> Callable[..., list[str]]:
    def words(workplace: Workplace, output: Path) -> list[str]:
        chosen = {"input": workplace.path / text, "output_dir": output, "val_fraction": 0.2, "num_workers": 1}
        return ["scripts/prepare_data.py", *flags(chosen | dict(more))]

    return words


def _tokenizer(workplace: Workplace, output: Path) -> list[str]:
    return ["scripts/train_tokenizer.py", *flags({"input": workplace.text, "output_dir": output, "vocab_size": 300})]


def _convert(form: str) -> Callable[..., list[str]]:
    def words(workplace: Workplace, output: Path) -> list[str]:
        source = workplace.path / ("wide" if form == "gguf" else "packed")
        source = workplace.path / "latent" if form in ("packed", "latent") else source
        destination = output / "model.gguf" if form == "gguf" else output
        if form == "gguf":
            output.mkdir(exist_ok=True)
        return ["scripts/convert.py", str(source), str(destination), "--to", form]

    return words


def _merge(workplace: Workplace, output: Path) -> list[str]:
    words = {"model": workplace.path / "latent", "adapter_path": workplace.path / "adapters"}
    return ["-m", "mlxlm.merge", *flags(words | {"output_dir": output})]


def digest_files(output: Path) -> dict[str, str]:
    """Return the sha256 of every file of an output."""
    if output.is_file():
        return {output.name: _sha256(output)}
    return {
        path.relative_to(output).as_posix(): _sha256(path)
        for path in sorted(output.rglob("*"))
        # A lock tells who held it, a picture may hold the time at which it was drawn, and the others are only begun.
        if path.is_file() and path.name != "lock" and path.suffix != ".png" and not path.name.startswith(".")
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_run(output: Path) -> dict[str, str]:
    """Return the digests of a finished run: artifact or adapters, tokenizer, last checkpoint, numbers, samples."""
    found: dict[str, str] = {}
    for name in ("artifact", "adapters", "tokenizer"):
        if (output / name).is_dir():
            found |= {f"{name}/{file}": value for file, value in digest_files(output / name).items()}
    for line in read_lines(output / "metrics.jsonl"):
        kept = {key: value for key, value in line.items() if not key.startswith(_TIMES)}
        found[f"metrics of step {line['step']}"] = json.dumps(kept, sort_keys=True)
    samples = (output / "samples.txt").read_text("utf-8").split("=== step ")[1:]
    found |= {f"sample of step {sample.partition(chr(10))[0]}": sample for sample in samples}
    found[SAMPLE_ORDER] = " ".join(sample.partition("\n")[0] for sample in samples)
    found["last checkpoint"] = digest_checkpoint(output / "checkpoints" / str(last_step(output)))
    return found


def digest_checkpoint(directory: Path) -> str:
    """Return the sha256 of all arrays of a checkpoint and of its place in the data."""
    if (directory / "arrays.safetensors").is_file():
        # The state names directories, the arrays do not.
        return _sha256(directory / "arrays.safetensors")
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    digest = hashlib.sha256()
    for item in ("params", "opt_state"):
        with ocp.PyTreeCheckpointer() as checkpointer:
            shapes = checkpointer.metadata(directory / item).item_metadata.tree
            # As numpy arrays: without asking on which devices they were.
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            tree = checkpointer.restore(directory / item, restore_args=arguments)
        for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)):
            digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, without a last one that was cut short."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def last_step(output: Path) -> int:
    """Return the step of the newest complete checkpoint of a run, 0 where there is none."""
    checkpoints = output / "checkpoints"
    for step in reversed(checkpoint_steps(checkpoints) if checkpoints.is_dir() else []):
        try:
            verify_manifest(checkpoints / str(step))
        except DamagedError:
            continue
        return step
    return 0


TRAININGS = (
    Job("train-ternary", _train("ternary-tiny"), digest_run, _resume_training, "config.yaml"),
    Job(
        "train-dense",
        _train("dense-tiny", {"keep_last_checkpoints": 1, "keep_best_checkpoints": 0}),
        digest_run,
        _resume_training,
        "config.yaml",
    ),
)
# The same command on other data: what a run of other data would be if it were taken over.
OTHER_TRAINING = Job(
    "train-other", _train("dense-tiny", data="other-data"), digest_run, _resume_training, "config.yaml"
)
FINETUNINGS = (
    Job("finetune-lora", _finetune("packed", {"rank": 2}), digest_run, _resume_finetuning, "finetune.yaml"),
    Job(
        "finetune-qat",
        _finetune("latent", {"method": "qat", "keep_last_checkpoints": 1}),
        digest_run,
        _resume_finetuning,
        "finetune.yaml",
    ),
)
PREPARATIONS = (
    Job("prepare-trained", _prepare("text", {"vocab_size": 300, "shard_tokens": 500}), digest_files),
    Job(
        "prepare-given",
        lambda workplace, output: _prepare("text", {"tokenizer": workplace.tokenizer})(workplace, output),
        digest_files,
    ),
    Job(
        "prepare-workers",
        lambda workplace, output: _prepare("text", {"tokenizer": workplace.tokenizer, "num_workers": 2})(
            workplace, output
        ),
        digest_files,
    ),
)
TOKENIZERS = (Job("tokenizer", _tokenizer, digest_files),)
CONVERSIONS = tuple(
    Job(f"convert-{form}", _convert(form), digest_files) for form in ("packed", "latent", "dequantized", "mlx", "gguf")
)
MERGES = (Job("merge", _merge, digest_files),)
JOBS = {
    job.name: job
    for job in (*TRAININGS, OTHER_TRAINING, *FINETUNINGS, *PREPARATIONS, *TOKENIZERS, *CONVERSIONS, *MERGES)
}


def make_workplace(path: Path, jobs: tuple[str, ...] = tuple(JOBS)) -> Workplace:
    """Write the inputs, and run every job once without a fault."""
    workplace = Workplace(path)
    _write_text(workplace.text, "f", 60)
    _write_text(workplace.other_text, "r", 60)
    _must(*_tokenizer(workplace, workplace.tokenizer))
    _must(*_prepare("text", {"tokenizer": workplace.tokenizer})(workplace, workplace.data))
    _must(*_prepare("other-text", {"vocab_size": 300})(workplace, workplace.other_data))
    for name in jobs:
        _make_reference(workplace, JOBS[name])
        if name == "train-ternary":
            run_directory = workplace.finished(name)
            shutil.copytree(run_directory / "artifact", path / "packed")
            if "convert-latent" in jobs:
                _must("scripts/convert.py", run_directory, path / "latent", "--to", "latent")
        if name == "finetune-lora":
            shutil.copytree(workplace.finished(name) / "adapters", path / "adapters")
    return workplace


def _write_text(folder: Path, word: str, count: int) -> None:
    folder.mkdir(parents=True)
    texts = [f"def {word}{number}(x):\n    return x + {number * 7}\n" * 4 for number in range(count)]
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(rows[::2]) + "\n", "utf-8")
    (folder / "b.jsonl").write_text("\n".join(rows[1::2]) + "\n", "utf-8")
    for number, text in enumerate(texts[:6]):
        (folder / f"{number}.txt").write_text(f"{number}\n{text}", "utf-8")


def _make_reference(workplace: Workplace, job: Job) -> None:
    folder = workplace.path / "finished" / job.name
    folder.mkdir(parents=True)
    output = folder / "output"
    if job.name == "convert-gguf":
        _make_wide(workplace)
    log = folder / "changes.txt"
    before = time.monotonic()
    _must(*Injection(root=str(output), log=str(log)).words(*job.words(workplace, output)))
    content = {
        "digest": job.digest(output),
        "names": sorted(names_left(output)),
        "changes": len(log.read_text().splitlines()),
        "seconds": time.monotonic() - before,
    }
    (folder / "reference.json").write_text(json.dumps(content))


def _make_wide(workplace: Workplace) -> None:
    """Write a packed model that is wide enough for a GGUF."""
    run_directory = workplace.path / "wide-run"
    more = {"model": json.dumps(GGUF_SHAPE), "num_train_steps": 1, "optimizer.warmup_steps": 0}
    _must(*_train("ternary-tiny", more)(workplace, run_directory))
    os.rename(run_directory / "artifact", workplace.path / "wide")


def names_left(output: Path) -> set[str]:
    """Return what lies at the top of an output, and beside it."""
    inside = {f"/{path.name}" for path in output.iterdir()} if output.is_dir() else set()
    return inside | {path.name for path in output.parent.iterdir()} - _OURS


def _must(*words: object) -> None:
    done = run(*words)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")

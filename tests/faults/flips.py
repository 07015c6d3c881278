"""One wrong bit in a file that a command reads: it is refused, or said, or of no influence; never silent."""

import contextlib
import io
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlm.commands.prepare import main as prepare_main
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.manifest import MANIFEST
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from tests.commands import run
from tests.faults.injected import Injection
from tests.faults.interrupted import choose_job, choose_moment, plain, run_with
from tests.faults.trial import Kind, Outcome
from tests.faults.workplace import FINETUNINGS, JOBS, PREPARATIONS, SAMPLE_ORDER, TRAININGS, Job, Workplace

# Errors that a command reports in one line; they have to name a file.
REFUSALS = (ValueError, OSError)
PER_TRIAL = 25
# What a run writes about itself and never reads back into its result.
LOGS = ("samples.txt", "loss.png", "run.lock")


@dataclass(frozen=True)
class Sealed:
    """A directory that is sealed, and how commands open it."""

    name: str
    copy: Callable[[Workplace, Path], Path]
    """Copy it into a folder; return the directory of which bits are flipped."""
    open: Callable[[Workplace, Path, Path], list[str]]
    """Open it (workplace, folder, directory) as a command does; return the lines that it said."""


@contextlib.contextmanager
def damaged(path: Path, rng: np.random.Generator) -> Iterator[str]:
    """Flip one random bit of a file, or now and then cut or remove it; mend it afterwards. Yields what was done."""
    whole = path.read_bytes()
    at, bit, kind = int(rng.integers(len(whole))), int(rng.integers(8)), rng.integers(20)
    if kind == 0 and path.name != MANIFEST:  # without which a directory is that of another program
        path.unlink()
        what = f"{path.name} removed"
    elif kind == 1:
        path.write_bytes(whole[:at])
        what = f"{path.name} cut to {at} bytes"
    else:
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        what = f"bit {bit} of byte {at} of {path.name}"
    try:
        yield what
    finally:
        if path.parent.exists():
            path.write_bytes(whole)


def flip_sealed(sealed: Sealed, workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Open a sealed directory again and again, each time with another wrong bit."""
    outcome = Outcome()
    directory = sealed.copy(workplace, folder)
    sealed.open(workplace, folder, directory)  # whole, it opens
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    for _ in range(PER_TRIAL):
        path = files[int(rng.integers(len(files)))]
        with damaged(path, rng) as place:
            outcome.tried += 1
            try:
                said = sealed.open(workplace, folder, directory)
            except REFUSALS as error:
                if str(directory) not in str(error) and directory.name not in str(error):
                    outcome.fail("untidy", f"{sealed.name}: {place}: names no file: {error}")
            except Exception as error:
                outcome.fail("crashed", f"{sealed.name}: {place}: {type(error).__name__}: {error}")
            else:
                if not any(path.name in line or "damaged" in line for line in said):
                    outcome.fail("silent", f"{sealed.name}: {place}: was opened without a word")
        if not directory.exists():
            return outcome
    return outcome


def _copied(name: str, source: Callable[[Workplace], Path]) -> Callable[[Workplace, Path], Path]:
    return lambda workplace, folder: Path(shutil.copytree(source(workplace), folder / name))


def _open_tokenizer(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    load_tokenizer(directory)
    return []


def _open_for_preparation(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    """Prepare data with the tokenizer, as the command does; it prints, and so much may be damaged that it trains."""
    output = folder / "prepared"
    try:
        config = PrepareConfig(
            input=[str(workplace.text)],
            output_dir=str(output),
            tokenizer=str(directory),
            val_fraction=0.2,
            num_workers=1,
        )
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            prepare_main(config)
        return [line for line in printed.getvalue().splitlines() if "damaged" in line]
    finally:
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(folder / "prepared.partial", ignore_errors=True)


def _open_in_jax(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    from jaxlm.load import open_weights

    said: list[str] = []
    open_weights(directory, log=said.append)
    return said


def _open_in_mlx(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    from mlxlm.load import load_model

    load_model(directory)
    return []


def _open_adapters(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    from mlxlm.load import load_model

    load_model(workplace.path / "packed", adapter_path=directory)
    return []


def _open_shards(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    from shared_tokenizer.data.data_sets import DataSets

    DataSets.open([directory], 16, verify=True)
    return []


def _copy_run(job: str) -> Callable[[Workplace, Path], Path]:
    """Copy a run that is finished; return its newest checkpoint."""

    def copy(workplace: Workplace, folder: Path) -> Path:
        source = workplace.finished(job)
        shutil.copytree(
            source, folder / "run", ignore=lambda path, names: [name for name in names if name == "artifact"]
        )
        newest = max(int(path.name) for path in (folder / "run" / "checkpoints").iterdir())
        return folder / "run" / "checkpoints" / str(newest)

    return copy


def _open_checkpoint(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    """Read the newest complete checkpoint of a run, as generating and converting do."""
    from jaxlm.checkpoints.checkpoint import newest_complete_step

    said: list[str] = []
    newest_complete_step(directory.parent, said.append)
    return said


def _open_for_resuming(workplace: Workplace, folder: Path, directory: Path) -> list[str]:
    """Set damaged checkpoints aside, as both trainers do; and put the copy back."""
    from jaxlm.common.run.complete_checkpoints import quarantine_damaged

    said: list[str] = []
    quarantine_damaged(directory.parent, said.append)
    aside = directory.parent.parent / "damaged"
    if aside.exists():
        (aside / directory.name).rename(directory)
        aside.rmdir()
    return said


SEALED = (
    Sealed("tokenizer", _copied("given-tokenizer", lambda place: place.tokenizer), _open_tokenizer),
    Sealed("tokenizer of prepare", _copied("given-tokenizer", lambda place: place.tokenizer), _open_for_preparation),
    Sealed("packed artifact in JAX", _copied("model", lambda place: place.path / "packed"), _open_in_jax),
    Sealed("packed artifact in MLX", _copied("model", lambda place: place.path / "packed"), _open_in_mlx),
    Sealed("latent artifact in JAX", _copied("model", lambda place: place.path / "latent"), _open_in_jax),
    Sealed("MLX directory", _copied("model", lambda place: place.finished("convert-mlx")), _open_in_mlx),
    Sealed("dequantized", _copied("model", lambda place: place.finished("convert-dequantized")), _open_in_jax),
    Sealed("adapters", _copied("given-adapters", lambda place: place.path / "adapters"), _open_adapters),
    Sealed("shards", _copied("shards", lambda place: place.data), _open_shards),
    Sealed("checkpoint", _copy_run("train-ternary"), _open_checkpoint),
    Sealed("checkpoint to resume", _copy_run("train-dense"), _open_for_resuming),
    Sealed("checkpoint of fine-tuning", _copy_run("finetune-lora"), _open_for_resuming),
)


def flip_run(jobs: Sequence[Job], workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Flip a bit anywhere in a run directory, and go on with the printed command: refused, said, or the same result."""
    outcome, job = Outcome(), choose_job(jobs, workplace, rng)
    output = folder / "output"
    shutil.copytree(workplace.finished(job.name), output)
    if rng.integers(2):  # a run that has something left to do
        shutil.rmtree(output / "artifact", ignore_errors=True)
        shutil.rmtree(output / "adapters", ignore_errors=True)
    # The file by chance, then its bit: the small ones say most.
    tops = sorted(path for path in output.iterdir() if path.name != "run.lock")
    chosen = tops[int(rng.integers(len(tops)))]
    files = [chosen] if chosen.is_file() else sorted(path for path in chosen.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    if not path.stat().st_size:
        return outcome
    assert job.resume is not None
    with damaged(path, rng) as place:
        outcome.tried += 1
        what = f"{job.name}, {path.relative_to(output)}, {place}"
        done = run(*_moved(job.resume(output), output, workplace.finished(job.name)))
        end = " ".join((done.stdout[-300:] + " | " + done.stderr[-600:]).split())
        if "Traceback" in done.stderr or done.returncode not in (0, 2):
            outcome.fail("crashed", f"{what}: status {done.returncode}: {end}")
        elif done.returncode == 0:
            found, expected = job.digest(output), workplace.reference(job.name).digest
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            ours = [name for name in differing if not (path.name in LOGS and "sample" in name)]
            ours = [name for name in ours if name != SAMPLE_ORDER]
            if path.name == "metrics.jsonl":  # a log: numbers that were logged before may be wrong, the result not
                ours = [name for name in ours if not name.startswith("metrics")]
            if ours and "damaged" not in done.stdout:
                outcome.fail("silent", f"{what}: differs in {', '.join(ours[:4])}: {end}")
    return outcome


def damage_begun(jobs: Sequence[Job], workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Kill a command, damage any file that it left, and start it again: refused, said, or the undisturbed result."""
    outcome, job, output = Outcome(), choose_job(jobs, workplace, rng), folder / "output"
    at = choose_moment(rng, workplace.reference(job.name).changes)
    injection = Injection(root=str(output), log=str(folder / "changes.txt"), fault="kill", at=at)
    if run_with(injection, job.words(workplace, output)).code != -signal.SIGKILL:
        return outcome
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    files = [path for path in files if path.name not in LOGS and path.name != "metrics.jsonl"]
    if not files:
        return outcome
    path = files[int(rng.integers(len(files)))]
    with damaged(path, rng) as place:
        outcome.tried += 1
        what = f"{job.name}, killed before change {at}, {path.relative_to(folder)}, {place}"
        ended = run_with(plain(folder, output), job.again(workplace, output))
        if "Traceback" in ended.stderr or ended.code not in (0, 2):
            outcome.fail("crashed", f"{what}: {ended.show()}")
        elif ended.code == 2 and str(folder) not in ended.stderr:
            outcome.fail("untidy", f"{what}: names no file: {ended.show()}")
        elif ended.code == 0 and "damaged" not in ended.stdout:
            found, expected = job.digest(output), workplace.reference(job.name).digest
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if differing and differing != [SAMPLE_ORDER]:
                outcome.fail("silent", f"{what}: differs in {', '.join(differing[:4])}: {ended.show()}")
    return outcome


def _moved(words: list[str], output: Path, origin: Path) -> list[str]:
    """Return the command that resumes a run at its new place."""
    return [*words, "--output_dir", str(output)]


def _trial(sealed: Sealed):
    return lambda workplace, folder, rng: flip_sealed(sealed, workplace, folder, rng)


KINDS = [
    *(Kind(f"flip {sealed.name}", _trial(sealed), 0.25) for sealed in SEALED),
    Kind(
        "flip run directory of training",
        lambda *place: flip_run((JOBS["train-dense"], JOBS["train-ternary"]), *place),
        2.0,
    ),
    Kind(
        "flip run directory of fine-tuning",
        lambda *place: flip_run((JOBS["finetune-lora"], JOBS["finetune-qat"]), *place),
        1.0,
    ),
    Kind("flip in a begun preparation", lambda *place: damage_begun(PREPARATIONS, *place), 0.5),
    Kind("flip in a begun fine-tuning", lambda *place: damage_begun(FINETUNINGS, *place), 0.7),
    Kind("flip in a begun training", lambda *place: damage_begun(TRAININGS, *place), 1.0),
]

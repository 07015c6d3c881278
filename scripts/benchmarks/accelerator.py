"""All that has to be measured on a GPU or TPU, in one go: each part in a process of its own, with a limit of time."""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from jaxlm.common.command_line import make_console
from shared_tokenizer.settings import check_bounds, setting

_SCRIPTS = Path(__file__).parents[1]
_SHARE_S = 60  # A part with less time left than this is not begun.


@dataclass(frozen=True)
class Part:
    """One command, and the most seconds that it may take."""

    name: str
    arguments: tuple[str, ...]
    """A script of `scripts/` and its arguments."""
    limit_s: int


@dataclass(frozen=True, kw_only=True)
class AcceleratorBenchmark:
    """Settings of the measurement."""

    output_dir: str
    """Directory for the output of each part, `NAME.txt`."""
    minutes: float = setting(25, more_than=0)
    """Time for all parts; those that it does not reach are named."""
    only: list[str] = field(default_factory=list)
    """Names of parts to run; by default all."""

    def __post_init__(self) -> None:
        check_bounds(self)


def benchmark(settings: AcceleratorBenchmark) -> None:
    """Run each part, on a CPU in small, write its output to a file, and print what ended how."""
    platform = _platform()
    parts = {part.name: part for part in (_parts_in_small() if platform == "cpu" else _parts())}
    if unknown := set(settings.only) - set(parts):
        raise ValueError(f"only: found {', '.join(sorted(unknown))}, expected some of {', '.join(parts)}")
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * settings.minutes
    table = Table(title=f"on {platform}{', in small' if platform == 'cpu' else ''}; outputs are in {folder}")
    for heading in ("part", "seconds", "end"):
        table.add_column(heading)
    console = make_console()
    for name in settings.only or parts:
        console.print(f"{name} ...")
        start = time.monotonic()
        end = _run(parts[name], folder / f"{name}.txt", deadline - start)
        table.add_row(name, f"{time.monotonic() - start:.0f}", end)
    console.print(table)


def _platform() -> str:
    """Return the platform of jax's devices, as another process sees them: this one would keep them from the parts."""
    program = "import jax; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"jax finds no device: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.split()[-1]


def _parts() -> list[Part]:
    """Return the parts, what is most wanted first."""
    return [
        Part("doctor", ("doctor.py",), 180),
        Part("train-25m", _train("ternary-25m", 32, 1024, ["bitnet-compiled", "fake-bf16-compiled"]), 420),
        Part("train-700m", _train("bitnet-700m", 8, 2048, []), 420),
        Part("products", _benchmark("products", shapes=["512x512", "1536x512", "1536x1536", "4096x1536"]), 240),
        Part("profile-25m", _profile("ternary-25m", 32, 1024), 180),
        Part("profile-700m", _profile("bitnet-700m", 8, 2048), 240),
        Part("train-trilm-99m", _train("trilm-99m", 16, 2048, ["fake-bf16-compiled"]), 420),
        Part("mixers", _benchmark("mixers"), 300),
    ]


def _parts_in_small() -> list[Part]:
    """Return the same kinds of parts in a size that shows on a CPU that each works."""
    return [
        Part("doctor", ("doctor.py",), 180),
        Part("train-tiny", (*_train("ternary-tiny", 2, 64, []), "--turns", "2"), 240),
        Part("products", (*_benchmark("products", shapes=["256x256"]), "--turns", "2"), 120),
        Part("profile-tiny", _profile("ternary-tiny", 2, 64), 180),
    ]


def _train(preset: str, batch_size: int, seq_len: int, peers: list[str]) -> tuple[str, ...]:
    return (
        *_benchmark("train", presets=[preset], peers=peers),
        *("--batch_size", str(batch_size), "--seq_len", str(seq_len), "--dtype", "bfloat16"),
    )


def _profile(preset: str, batch_size: int, seq_len: int) -> tuple[str, ...]:
    return (
        *_benchmark("profile", presets=[preset]),
        *("--batch_size", str(batch_size), "--seq_len", str(seq_len), "--dtype", "bfloat16"),
    )


def _benchmark(name: str, **lists: list[str]) -> tuple[str, ...]:
    words = [word for key, items in lists.items() for word in (f"--{key}", f"[{','.join(items)}]")]
    return ("benchmark.py", name, *words)


def _run(part: Part, output: Path, left_s: float) -> str:
    """Run a part and return how it ended, in words."""
    if left_s < _SHARE_S:
        return "not begun: no time left"
    limit = min(part.limit_s, left_s)
    script, *arguments = part.arguments
    with output.open("w") as file:
        try:
            done = subprocess.run(
                [sys.executable, str(_SCRIPTS / script), *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
    return "done" if done.returncode == 0 else f"failed with code {done.returncode}: see {output}"

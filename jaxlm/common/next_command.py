"""The command to type next, in the form in which this one was started."""

import os
import shlex
import shutil
import sys
from pathlib import Path

# Command -> its script in a checkout.
SCRIPTS = {
    "train": "train_jax.py",
    "train-rl": "train_rl.py",
    "prepare": "prepare_data.py",
    "tokenizer": "train_tokenizer.py",
    "generate": "generate_jax.py",
    "evaluate": "evaluate.py",
    "convert": "convert.py",
    "new-model": "new_model.py",
    "doctor": "doctor.py",
    "report": "report.py",
}
_MLX = "mlx-"


def next_command(name: str, *words: str) -> str:
    """Return a shell line that runs a command of jaxlm, or of mlxlm where the name begins with `mlx-`.

    It runs in the interpreter of this process: as `jaxlm NAME` where that is how this process was started, by the
    script of a checkout where one was, else as `python -m`.
    """
    started = Path(sys.argv[0])
    if name.startswith(_MLX):
        name = name.removeprefix(_MLX)
        by_console = started.name in ("jaxlm", "mlxlm")
        start = [str(started.with_name("mlxlm")), name] if by_console else [_python(), "-m", f"mlxlm.{name}"]
    elif started.name in ("jaxlm", "mlxlm"):
        start = [str(started.with_name("jaxlm")), name]
    elif name in SCRIPTS and (script := started.with_name(SCRIPTS[name])).is_file():
        start = [_python(), str(script)]
    else:
        start = [_python(), "-m", "jaxlm", name]
    if os.sep in start[0] and shutil.which(Path(start[0]).name) == os.path.abspath(start[0]):
        start[0] = Path(start[0]).name
    return shlex.join([*start, *words])


def _python() -> str:
    """Return the interpreter of this process, by a relative path where that is shorter."""
    relative = os.path.relpath(sys.executable)
    return relative if len(relative) < len(sys.executable) and not relative.startswith("..") else sys.executable

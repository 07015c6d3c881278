"""Commands as users start them, each in a process of its own, without the seconds of CPU that its imports take.

The processes are forked from a server that has imported what the commands import and has done nothing else.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxlm.common.command_line import quiet_libraries

ROOT = Path(__file__).parent.parent
quiet_libraries()  # before the server starts
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["jsonargparse", "jaxlm.training.trainer", "jaxlm.conversion.convert", "shared_tokenizer.preparation.prepare"]
)


def run(*words: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` does, where the first word is the path of a script, or -m and the second a module's name."""
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _FORKS.Process(target=_become, args=(arguments, outputs, dict(os.environ)))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout_s)
        texts = [output.read_text("utf-8") for output in outputs]
        return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _become(arguments: list[str], outputs: list[Path], environment: dict[str, str]) -> None:
    for descriptor, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    os.chdir(ROOT)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    script = ROOT / arguments[0]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")

"""The process of a job: runs its commands one after another and writes down how each ended.

It has a session of its own and outlives the studio: `python -m jaxlm.studio.processes.job_process FOLDER [--tied]`.
Standard output and error are the log of the job. `--tied` ends the commands when standard input is closed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

JOB, PROGRESS, ENDED, STOP = "job.json", "progress.json", "ended.json", "stop"
_PATIENCE_SECONDS = 10.0


def run_job(folder: Path, *, tied: bool = False) -> int:
    """Run the commands of a job until one fails or a stop is asked for; return the last exit status.

    The descriptors of `JAXLM_JOB_LOCK` are passed on: the lock is held as long as any process of the job lives.
    """
    job = json.loads((folder / JOB).read_text("utf-8"))
    lock = int(os.environ.pop("JAXLM_JOB_LOCK", "-1"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the command answers; this process reports
    codes: list[int] = []
    for index, argv in enumerate(job["commands"]):
        if (folder / STOP).exists():
            break
        print(f"$ {job['shown'][index]}", flush=True)
        process = subprocess.Popen(
            argv, cwd=job["cwd"], stdin=subprocess.DEVNULL, pass_fds=() if lock < 0 else (lock,), env=os.environ
        )
        write_json(folder / PROGRESS, {"index": index, "pid": process.pid})
        if (folder / STOP).exists():  # it came before the number of the process was written
            process.terminate()
        if tied:
            threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
        codes.append(_wait(process))
        if codes[-1]:
            break
    write_json(folder / ENDED, {"codes": codes})
    return codes[-1] if codes else 0


def write_json(path: Path, content: Any) -> None:
    """Write a small file of JSON in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content), "utf-8")
    os.replace(temporary, path)


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        with contextlib.suppress(InterruptedError):
            return process.wait()


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1]), tied="--tied" in sys.argv))

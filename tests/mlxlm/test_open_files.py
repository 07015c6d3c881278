import subprocess
import sys
from pathlib import Path


def test_few_open_files_are_named_and_do_not_end_the_program():
    code = "import mlxlm, mlx_lm.utils, resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[1])"
    command = f"ulimit -n 1000 && exec {sys.executable} -c '{code}'"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("open files: ")]
    found = "open files: found a limit of 1000, expected 4096 (ulimit -Hn), which mlx-lm sets; going on with it"
    assert lines == [found]

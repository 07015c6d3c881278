import subprocess
import sys

import pytest

from jaxlm.common.command_source import read_command

# Slow to import. The tables of rich, pyarrow and tokenizers are not here: they take a third of a second together.
SLOW = (
    *("jax", "flax", "optax", "orbax", "grain", "mlx", "mlx_lm", "torch", "transformers"),
    *("matplotlib", "datasets", "starlette"),
)
# Asks every command of a package for its help, and makes a mistake in a flag; prints the slow modules that each loads.
PROGRAM = """
import contextlib, io, sys
from {package}.__main__ import COMMANDS, main
for name in COMMANDS:
    for word, expected in (("--help", 0), ("--no_such_flag=1", 2)):
        before = set(sys.modules)
        sys.argv = ["{package}", *name.split(), word]
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            try:
                main()
            except SystemExit as ended:
                assert ended.code == expected, shown.getvalue()
        assert shown.getvalue().startswith(("usage: {package} " + name, "error: ")[expected > 0]), shown.getvalue()
        print(name, word, *(module for module in {slow} if module in sys.modules and module not in before))
"""


@pytest.mark.parametrize("package", ["jaxlm", "mlxlm"])
def test_help_and_mistakes_import_nothing_slow(package):
    program = PROGRAM.format(package=package, slow=SLOW)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines and [line for line in lines if not line.endswith(("--help", "--no_such_flag=1"))] == []


def test_a_command_is_read_without_its_imports(tmp_path, monkeypatch):
    (tmp_path / "read_settings.py").write_text("class Settings: ...\n")
    (tmp_path / "read_work.py").write_text(
        "import no_such_library\nfrom read_settings import Settings as Wanted\n\n"
        "def main(config: Wanted) -> None:\n    '''Do the work.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings_class, text = read_command("read_work:main")
    assert (settings_class.__name__, settings_class.__module__, text) == ("Settings", "read_settings", "Do the work.")


def test_a_command_of_no_module_is_named():
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        read_command("jaxlm.commands.nothing:main")

"""Who may import whom: the rooms of the house are in order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("shared_tokenizer", "jaxlm", "mlxlm", "scripts")
MAY_IMPORT = {
    "shared_tokenizer": ("shared_tokenizer",),
    "jaxlm/common": ("jaxlm.common", "shared_tokenizer"),
    "jaxlm": ("jaxlm", "shared_tokenizer"),
    "mlxlm": ("mlxlm", "jaxlm.common", "shared_tokenizer"),
    "scripts": ("jaxlm", "mlxlm", "shared_tokenizer"),
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room):
    files = [path for path in (ROOT / room).rglob("*.py") if room != "jaxlm" or "common" not in path.parts]
    assert files
    for path in files:
        for name in imports(path):
            if name.split(".")[0] in OURS:
                allowed = any(name == room_ok or name.startswith(room_ok + ".") for room_ok in MAY_IMPORT[room])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def run_with_blocked(blocked: tuple[str, ...], modules: list[str]) -> None:
    program = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"  # None makes an import of it fail
        "import importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def modules_of(room: str) -> list[str]:
    return [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in sorted((ROOT / room).rglob("*.py"))
    ]


def test_spec_and_tokenizer_need_neither_jax_nor_mlx():
    run_with_blocked(("jax", "flax", "mlx", "mlx_lm"), modules_of("jaxlm/common") + modules_of("shared_tokenizer"))


def test_mlx_needs_no_jax():
    run_with_blocked(("jax", "flax", "optax", "orbax"), modules_of("mlxlm"))


def test_jax_needs_no_mlx():
    run_with_blocked(("mlx", "mlx_lm", "transformers"), modules_of("jaxlm"))

"""The rooms of the code and who may import whom, in one table. `docs/code-map.md` draws its picture from it."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jaxlm.common.tracker_names import TRACKERS

ROOT = Path(__file__).parent.parent
PACKAGES = ("shared_tokenizer", "jaxlm", "mlxlm", "scripts")
MOST_FILES = 15
# A script that only starts a command has so many lines, and is nothing to read.
STUB_LINES = 12

# Room -> rooms that it may import, from the lowest room up. A room is a folder, or one file where that is named; it may
# import itself. A name that ends with ".*" stands for all rooms of that package.
ROOMS: dict[str, tuple[str, ...]] = {
    "shared_tokenizer.manifest": (),
    "shared_tokenizer.settings": (),
    "shared_tokenizer.picture": ("shared_tokenizer.manifest",),
    "shared_tokenizer.tokenizers": (),
    "shared_tokenizer.sandbox": (),
    "shared_tokenizer.chat": ("shared_tokenizer.tokenizers", "shared_tokenizer.sandbox"),
    "shared_tokenizer.tools": (
        "shared_tokenizer.tokenizers",
        "shared_tokenizer.sandbox",
        "shared_tokenizer.chat",
    ),
    "shared_tokenizer.gguf": ("shared_tokenizer.tokenizers", "shared_tokenizer.chat"),
    "shared_tokenizer": (
        "shared_tokenizer.manifest",
        "shared_tokenizer.tokenizers",
        "shared_tokenizer.chat",
        "shared_tokenizer.gguf",
    ),
    "shared_tokenizer.readers": (),
    "shared_tokenizer.sources": ("shared_tokenizer.chat", "shared_tokenizer.readers"),
    "shared_tokenizer.data": (
        "shared_tokenizer.manifest",
        "shared_tokenizer.settings",
        "shared_tokenizer.tokenizers",
        "shared_tokenizer.chat",
        "shared_tokenizer.sources",
        "shared_tokenizer",
    ),
    "shared_tokenizer.preparation": (
        "shared_tokenizer.manifest",
        "shared_tokenizer.settings",
        "shared_tokenizer.tokenizers",
        "shared_tokenizer.chat",
        "shared_tokenizer.readers",
        "shared_tokenizer.sources",
        "shared_tokenizer.data",
        "shared_tokenizer",
    ),
    "jaxlm.common": ("shared_tokenizer.settings",),
    "jaxlm.common.architecture": ("jaxlm.common",),
    "jaxlm.common.rewards": ("shared_tokenizer.*", "jaxlm.common"),
    "jaxlm.common.generation": ("shared_tokenizer.*", "jaxlm.common", "jaxlm.common.rewards"),
    "jaxlm.common.evaluation": ("shared_tokenizer.*", "jaxlm.common", "jaxlm.common.generation"),
    "jaxlm.common.artifact": ("shared_tokenizer.*", "jaxlm.common", "jaxlm.common.architecture"),
    "jaxlm.common.recognition": ("jaxlm.common.architecture",),
    "jaxlm.common.gguf": (
        "shared_tokenizer.*",
        "jaxlm.common.architecture",
        "jaxlm.common.artifact",
        "jaxlm.common.recognition",
    ),
    "jaxlm.common.formats": (
        "shared_tokenizer.*",
        "jaxlm.common",
        "jaxlm.common.architecture",
        "jaxlm.common.artifact",
        "jaxlm.common.recognition",
        "jaxlm.common.gguf",
    ),
    "jaxlm.common.objectives": (
        "shared_tokenizer.*",
        "jaxlm.common.architecture",
        "jaxlm.common.artifact",
        "jaxlm.common.formats",
    ),
    "jaxlm.common.run": (
        "shared_tokenizer.*",
        "jaxlm.common",
        "jaxlm.common.architecture",
        "jaxlm.common.objectives",
    ),
    "jaxlm.common.plots": ("shared_tokenizer.*", "jaxlm.common", "jaxlm.common.run"),
    "jaxlm.common.trackers": ("shared_tokenizer.*", "jaxlm.common", "jaxlm.common.run"),
    "jaxlm.common.shelf": (
        "shared_tokenizer.*",
        "jaxlm.common",
        "jaxlm.common.architecture",
        "jaxlm.common.artifact",
        "jaxlm.common.formats",
        "jaxlm.common.run",
    ),
    "jaxlm.common.known_answers": ("jaxlm.common.architecture", "jaxlm.common.run"),
    "jaxlm.common.grammar": ("shared_tokenizer.sandbox", "shared_tokenizer.tokenizers"),
    "jaxlm.common.openai_api": ("shared_tokenizer.*", "jaxlm.common", "jaxlm.common.grammar"),
    "jaxlm.common.serving": ("shared_tokenizer.*", "jaxlm.common", "jaxlm.common.openai_api"),
    "jaxlm.parallel": ("jaxlm.common.*",),
    "jaxlm.ops.machine": (),
    "jaxlm.ops.native": ("jaxlm.ops.machine",),
    "jaxlm.ops": ("jaxlm.common.*", "jaxlm.parallel", "jaxlm.ops.native", "jaxlm.ops.machine"),
    "jaxlm.model": ("shared_tokenizer.*", "jaxlm.common.*", "jaxlm.parallel", "jaxlm.ops"),
    "jaxlm.checkpoints": ("shared_tokenizer.*", "jaxlm.common.*", "jaxlm.parallel", "jaxlm.ops", "jaxlm.model"),
    "jaxlm": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.parallel",
        "jaxlm.ops",
        "jaxlm.model",
        "jaxlm.checkpoints",
    ),
    "jaxlm.training.objectives": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.parallel",
        "jaxlm.ops",
        "jaxlm.model",
        "jaxlm.checkpoints",
    ),
    "jaxlm.training": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.parallel",
        "jaxlm.ops",
        "jaxlm.ops.machine",
        "jaxlm.model",
        "jaxlm.checkpoints",
        "jaxlm",
        "jaxlm.training.objectives",
    ),
    "jaxlm.rl": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.parallel",
        "jaxlm.ops",
        "jaxlm.ops.machine",
        "jaxlm.model",
        "jaxlm.checkpoints",
        "jaxlm",
        "jaxlm.training.objectives",
        "jaxlm.training",
    ),
    "jaxlm.planning": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.parallel",
        "jaxlm.model",
        "jaxlm.training.objectives",
        "jaxlm.training",
    ),
    "jaxlm.conversion": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.ops",
        "jaxlm.model",
        "jaxlm.checkpoints",
        "jaxlm",
    ),
    "jaxlm.server": ("shared_tokenizer.*", "jaxlm.common.*", "jaxlm.ops", "jaxlm.ops.machine", "jaxlm.model", "jaxlm"),
    "mlxlm.model": ("jaxlm.common.*",),
    "mlxlm.adapters": ("shared_tokenizer.*", "jaxlm.common.*", "mlxlm.model"),
    "mlxlm": ("shared_tokenizer.*", "jaxlm.common.*", "mlxlm.model", "mlxlm.adapters"),
    "mlxlm.finetune.objectives": ("shared_tokenizer.*", "jaxlm.common.*", "mlxlm.model", "mlxlm.adapters", "mlxlm"),
    "mlxlm.finetune": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "mlxlm.model",
        "mlxlm.adapters",
        "mlxlm",
        "mlxlm.finetune.objectives",
    ),
    "mlxlm.chat": ("shared_tokenizer.*", "jaxlm.common.*", "mlxlm.model", "mlxlm"),
    "mlxlm.server": ("shared_tokenizer.*", "jaxlm.common.*", "mlxlm.model", "mlxlm"),
    "jaxlm.commands": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.ops",
        "jaxlm.ops.machine",
        "jaxlm.model",
        "jaxlm.training",
        "jaxlm.planning",
        "jaxlm.conversion",
        "jaxlm.parallel",
        "jaxlm",
        "mlxlm.model",
        "mlxlm",
    ),
    "jaxlm.study": (
        "shared_tokenizer.*",
        "jaxlm.common.*",
        "jaxlm.ops.machine",
        "jaxlm.training",
        "jaxlm.commands",
    ),
    "jaxlm.studio.reading": (
        "shared_tokenizer.*",
        "jaxlm.common.architecture",
        "jaxlm.common.run",
    ),
    "jaxlm.studio.processes": (
        "shared_tokenizer.*",
        "jaxlm.common",
        "jaxlm.common.run",
        "jaxlm.common.serving",
        "jaxlm.studio.reading",
    ),
    "jaxlm.studio": (
        "shared_tokenizer.*",
        "jaxlm.common",
        "jaxlm.common.artifact",
        "jaxlm.common.serving",
        "jaxlm.common.shelf",
        "jaxlm.studio.reading",
        "jaxlm.studio.processes",
    ),
    "jaxlm.studio.parts": (
        "shared_tokenizer.*",
        "jaxlm.common",
        "jaxlm.studio.reading",
        "jaxlm.studio.processes",
        "jaxlm.studio",
    ),
    "jaxlm.studio.pages": (
        "shared_tokenizer.*",
        "jaxlm.common",
        "jaxlm.common.serving",
        "jaxlm.common.shelf",
        "jaxlm.studio.reading",
        "jaxlm.studio.processes",
        "jaxlm.studio",
        "jaxlm.studio.parts",
    ),
    "scripts": ("shared_tokenizer.*", "jaxlm.*", "mlxlm.*"),
    "scripts.benchmarks.measuring": ("shared_tokenizer.*", "jaxlm.*", "mlxlm.*"),
    "scripts.benchmarks.server": ("shared_tokenizer.*", "jaxlm.*", "mlxlm.*"),
    "scripts.benchmarks": ("shared_tokenizer.*", "jaxlm.*", "mlxlm.*"),
}


def module_name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


MODULES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}


def room_of(module: str) -> str:
    """Return the room of a module: a file that is a room, or its folder."""
    return module if module in ROOMS else module.rpartition(".")[0]


def rooms_used(room: str) -> set[str]:
    """Return the rooms that a room may import, with groups written out."""
    found: set[str] = set()
    for name in ROOMS[room]:
        package = name.removesuffix(".*")
        found |= {other for other in ROOMS if f"{other}.".startswith(f"{package}.")} if name.endswith(".*") else {name}
    return found


def imported_modules(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES}


def test_every_file_is_in_a_room():
    lost = sorted(module for module in MODULES if room_of(module) not in ROOMS)
    assert not lost, f"in no room of the table: {', '.join(lost)}"
    assert {room_of(module) for module in MODULES} == set(ROOMS), "a room of the table holds no file"


def test_no_room_has_too_many_files():
    counted = [module for module, path in MODULES.items() if len(path.read_text("utf-8").splitlines()) > STUB_LINES]
    too_full = {room: count for room, count in Counter(map(room_of, counted)).items() if count > MOST_FILES}
    assert not too_full, f"split these, at most {MOST_FILES} files are a room: {too_full}"


def test_the_table_has_no_cycle_and_no_arrow_up():
    order = list(ROOMS)
    graphlib.TopologicalSorter({room: rooms_used(room) for room in ROOMS}).prepare()
    for room in ROOMS:
        for used in rooms_used(room):
            assert order.index(used) < order.index(room), f"{room} may use {used}, which stands above it in the table"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    allowed = rooms_used(room) | {room}
    for module, path in MODULES.items():
        if room_of(module) == room:
            for name in sorted(imported_modules(path)):
                assert room_of(name) in allowed, f"{module} imports {name}: {room} may not use {room_of(name)}"


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_allows_nothing_that_is_not_used(room):
    used = {
        room_of(name) for module, path in MODULES.items() if room_of(module) == room for name in imported_modules(path)
    }
    idle = [name for name in ROOMS[room] if not name.endswith(".*") and name not in used]
    assert not idle, f"{room} does not import {', '.join(idle)}: take it out of the table"


# Each needs a package that no extra but its own installs, and is imported where it is chosen.
CHOSEN = tuple(f"jaxlm.common.trackers.{name}_tracker" for name in TRACKERS)
# Rooms whose library is an extra that `make test` does without.
EXTRAS = {"jaxlm.studio.parts": "nicegui", "jaxlm.studio.pages": "nicegui"}


def error_with_blocked(blocked: tuple[str, ...], packages: tuple[str, ...]) -> str:
    modules = [
        name
        for name in MODULES
        if any(f"{name}.".startswith(f"{package}.") for package in packages)
        and not name.endswith("__main__")
        and name not in CHOSEN
        and (room_of(name) not in EXTRAS or importlib.util.find_spec(EXTRAS[room_of(name)]))
    ]
    assert modules
    program = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"  # None makes an import of it fail
        "import importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    return (done.stderr or f"ended with code {done.returncode}") if done.returncode else ""


def test_common_and_tokenizer_need_neither_jax_nor_mlx():
    assert not error_with_blocked(("jax", "flax", "mlx", "mlx_lm", *TRACKERS), ("jaxlm.common", "shared_tokenizer"))


def test_mlx_needs_no_jax():
    assert not error_with_blocked(("jax", "flax", "optax", "orbax", *TRACKERS), ("mlxlm",))


def test_jax_needs_no_mlx():
    assert not error_with_blocked(("mlx", "mlx_lm", "transformers", *TRACKERS), ("jaxlm",))

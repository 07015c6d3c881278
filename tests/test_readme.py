"""The README tells the truth of today: its tree, its commands, its flags."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
ROOMS = ("shared_tokenizer", "jaxlm", "mlxlm", "scripts")


def listed_files() -> set[str]:
    """Paths in the README's tree."""
    tree = README.split("## The code")[1].split("```")[1]
    found, folder = set(), ""
    for line in tree.strip().splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        else:
            found.add(folder + name)
    return found


def test_the_tree_lists_every_file():
    there = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".yaml") and path.name != "__init__.py"
    }
    assert listed_files() == there


def commands() -> dict[str, set[str]]:
    """Every script or module that the README calls, with the flags it is given."""
    found: dict[str, set[str]] = {}
    for line in re.sub(r"\\\n", " ", README).splitlines():
        for program, rest in re.findall(r"(scripts/\w+\.py|-m mlxlm\.\w+)([^|`]*)", line):
            found.setdefault(program, set()).update(re.findall(r"--([\w.]+)", rest))
    return found


@pytest.mark.parametrize("program", sorted(commands()))
def test_the_flags_of_every_command_exist(program):
    words = program.split() + (["quality"] if "benchmark" in program else [])
    command = [sys.executable, *words, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for flag in commands()[program]:
        top = flag.split(".")[0]
        assert f"--{flag}" in shown or f"--{top}" in shown, f"{program} has no --{flag}"


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

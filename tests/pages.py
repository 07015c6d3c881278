"""The pages of the project as tests read them: commands in shell blocks, flags in prose, links and their anchors."""

import ast
import dataclasses
import functools
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from jaxlm.__main__ import COMMANDS as JAX_COMMANDS
from jaxlm.__main__ import POSITIONAL
from jaxlm.common.command_line import parse, settings_class_of
from mlxlm.__main__ import COMMANDS as MLX_COMMANDS
from shared_tokenizer.settings import metadata_of

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# Flags of other programs that pages name, and of all of our commands.
FOREIGN_FLAGS = {
    "adapter-path",
    "apply_chat_template",
    "backend",
    "check",
    "logdir",
    "trust-remote-code",
    "xla_force_host_platform_device_count",
}
COMMON_FLAGS = {"config", "debug", "help", "help_all"}
# A command of ours in prose or in a table; with the words after it, up to the end of the code.
_PROGRAM = re.compile(
    r"(?:\b(jaxlm|mlxlm) ([a-z][\w-]*)|(scripts/\w+\.py)(?: ([a-z]\w*))?|-m (mlxlm|jaxlm)\.(\w+))([^`|]*)"
)


@dataclass(frozen=True)
class Command:
    """One command line of ours: the function that it calls, and the words that it hands over."""

    target: str
    """module:function."""
    words: tuple[str, ...]
    positional: bool = False

    def parse(self) -> Any:
        """Return the settings. Raises ValueError if the command would refuse its words."""
        return parse(settings_class_of(_function(self.target)), list(self.words), positional=self.positional)

    def run(self) -> None:
        """Run the command in this process."""
        _function(self.target)(self.parse())


def read_page(name: str) -> str:
    """Return the text of a page."""
    return (ROOT / name).read_text("utf-8")


def without_code(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def shell_lines(text: str) -> list[str]:
    """Return the lines of all shell blocks, continued ones joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def make_targets(text: str) -> list[str]:
    """Return the targets of every `make` in shell blocks and in code of the prose."""
    lines = [*shell_lines(text), *re.findall(r"`([^`\n]+)`", without_code(text))]
    return [found[1] for line in lines if (found := re.match(r"make ([\w-]+)", line))]


def read_command(line: str) -> Command | None:
    """Return the command of a shell line; None if it is of another program. Raises ValueError if ours is unknown."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if not words:
        return None
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "python" and rest[:1] == ["-m"]:
        program, rest = rest[1], rest[2:]
    elif program == "python":
        program, rest = rest[0], rest[1:]
    if program == "make":
        arguments = [word.removeprefix("ARGS=") for word in rest if word.startswith("ARGS=")]
        return _train(shlex.split(arguments[0])) if arguments and rest[0] == "train" else None
    if program.endswith(".sh"):
        if not (ROOT / program).is_file():
            raise ValueError(f"{program}: no such file")
        return _train(rest)
    if program in ("jaxlm", "mlxlm"):
        return _named(program, rest[0], rest[1:])
    if program.startswith(("jaxlm.", "mlxlm.")):
        package, _, name = program.partition(".")
        return _named(package, name, rest)
    if program.startswith("scripts/"):
        return _script(program, rest)
    if program in ("mlx_lm", "pip", "mlx.launch", "hf", "lm_eval", "curl"):
        return None
    raise ValueError(f"{line}: an unknown program")


def _train(words: list[str]) -> Command:
    return _named("jaxlm", "train", ["--data_dir", "data", "--output_dir", "run", *words])


def _named(package: str, name: str, words: list[str]) -> Command:
    commands = {"jaxlm": JAX_COMMANDS, "mlxlm": MLX_COMMANDS}[package]
    if words and f"{name} {words[0]}" in commands:
        name, words = f"{name} {words[0]}", words[1:]
    if name not in commands:
        raise ValueError(f"{package} {name}: no such command")
    return Command(commands[name][0], _existing_config(words), package == "jaxlm" and name in POSITIONAL)


def _script(path: str, words: list[str]) -> Command:
    if path == "scripts/benchmark.py":
        sys.path[:] = [str(ROOT / "scripts"), *(place for place in sys.path if place != str(ROOT / "scripts"))]
        modules = importlib.import_module("benchmark").BENCHMARKS
        (module,) = (module for module in modules if module.rpartition(".")[2] == words[0])
        return Command(f"benchmarks.{module}:benchmark", tuple(words[1:]))
    if path == "scripts/models.py":
        return _named("jaxlm", "models", words)
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run_command"
    ]
    targets = [(ast.literal_eval(call.args[0]), "positional" in {word.arg for word in call.keywords}) for call in calls]
    if len(targets) > 1:  # convert.py, whose first word may name another command
        by_name = {target.rpartition(":")[2]: (target, positional) for target, positional in targets}
        name = words[0] if words and words[0] in by_name else "main"
        target, positional = by_name[name]
        return Command(target, tuple(words[1:] if name != "main" else words), positional)
    (target, positional) = targets[0]
    return Command(target, _existing_config(words), positional)


def _existing_config(words: list[str]) -> tuple[str, ...]:
    """Name a config file of the checkout by its full path, and leave out one that a run would have written."""
    found = list(words)
    if "--config" in found:
        place = found.index("--config")
        path = ROOT / found[place + 1]
        # The config of a run holds what a run needs.
        found[place : place + 2] = ["--config", str(path)] if path.is_file() else ["--data_dir", "data"]
    return tuple(found)


def _function(target: str) -> Callable[[Any], Any]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def flags_of(target: str) -> frozenset[str]:
    """Return the flags of a command, nested ones with their dots, under all of their names."""
    parser, settings = jsonargparse.ArgumentParser(), settings_class_of(_function(target))
    parser.add_class_arguments(settings)
    others = {metadata_of(field).also for field in dataclasses.fields(settings)} - {""}
    return frozenset(action.dest for action in parser._actions) | others


def flags_in_prose(text: str) -> Iterator[tuple[Command, str]]:
    """Return every command that a page names with a flag, in prose or tables, with that flag."""
    for line in without_code(text).splitlines():
        for jax_or_mlx, name, script, word, package, module, rest in _PROGRAM.findall(line):
            flags = re.findall(r"--([\w.]+)", rest)
            if not flags:
                continue
            if script:
                command = _script(script, [word] if word else [])
            else:
                command = _named(jax_or_mlx or package, name or module, [])
            yield from ((command, flag) for flag in flags)


@functools.cache
def every_flag() -> frozenset[str]:
    """Return the flags of all commands."""
    targets = [target for commands in (JAX_COMMANDS, MLX_COMMANDS) for target, _ in commands.values()]
    targets += ["jaxlm.commands.compile_for:main", "jaxlm.commands.same_text:main"]
    return frozenset().union(COMMON_FLAGS, FOREIGN_FLAGS, *(flags_of(target) for target in targets))


def has_flag(flags: frozenset[str], flag: str) -> bool:
    """Return True if a flag is there, or a group or mapping that takes it."""
    return flag in flags or flag.partition(".")[0] in flags or any(name.startswith(f"{flag}.") for name in flags)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Return the targets of links and pictures to files of the checkout."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [target for target in found if not re.match(r"[a-z]+:", target)]

"""Reads the settings of every command from its flags and reports a user's mistakes.

A command is a function of one frozen dataclass. Its flags are generated from the fields, so that a default and its
help live in one line. The function is named by its module, which is imported once the settings are read: help and
mistakes wait for no framework, and libraries are quieted before they are imported.
"""

import atexit
import contextlib
import dataclasses
import importlib
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jaxlm.common.command_source import read_command
from jaxlm.common.help import arrange_help, explain_mistake, nearest
from jaxlm.common.model_name import find_model
from shared_tokenizer.settings import metadata_of, with_new_names

Settings = TypeVar("Settings")
Command = Callable[[Any], Any]
USER_ERRORS = (ValueError, OSError, FloatingPointError, OverflowError, MemoryError)
# Flags of every command that are no settings of it.
_COMMON_FLAGS = ("config", "debug", "help_all")
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_BOOL_WORDS = ("true", "false", "yes", "no", "on", "off", "1", "0", "null", "none")


def run_command(
    command: str | Command, *, argv: list[str] | None = None, positional: bool = False, program: str | None = None
) -> None:
    """Parse the flags of a command, call it, and exit: 0 when done, 2 on a user's mistake.

    `command` is a function of one settings dataclass, or "module:function". A mistake is one line on stderr; `--debug`
    shows the traceback instead. With `positional` the settings that have no default are given by position. `program` is
    the name in the help; by default that of the script.
    """
    argv = sys.argv[1:] if argv is None else argv
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # what nohup ignores stays ignored
            signal.signal(number, _leave)
    debug = "--debug" in argv
    before = sys.unraisablehook
    try:
        if not debug:
            sys.unraisablehook = _print_unraisable
        quiet_libraries()
        if isinstance(command, str):
            settings_class, text = read_command(command)
        else:
            settings_class, text = settings_class_of(command), command.__doc__
        settings = parse(settings_class, argv, text, positional=positional, program=program)
        function = _import_function(command) if isinstance(command, str) else command
        function(settings)
    except KeyboardInterrupt:
        sys.stdout.flush()
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
        os._exit(130)  # a compiler may still be at work in a thread
    except BrokenPipeError:  # of `| head`
        os._exit(0)
    except USER_ERRORS as error:
        if debug:
            raise
        sys.stderr.write(f"error: {_one_line(error)}\n")
        sys.exit(2)
    finally:
        sys.unraisablehook = before
        atexit.register(_ignore_signals)  # what is registered last is called first


def _ignore_signals() -> None:
    """Let nothing disturb the end of the process: its work is done, and an exception there has nobody to catch it."""
    for number in (signal.SIGINT, *_ENDING):
        signal.signal(number, signal.SIG_IGN)


def _leave(number: int, frame: object) -> None:
    """Leave by an exception, so that half-written files are cleaned up; a second signal does not disturb that."""
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def choose_command(
    program: str,
    commands: Mapping[str, tuple[str, str]],
    argv: list[str],
    *,
    positional: Collection[str] = (),
    version: str,
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Run the command that the first word names, with the words after it.

    `commands` maps a name to ("module:function", one line of help). Without a name, or with an unknown one, the list
    of commands is shown. The name of a command may be two words, as that of each command of a group is. `elsewhere`
    maps commands of another program to how they are called.
    """
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    group = {command: told for command, told in commands.items() if command.startswith(f"{name} ")}
    if group:
        word = rest[0] if rest else "--help"
        if word in ("--help", "-h", "help"):
            name, commands = "--help", group
        else:
            name, rest = f"{name} {word}", rest[1:]
    if name in ("--version", "-V"):
        print(f"{program} {version}")
    elif name in ("--help", "-h", "help"):
        print(f"usage: {program} COMMAND [settings]\n\ncommands:")
        width = max(10, *map(len, group or [command for command in commands if " " not in command]))
        for command, (_, text) in commands.items():
            print(f"  {command:<{width}} {text}")
        print(f"\n{program} COMMAND --help shows the settings of a command.")
    elif name in commands:
        sys.argv[1:] = rest
        run_command(commands[name][0], argv=rest, positional=name in positional, program=f"{program} {name}")
    else:
        meant = (elsewhere or {}).get(name)
        hint = f"; that is {meant}" if meant else nearest(name, commands) or f", expected one of {', '.join(commands)}"
        sys.stderr.write(f"error: {program}: found no command {name!r}{hint}\n")
        sys.exit(2)


def _import_function(target: str) -> Command:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def settings_class_of(command: Command) -> type:
    """Return the dataclass that a command takes, by the annotation of its one parameter."""
    (settings_class,) = (kind for name, kind in get_type_hints(command).items() if name != "return")
    return settings_class


def parse(
    settings_class: type[Settings],
    argv: list[str],
    description: str | None = None,
    *,
    positional: bool = False,
    program: str | None = None,
) -> Settings:
    """Read settings from flags, over those of a `--config` file. Raises ValueError on what does not fit.

    `--help` prints the flags that matter first and exits, `--help_all` prints all.
    """
    # Imported here: the other files of this package need numpy and safetensors only.
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=program, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of these settings; flags go over it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--help_all", action="store_true", help="show all settings and exit")
    parser.add_class_arguments(settings_class, as_positional=positional)
    if "--help_all" in argv or "--help" in argv or "-h" in argv:
        arrange_help(parser, settings_class, full="--help_all" in argv)
        parser.print_help()
        sys.exit(0)
    words = _gather_lists(_with_positions(_with_other_names(argv, settings_class), settings_class), settings_class)
    words = _with_values(words, settings_class, has_positions=positional)
    words = _with_settings_of_run(words, settings_class)
    try:
        values = parser.parse_args(_with_new_names(words, settings_class))
        fields = _with_models(parser.instantiate(values).as_dict(), settings_class)
        return settings_class(**{name: value for name, value in fields.items() if name not in _COMMON_FLAGS})
    except jsonargparse.ArgumentError as error:
        message = explain_mistake(parser, _one_line(error), settings_class) or f"{_one_line(error)}; see --help"
        raise ValueError(_with_config_file(message, words)) from error
    except ValueError as error:
        raise ValueError(_with_config_file(str(error), words)) from error


def _with_models(values: dict[str, Any], settings_class: type) -> dict[str, Any]:
    """Return settings with the paths of models in place of their names on the shelf."""
    for field in dataclasses.fields(settings_class):
        given = values.get(field.name)
        if metadata_of(field).is_model and isinstance(given, str):
            values[field.name] = str(find_model(given))
        elif metadata_of(field).is_model and isinstance(given, list):
            values[field.name] = [str(find_model(each)) for each in given]
    return values


def _with_config_file(message: str, words: list[str]) -> str:
    """Return a message about a setting with the name of the `--config` file, where no flag gave the setting."""
    files = [following for word, following in itertools.pairwise(words) if word == "--config"]
    setting = message.partition(":")[0]
    flags = {word.partition("=")[0] for word in words}
    if not files or not os.path.isfile(files[-1]) or setting.startswith("--") or f"--{setting}" in flags:
        return message
    return message if files[-1] in message else f"{files[-1]}: {message}"


def _gather_lists(argv: list[str], settings_class: type) -> list[str]:
    """Let a flag of a list take all the words that follow it: `--input a b` becomes `--input ["a", "b"]`."""
    lists = {f"--{name}" for name, kind in get_type_hints(settings_class).items() if get_origin(kind) is list}
    gathered: list[str] = []
    words: list[str] | None = None
    split = [part for word in argv for part in _split_list_flag(word, lists)]
    for word in [*split, "--"]:
        if words is not None and (word.startswith("--") or _is_list(word)):
            gathered += [json.dumps(words)] if words else []
            words = None
        if words is not None:
            words.append(word)
        else:
            gathered.append(word)
            words = [] if word in lists else None
    return gathered[:-1]


def _is_list(word: str) -> bool:
    """Return True if a word is a whole list, not the name of a file that begins with a bracket."""
    return word.startswith("[") and word.endswith("]") and not os.path.exists(word)


def _split_list_flag(word: str, lists: set[str]) -> list[str]:
    """Return `--input=a` as two words."""
    flag, separator, value = word.partition("=")
    return [flag, value] if separator and flag in lists else [word]


def _with_values(argv: list[str], settings_class: type, *, has_positions: bool) -> list[str]:
    """Let a flag of a bool stand alone: `--resume` becomes `--resume true`; let a flag replace what excludes it.

    Where words stand by position, one that is no bool is not taken for the value of such a flag.
    """
    for field in dataclasses.fields(settings_class):
        other = metadata_of(field).instead_of
        if other and f"--{field.name}" in argv and f"--{other}" not in argv:
            argv = [*argv, f"--{other}", "null"]
    switches = {f"--{name}" for name in _bool_names(settings_class)}
    found: list[str] = []
    for word, following in itertools.pairwise([*argv, "--"]):
        found.append(word)
        if word in switches and (following.startswith("-") or (has_positions and following.lower() not in _BOOL_WORDS)):
            found.append("true")
    return found


def _bool_names(settings_class: type, prefix: str = "") -> list[str]:
    """Return the dotted names of all bools of a settings class, with those that may be null."""
    found: list[str] = []
    for name, kind in get_type_hints(settings_class).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found += _bool_names(kind, f"{prefix}{name}.")
        elif kind is bool or bool in get_args(kind):
            found.append(f"{prefix}{name}")
    return found


def _with_other_names(argv: list[str], settings_class: type) -> list[str]:
    """Let a flag have its other name: `--as ternary` becomes `--read_as ternary`."""
    fields = [field for field in dataclasses.fields(settings_class) if metadata_of(field).also]
    names = {f"--{metadata_of(field).also}": f"--{field.name}" for field in fields}
    split = (word.partition("=") for word in argv)
    return [f"{names.get(flag, flag)}{equals}{value}" for flag, equals, value in split]


def _with_positions(argv: list[str], settings_class: type) -> list[str]:
    """Let the first word be the setting that may be given by position: `runs DIR` becomes `runs --root DIR`."""
    for field in dataclasses.fields(settings_class):
        if metadata_of(field).by_position and argv and not argv[0].startswith("-"):
            return [f"--{field.name}", *argv]
    return argv


def _with_settings_of_run(argv: list[str], settings_class: type) -> list[str]:
    """Let `--resume --output_dir RUN` go on with the settings of the run, where no `--config` is given."""
    find = getattr(settings_class, "settings_of_run", None)
    given = dict(itertools.pairwise([*(part for word in argv for part in word.split("=", 1)), "--"]))
    is_resumed = given.get("--resume", "false").lower() not in ("false", "no", "off", "0")
    if find is None or not is_resumed or "--config" in given or "--output_dir" not in given:
        return argv
    settings = find(given["--output_dir"])
    return argv if settings is None else ["--config", settings, *argv]


def _with_new_names(argv: list[str], settings_class: type) -> list[str]:
    """Let `--config` read a file of an earlier version, whose fields have been renamed since."""
    import yaml

    no_yaml = (yaml.YAMLError, ValueError, RecursionError)  # which the parser names
    found = list(argv)
    for index, (word, following) in enumerate(itertools.pairwise(argv)):
        if word == "--config" and os.path.isfile(following):
            with open(following, encoding="utf-8") as file, contextlib.suppress(*no_yaml):
                content = yaml.safe_load(file)
                if isinstance(content, dict) and (renamed := with_new_names(settings_class, content)) != content:
                    found[index + 1] = yaml.safe_dump(renamed)
    return found


def _print_unraisable(unraisable: Any) -> None:
    """Print an error that nobody can catch, but not of callbacks of a save that has failed: it is told in one line."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def make_console() -> Any:
    """Return a rich console for tables and progress; a pipe gets the width that the tables need."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # which a command takes for `| head`; rich would exit with 1

    console = PipeConsole(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def quiet_libraries() -> None:
    """Keep the log lines of XLA, absl and transformers off the terminal. Call it before they are imported.

    The tracebacks of threads and tasks too: the error is raised where the work is waited for, and is one line there.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

"""How every command reads its settings and reports a user's mistake.

A command is a function of one frozen dataclass; its flags are generated from the fields, so a default and its
help live in one place.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar, get_origin, get_type_hints

Settings = TypeVar("Settings")
USER_ERRORS = (ValueError, OSError, FloatingPointError, OverflowError, MemoryError)


def run_command(
    function: Callable[[Settings], Any],
    settings_class: type[Settings],
    *,
    argv: list[str] | None = None,
    positional: bool = False,
) -> None:
    """Parse flags into `settings_class`, call `function`, and exit: 0 when done, 2 on a user's mistake.

    A mistake is one line on stderr; `--debug` shows the traceback instead. With `positional` the settings
    that have no default are given by place.
    """
    argv = sys.argv[1:] if argv is None else argv
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Leave by an exception, so that what is half written is cleaned up.
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    debug = "--debug" in argv
    try:
        settings = parse(settings_class, argv, function.__doc__, positional=positional)
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


def parse(
    settings_class: type[Settings],
    argv: list[str],
    description: str | None = None,
    *,
    positional: bool = False,
) -> Settings:
    """Settings from flags, over those of a `--config` file; raises ValueError on what does not fit."""
    # Imported here: the rest of the contract needs numpy and safetensors only.
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of these settings; flags go over it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(settings_class, as_positional=positional)
    try:
        values = parser.parse_args(_gather_lists(argv, settings_class))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{_one_line(error)}; see --help") from error
    fields = parser.instantiate(values).as_dict()
    return settings_class(**{name: value for name, value in fields.items() if name not in ("config", "debug")})


def _gather_lists(argv: list[str], settings_class: type) -> list[str]:
    """Let a flag of a list take all the words that follow it: `--input a b` becomes `--input ["a", "b"]`."""
    lists = {f"--{name}" for name, kind in get_type_hints(settings_class).items() if get_origin(kind) is list}
    gathered: list[str] = []
    words: list[str] | None = None
    split = [part for word in argv for part in _split_list_flag(word, lists)]
    for word in [*split, "--"]:
        if words is not None and (word.startswith("--") or word.startswith("[")):
            gathered += [json.dumps(words)] if words else []
            words = None
        if words is not None:
            words.append(word)
        else:
            gathered.append(word)
            words = [] if word in lists else None
    return gathered[:-1]


def _split_list_flag(word: str, lists: set[str]) -> list[str]:
    """`--input=a` as two words."""
    flag, separator, value = word.partition("=")
    return [flag, value] if separator and flag in lists else [word]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def make_console() -> Any:
    """A rich console for tables and progress; a pipe gets the width that the tables need."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def quiet_libraries() -> None:
    """Keep the log lines of XLA, absl and transformers off the terminal; call before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("absl").setLevel(logging.ERROR)

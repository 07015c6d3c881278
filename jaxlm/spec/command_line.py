"""How every command reads its settings and reports a user's mistake.

A command is a function of one frozen dataclass; its flags are generated from the fields, so a default and its
help live in one place.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Settings = TypeVar("Settings")
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def run_command(
    function: Callable[[Settings], Any], settings_class: type[Settings], argv: list[str] | None = None
) -> None:
    """Parse flags into `settings_class`, call `function`, and exit: 0 when done, 2 on a user's mistake.

    A mistake is one line on stderr; `--debug` shows the traceback instead.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        settings = parse(settings_class, [word for word in argv if word != "--debug"], function.__doc__)
        function(settings)
    except USER_ERRORS as error:
        if debug:
            raise
        sys.stderr.write(f"error: {_one_line(error)}\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    sys.stdout.flush()


def parse(settings_class: type[Settings], argv: list[str], description: str | None = None) -> Settings:
    """Settings from flags, over those of a `--config` file; raises ValueError on what does not fit."""
    # Imported here: the rest of the contract needs numpy and safetensors only.
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of these settings; flags go over it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(settings_class)
    try:
        values = parser.parse_args(argv)
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{_one_line(error)}; see --help") from error
    fields = parser.instantiate_classes(values).as_dict()
    fields.pop("config"), fields.pop("debug")
    return settings_class(**fields)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def quiet_libraries() -> None:
    """Keep the log lines of XLA, absl and transformers off the terminal; call before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

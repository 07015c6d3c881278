"""The process that knows the settings of the commands: it describes them and checks command lines.

It imports the frameworks, which takes seconds and memory, so that the studio itself does not. Requests and answers are
lines of JSON: `python -m jaxlm.studio.processes.settings_child`.
"""

import contextlib
import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxlm.common.command_line import USER_ERRORS, parse, quiet_libraries, settings_class_of
from shared_tokenizer.settings import default_of, metadata_of

TARGETS = {
    "train": "jaxlm.commands.train:main",
    "mlx-finetune": "mlxlm.finetune.command:main",
    "prepare": "jaxlm.commands.prepare:main",
}


def describe(settings_class: type, prefix: str = "", group_default: Any = None) -> list[dict[str, Any]]:
    """Return every setting of a class: name, group, kind, choices, default, help; those of groups inside it too.

    The settings of a group have the defaults of `group_default`, which the class around it may have chosen.
    """
    helps, hints, found = _helps(settings_class), get_type_hints(settings_class), []
    for field in dataclasses.fields(settings_class):
        kind, rules, name = hints[field.name], metadata_of(field), f"{prefix}{field.name}"
        default = default_of(field) if group_default is None else getattr(group_default, field.name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found += [
                each | {"group": rules.group or field.name, "resumable": each["resumable"] or rules.resumable}
                for each in describe(kind, f"{name}.", None if default is dataclasses.MISSING else default)
            ]
            continue
        words, choices = _kind_of(kind)
        found.append(
            {
                "name": name,
                "group": rules.group or "advanced",
                "basic": rules.basic,
                "resumable": rules.resumable,
                "kind": words,
                "choices": choices,
                "default": None if default is dataclasses.MISSING else _plain(default),
                "required": default is dataclasses.MISSING,
                "help": helps.get(field.name, ""),
            }
        )
    return found


def _helps(settings_class: type) -> dict[str, str]:
    """Return the docstrings of the fields of a class and of those below it."""
    import docstring_parser

    found: dict[str, str] = {}
    for each in reversed(settings_class.__mro__[:-1]):
        with contextlib.suppress(OSError, TypeError):  # without source
            for entry in docstring_parser.parse_from_object(each).params:
                found[entry.arg_name] = " ".join((entry.description or "").split())
    return found


def _kind_of(kind: Any) -> tuple[str, list[str]]:
    """Return the kind of a value: bool, int, float, text, choice or other, and the words that it may be."""
    parts = [part for part in get_args(kind) if part is not type(None)] if get_origin(kind) is not Literal else []
    if get_origin(kind) is Literal:
        return "choice", [str(each) for each in get_args(kind)]
    if parts and not isinstance(kind, type) and get_origin(kind) not in (list, dict, tuple):
        kinds = [_kind_of(part) for part in parts]
        if len(kinds) == 1:
            return kinds[0]
        choices = [each for _, some in kinds for each in some]
        return ("choice", choices) if all(word == "choice" for word, _ in kinds) else ("text", choices)
    return {bool: "bool", int: "int", float: "float", str: "text"}.get(kind, "other"), []


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


def check(settings_class: type, argv: list[str]) -> dict[str, Any]:
    """Return the mistake of a command line and the setting that it names; None for both where there is none."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            parse(settings_class, argv)
    except USER_ERRORS as error:
        message = " ".join(str(error).split())
        return {"error": message, "field": field_of(message)}
    return {"error": None, "field": None}


def field_of(message: str) -> str | None:
    """Return the setting that a message begins with."""
    found = re.match(r"(?:--)?([a-z][a-z0-9_.]*)(?:, [a-z_.]+)*:", message)
    return found[1] if found else None


def answer(request: Mapping[str, Any], classes: dict[str, type]) -> dict[str, Any]:
    """Return the settings of a command, or the first mistake of its words. `classes` keeps what was imported."""
    name = request["command"]
    try:
        if name not in classes:
            module, _, function = TARGETS[name].partition(":")
            classes[name] = settings_class_of(getattr(importlib.import_module(module), function))
    except ImportError as error:
        extra = "mlx" if name.startswith("mlx-") else "jax"
        message = f"{name}: cannot be opened here: {error}; install what it needs: pip install 'jaxlm[{extra}]'"
        return {"error": message, "field": None, "settings": []}
    except KeyError:
        return {"error": f"{name}: expected one of {', '.join(TARGETS)}", "field": None, "settings": []}
    if request.get("argv") is None:
        return {"settings": describe(classes[name])}
    return check(classes[name], request["argv"])


def serve() -> None:
    """Answer requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    quiet_libraries()
    classes: dict[str, type] = {}
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line), classes), default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()

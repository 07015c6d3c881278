"""The process that `own_verifier` starts: it imports a function and calls it. It needs `child_loop` alone."""

import importlib
import importlib.util
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared_tokenizer.sandbox.child_loop import answer_requests

LONGEST_MESSAGE = 500


def load(place: str, name: str) -> Callable[..., Any]:
    """Import a function from a file, or from a module by its name."""
    if place.endswith(".py"):
        sys.path.insert(0, str(Path(place).resolve().parent))
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise AttributeError(f"found no function {name} in {place}")
    return function


def as_reply(value: Any) -> dict[str, Any]:
    """Return a reward, or what was found in place of one."""
    try:
        reward = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        reward = math.nan
    return {"reward": reward} if math.isfinite(reward) else {"found": repr(value)[:LONGEST_MESSAGE]}


def describe(error: BaseException) -> str:
    """Return an error as a line, with the last line of the user's code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    where = f", line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"[:LONGEST_MESSAGE]


def main(place: str, name: str) -> None:
    """Answer requests until standard input ends. What the function prints goes nowhere."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    function: Callable[..., Any] | None = None

    def answer(content: bytes) -> dict[str, Any]:
        nonlocal function
        request = json.loads(content)
        try:
            if function is None:
                function = load(place, name)
                return {}
            return as_reply(function(request["prompt"], request["answer"], request["row"]))
        except BaseException as error:
            return {"raised": describe(error)}

    answer_requests(answer, source, sink)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

"""Cells of a row: nested ones by a path, and lists of messages that are written as text."""

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

# Python's parser takes many times the memory of its text.
LONGEST_PYTHON = 1 << 20
_NUMPY_GAP = re.compile(r"\}\s*\n\s*\{")
_PYTHON_LIST = re.compile(r"""\[\s*[\[{('"\]]""")


def has_cell(row: Mapping[str, Any], path: str) -> bool:
    """Return True if a row has a column of this name, or a nested one of this path."""
    try:
        get_cell(row, path)
    except ValueError:
        return False
    return True


def get_cell(row: Mapping[str, Any], path: str) -> Any:
    """Return a column, or what `a.b` names: key b of column a, or its item where b is a number. Raises ValueError."""
    if path in row:
        return row[path]
    cell: Any = row
    for name in path.split("."):
        if isinstance(cell, Mapping) and name in cell:
            cell = cell[name]
        elif isinstance(cell, Sequence) and not isinstance(cell, str) and name.isdecimal() and int(name) < len(cell):
            cell = cell[int(name)]
        else:
            raise ValueError(f"no column {path!r}, found {', '.join(map(repr, row)) or 'none'}")
    return cell


def text_cell(value: object, column: str) -> str:
    """Return the text of a cell. Raises ValueError, naming the column, where it holds anything else."""
    if not isinstance(value, str):
        raise ValueError(f"column {column!r}: found a {type(value).__name__}, expected a string")
    return value


def parse_list(text: str) -> list[Any] | None:
    """Return the list that a text spells in JSON or in Python's own notation, None where it spells none.

    Python's notation is that of `str` and `repr`, as a CSV file of a data frame holds it; numpy leaves out the commas
    between objects.
    """
    if not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _parse_python(text)
    return found if isinstance(found, list) else None


def _parse_python(text: str) -> Any:
    text = text.strip()
    if len(text) > LONGEST_PYTHON or not _PYTHON_LIST.match(text) or not text.endswith("]"):
        return None
    with warnings.catch_warnings(action="ignore"):  # of texts that are no such list
        for written in (text, _NUMPY_GAP.sub("},{", text)):
            try:
                return ast.literal_eval(written)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
    return None

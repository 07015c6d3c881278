"""The one home of drawing: colours, and a figure that is saved whole, with the same bytes for the same numbers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_tokenizer.manifest import replaced_file

# Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7f7f7f")
HEAT_MAP = "cividis"
FORMATS = (".png", ".svg")


@contextlib.contextmanager
def drawn_picture(
    path: Path, size: tuple[float, float], *, rows: int = 1, metadata: dict[str, str | None] | None = None
) -> Iterator[list[Any]]:
    """Yield the axes of a new picture, one below the other, and save it as PNG or SVG by the ending of `path`.

    Raises ValueError on another ending, and OSError with the name of the file.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: found a picture of type {path.suffix or 'none'}, expected {' or '.join(FORMATS)}")
    with rc_context({"svg.hashsalt": "jaxlm", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=size, layout="constrained")
        yield list(figure.subplots(rows, 1, squeeze=False)[:, 0])
        # Without the date of the file and the version of the library, the same numbers give the same bytes.
        plain: dict[str, str | None] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with replaced_file(path) as temporary:
            figure.savefig(temporary, dpi=120, format=path.suffix[1:], metadata=plain | (metadata or {}))


def colour(number: int) -> str:
    """Return the colour of the line of this number, counted from 0."""
    return COLOURS[number % len(COLOURS)]

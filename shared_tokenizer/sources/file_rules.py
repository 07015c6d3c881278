"""The user's choices of which files of a source are read, and how."""

from dataclasses import dataclass
from typing import Literal

Splits = Literal["auto", "ignore"]


@dataclass(frozen=True)
class FileRules:
    """Settings that choose files; `TextConfig` describes them. `encoding` is None for UTF-8."""

    splits: Splits = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    encoding: str | None = None

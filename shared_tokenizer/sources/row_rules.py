"""The user's choices of how a row is understood, the same for every file of a command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RowRules:
    """Settings that say what a row means; `TextConfig` describes them."""

    text_column: str | None = None

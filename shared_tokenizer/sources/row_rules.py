"""The user's choices of how a row is understood, the same for every file of a command."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TextFormat = Literal["auto", "rendered", "letters"]


@dataclass(frozen=True)
class RowRules:
    """Settings that say what a row means; `TextConfig` describes them. Raises ValueError on a role that is none."""

    text_column: str | None = None
    roles_by_name: Mapping[str, str] = field(default_factory=dict)
    text_format: TextFormat = "auto"

    def __post_init__(self) -> None:
        for name, role in self.roles_by_name.items():
            if role not in ("system", "user", "assistant"):
                raise ValueError(f"roles: {name}: found {role!r}, expected system, user or assistant")

    @property
    def reads_rendered(self) -> bool:
        """Return True if chats that are written out as texts become turns."""
        return self.text_format == "rendered"

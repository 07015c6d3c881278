"""Fields of a command's settings: default, bounds and place in the help, all in the one line that defines the field.

A command is a function of one frozen dataclass. What its fields allow is metadata of the fields, so that checks, help
and the rules of a resumed run read the same line.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """The metadata of one field."""

    group: str = ""
    """Heading of the help that the flag stands under."""
    basic: bool = False
    """True shows the flag in the short help."""
    resumable: bool = False
    """True lets a resumed run have another value: the field does not touch a weight."""
    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    formerly: str = ""
    """Name of the field in files that earlier versions wrote."""
    instead_of: str = ""
    """Field that is given up where this one is given as a flag: the other may stand in a file."""
    more_help: str = ""
    """Text of the help after the docstring of the field: what the code knows by a table."""
    by_position: bool = False
    """True takes the first word that is no flag."""
    also: str = ""
    """Another name of the flag, which may be a word that no field can have, such as `as`."""
    is_model: bool = False
    """True takes a model: a path, or its name on the shelf, which is replaced by its path."""

    def allows(self, value: object) -> bool:
        """Return True if a value is in bounds. None and words such as auto always are."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
            and (self.less_than is None or value < self.less_than)
        )

    def expected(self, value: object) -> str:
        """Return the bounds in words, for the message about a value that is outside them."""
        if self.at_least is not None and self.at_most is not None:
            return f"{_number(self.at_least)} to {_number(self.at_most)}"
        words = [
            f"{word} {_number(bound)}"
            for word, bound in (
                ("at least", self.at_least),
                ("more than", self.more_than),
                ("at most", self.at_most),
                ("less than", self.less_than),
            )
            if bound is not None
        ]
        if words == ["at least 0"]:
            words = ["0 or more"]
        if isinstance(value, float) and self.at_most is None and self.less_than is None:
            return " and ".join([*words, "finite"])
        return ", ".join(words)


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def setting(
    default: Any = dataclasses.MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    group: str = "",
    basic: bool = False,
    resumable: bool = False,
    at_least: float | None = None,
    more_than: float | None = None,
    at_most: float | None = None,
    less_than: float | None = None,
    formerly: str = "",
    instead_of: str = "",
    more_help: str = "",
    by_position: bool = False,
    also: str = "",
    is_model: bool = False,
) -> Any:
    """Return a dataclass field with the metadata of a `Setting`. Numbers with a bound have to be finite too."""
    bounds = (at_least, more_than, at_most, less_than)
    metadata = {
        _KEY: Setting(group, basic, resumable, *bounds, formerly, instead_of, more_help, by_position, also, is_model)
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def metadata_of(field: dataclasses.Field[Any]) -> Setting:
    """Return the metadata of a field; an ordinary field has none of it."""
    return field.metadata.get(_KEY, Setting())


def check_bounds(settings: Any, prefix: str = "") -> None:
    """Raise ValueError on the first field of a dataclass that is out of its bounds. `prefix` stands before its name."""
    for field in dataclasses.fields(settings):
        value, rules = getattr(settings, field.name), metadata_of(field)
        has_bounds = any(
            bound is not None for bound in (rules.at_least, rules.more_than, rules.at_most, rules.less_than)
        )
        if has_bounds and not rules.allows(value):
            raise ValueError(f"{prefix}{field.name}: found {value}, expected {rules.expected(value)}")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, MISSING where it has none."""
    has_factory = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if has_factory else field.default  # pyright: ignore[reportCallIssue]


def resumable_fields(settings_class: type) -> frozenset[str]:
    """Return the names of the fields that a resumed run may have anew."""
    return frozenset(field.name for field in dataclasses.fields(settings_class) if metadata_of(field).resumable)


def with_defaults(settings_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as a file of an earlier version holds them, with the defaults of fields that it did not have."""
    filled = dict(values)
    for field in dataclasses.fields(settings_class):
        default = default_of(field)
        if dataclasses.is_dataclass(default) and isinstance(filled.get(field.name), Mapping):
            filled[field.name] = dataclasses.asdict(default) | dict(filled[field.name])  # pyright: ignore[reportArgumentType]
        elif default is not dataclasses.MISSING and not dataclasses.is_dataclass(default):
            filled.setdefault(field.name, default)
    return filled


def with_new_names(settings_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as a file holds them, with fields that have been renamed since under their new names."""
    renamed = {metadata_of(field).formerly: field.name for field in dataclasses.fields(settings_class)}
    return {renamed.get(name, name): value for name, value in values.items()}


def check_unchanged(settings: Any, names: tuple[str, ...], where: str) -> None:
    """Raise ValueError if a field is not at its default, where it has no effect. `where` ends the message."""
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name in names:
        if getattr(settings, name) != default_of(fields[name]):
            raise ValueError(f"{name}: has no effect {where}")

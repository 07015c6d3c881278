"""Settings held to what makes sense."""

from collections.abc import Mapping


def check_bounds(settings: object, bounds: Mapping[str, tuple[bool, str]], prefix: str = "") -> None:
    """Raise ValueError on the first setting that is out of bounds.

    `bounds` gives for each name whether its value is good, and what was expected.
    """
    for name, (is_good, expected) in bounds.items():
        if not is_good:
            raise ValueError(f"{prefix}{name}: found {getattr(settings, name)}, expected {expected}")

"""The trackers that a run can report to; each is a package of its own, imported only where it is chosen."""

import importlib.util
from collections.abc import Iterable

from jaxlm.common.help import nearest

# Each is the name of its package and of the extra that installs it.
TRACKERS = ("tensorboard", "wandb", "trackio")


def is_installed(package: str) -> bool:
    """Return True if a package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def check_trackers(names: Iterable[str], setting: str = "report_to") -> list[str]:
    """Return the names of trackers, each once; a word may hold several, separated by commas.

    Raises ValueError, which names the `setting`, on an unknown one and on one whose package is not installed.
    """
    found = list(dict.fromkeys(name.strip() for word in names for name in word.split(",") if name.strip()))
    for name in found:
        if name not in TRACKERS:
            raise ValueError(
                f"{setting}: found {name[:40]!r}, expected some of {', '.join(TRACKERS)}{nearest(name, TRACKERS)}"
            )
        if not is_installed(name):
            raise ValueError(f"{setting}: {name} is not installed; pip install 'jaxlm[{name}]', or leave it out")
    return found

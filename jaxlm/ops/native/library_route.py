"""The choice between a native library and XLA: the library is built, checked and timed once on a machine."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.ops.machine.routes import Route, faster, measured_once, now_on_this_cpu
from jaxlm.ops.native.build import NoLibraryError


def library_route(
    processor: tuple[str, ...],
    feature: str,
    load: Callable[[], Path],
    check_exact: Callable[[], None],
    forms: Callable[[], Mapping[str, Callable[[], Any]]],
    allowed: float = 1.0,
) -> Route:
    """Return the route of a library: used on processors of a feature, if it takes less than `allowed` times XLA's time.

    `load` makes the library known to jax, `check_exact` raises NoLibraryError where its answers are wrong, and `forms`
    makes calls named "native" and "XLA". The first call on a machine builds and times; both are kept in the user's
    cache.
    """
    if feature not in processor:
        return Route(False, f"off: the processor has no {feature}")
    try:
        library = load()
        with now_on_this_cpu():
            check_exact()
        seconds = measured_once(library, forms)
    except NoLibraryError as error:
        return Route(False, f"off: {error}")
    where = f" ({library})" if allowed == 1 else f", less in a step ({library})"
    return faster(seconds, "native", "XLA", where, allowed)

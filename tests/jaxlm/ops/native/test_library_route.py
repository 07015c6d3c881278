import json

import pytest

from jaxlm.ops.machine.routes import Route, record_of
from jaxlm.ops.native.build import NoLibraryError
from jaxlm.ops.native.library_route import library_route


def no_forms():
    raise AssertionError("timed though the times are kept")


@pytest.mark.parametrize(
    ("native", "allowed", "expected"),
    [
        (0.9, 1.0, Route(True, "on: native 900.00 ms, XLA 1000.00 ms ({})")),
        (1.2, 1.0, Route(False, "off: native 1200.00 ms, XLA 1000.00 ms ({})")),
        (1.2, 1.5, Route(True, "on: native 1200.00 ms, XLA 1000.00 ms, less in a step ({})")),
    ],
)
def test_a_library_is_used_where_it_takes_less_than_is_allowed(tmp_path, native, allowed, expected):
    library = tmp_path / "library.so"
    record_of(library).write_text(json.dumps({"native": native, "XLA": 1.0}))
    found = library_route(("avx2",), "avx2", lambda: library, lambda: None, no_forms, allowed)
    assert (found.is_used, found.reason) == (expected.is_used, expected.reason.format(library))


def test_neither_is_built_without_the_feature_nor_used_when_it_is_wrong(tmp_path):
    def wrong():
        raise NoLibraryError("products are wrong")

    def load():
        raise AssertionError("built for a processor that lacks the feature")

    assert library_route((), "avx2", load, wrong, no_forms) == Route(False, "off: the processor has no avx2")
    assert library_route(("avx2",), "avx2", lambda: tmp_path, wrong, no_forms) == Route(
        False, "off: products are wrong"
    )

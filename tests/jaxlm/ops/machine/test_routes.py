import json

import jax.numpy as jnp
import pytest

from jaxlm.ops.machine.routes import faster, measured_once, record_of


def test_the_faster_route_is_used():
    seconds = {"mine": 0.001, "theirs": 0.002}
    assert faster(seconds, "mine", "theirs").is_used and not faster(seconds, "theirs", "mine").is_used
    assert faster(seconds, "mine", "theirs", "!").reason == "on: mine 1.00 ms, theirs 2.00 ms!"


@pytest.mark.parametrize("damaged", [None, "{", "[1]", '{"a": "fast"}'])
def test_times_are_measured_once_and_anew_where_their_file_is_damaged(tmp_path, damaged):
    path, made = tmp_path / "cache" / "product.so", []

    def forms():
        made.append(1)
        return {name: lambda: jnp.ones(3) for name in "ab"}

    if damaged is not None:
        record_of(path).parent.mkdir()
        record_of(path).write_text(damaged)
    first = measured_once(path, forms)
    assert set(first) == {"a", "b"} and min(first.values()) > 0
    assert measured_once(path, forms) == first == json.loads(record_of(path).read_text())
    assert made == [1]


def test_other_flags_of_the_compiler_have_other_times(tmp_path, monkeypatch):
    records = set()
    for flags in ("", "--xla_backend_optimization_level=0"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        records.add(record_of(tmp_path / "product.so").name)
    assert len(records) == 2


def test_a_place_that_cannot_be_written_is_measured_each_time(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "product"
    assert measured_once(path, lambda: {"a": lambda: jnp.ones(3)})["a"] > 0

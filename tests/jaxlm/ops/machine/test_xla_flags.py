import subprocess
import sys

import pytest

from jaxlm.ops.machine import xla_flags
from jaxlm.ops.machine.xla_flags import NO_FUSED_REDUCTIONS, knows_flag, set_xla_flags

NO_FUSIONS = f"--{NO_FUSED_REDUCTIONS}=-reduce"
NO_SPLITS = "--xla_disable_hlo_passes=tree_reduction_rewriter"
OURS = f"{NO_FUSIONS} {NO_SPLITS}"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(xla_flags, "knows_flag", lambda name: True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, OURS),
        ("", OURS),
        ("--xla_force_host_platform_device_count=8", f"--xla_force_host_platform_device_count=8 {OURS}"),
        (OURS, OURS),
        (f"--{NO_FUSED_REDUCTIONS}=", f"--{NO_FUSED_REDUCTIONS}= {NO_SPLITS}"),
        ("--xla_disable_hlo_passes=cse", f"--xla_disable_hlo_passes=cse {NO_FUSIONS}"),
        ("/etc/xla_flags", "/etc/xla_flags"),
    ],
)
def test_flags_are_appended_and_never_replaced(given, expected):
    environment = {} if given is None else {"XLA_FLAGS": given}
    set_xla_flags(environment)
    assert environment == {"XLA_FLAGS": expected}


def test_a_flag_that_the_compiler_does_not_know_would_end_the_process_and_is_left_out(monkeypatch):
    monkeypatch.setattr(xla_flags, "knows_flag", lambda name: False)
    environment = {"XLA_FLAGS": "--xla_dump_to=x"}
    set_xla_flags(environment)
    assert environment == {"XLA_FLAGS": "--xla_dump_to=x"}


def test_flags_are_known_by_the_installed_library():
    assert knows_flag("xla_force_host_platform_device_count")
    assert not knows_flag("xla_no_such_flag")


@pytest.mark.parametrize(
    ("content", "is_known"),
    [(b"\0the_flag\0", True), (b"\0set_the_flag\0", False), (b"\x08the_flag\x18", False), (b"", False)],
)
def test_a_name_inside_a_longer_text_is_no_flag(content, is_known, tmp_path, monkeypatch):
    library = tmp_path / "libjax_common.so"
    library.write_bytes(content)
    monkeypatch.setattr(xla_flags, "_libraries", lambda: iter([library]))
    assert knows_flag("the_flag") == is_known


def test_every_library_that_reads_the_flags_has_to_know_them(tmp_path, monkeypatch):
    for name, content in (("a.so", b"\0the_flag\0"), ("b.so", b"\0another\0")):
        (tmp_path / name).write_bytes(content)
    libraries = sorted(tmp_path.iterdir())
    monkeypatch.setattr(xla_flags, "_libraries", lambda: iter(libraries))
    assert not knows_flag("the_flag")
    monkeypatch.setattr(xla_flags, "_libraries", lambda: iter(libraries[:1]))
    assert knows_flag("the_flag")
    monkeypatch.setattr(xla_flags, "_libraries", lambda: iter([]))
    assert not knows_flag("the_flag")


SUMS = """
import jax, os
import numpy as np
from jaxlm.common.known_answers.comparison import WrongAnswerError
from jaxlm.training.known_answers import check_known_answers
import jax.numpy as jnp
x = np.ones((1000, 16), np.float32)
print("right" if float(jax.jit(lambda x: jnp.sum(x @ jnp.ones((16, 16))))(x)) == 256_000 else "wrong")
try:
    check_known_answers(jax.devices()[0], jnp.float32, "xla")
    print("accepted")
except WrongAnswerError as error:
    print(error)
print(len(jax.devices()), os.environ["XLA_FLAGS"])
"""


def run_sums(flags, tmp_path):
    environment = {"XLA_FLAGS": f"--xla_backend_optimization_level=0 {flags}", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", SUMS],
        env={**xla_flags.os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    return ran.stdout.splitlines()


def test_with_the_flag_sums_of_products_are_right_and_flags_of_the_user_stay(tmp_path):
    first, second, last = run_sums("--xla_force_host_platform_device_count=2", tmp_path)
    assert (first, second) == ("right", "accepted")
    assert last.startswith("2 --xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2")


@pytest.mark.skipif(not knows_flag(NO_FUSED_REDUCTIONS), reason="this jaxlib has no such fusion")
def test_a_compiler_that_sums_products_wrongly_is_caught_with_the_way_out(tmp_path):
    """The compiler's own fault, where this version has it: a user's flag brings it back."""
    first, second, _ = run_sums(f"--{NO_FUSED_REDUCTIONS}=individual_dot,reduce", tmp_path)
    assert (first, second == "accepted") in (("right", True), ("wrong", False))
    if first == "wrong":
        assert "product with a sum (sum) wrong in 1 of 1 numbers" in second
        assert "jaxlib" in second and f"set XLA_FLAGS={NO_FUSIONS} before Python starts" in second

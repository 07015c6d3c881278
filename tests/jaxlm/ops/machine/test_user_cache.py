import subprocess
import sys

import jax
import pytest

from jaxlm.ops.machine import user_cache
from jaxlm.ops.machine.user_cache import cache_directory, keep_programs, processor_key

PROGRAM = """
import jax
from jaxlm.ops.machine.user_cache import keep_programs
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: (x * 2 + 1) @ x)(jax.numpy.ones((8, 8)))[0, 0], "/jax/compilation_cache/cache_hits" in events)
"""


@pytest.fixture
def jax_settings():
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_second_process_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    found = [subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True) for _ in range(2)]
    assert [done.stdout for done in found] == ["24.0 False\n", "24.0 True\n"], found


def test_a_directory_that_was_given_is_taken(tmp_path, monkeypatch, jax_settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs(str(tmp_path / "mine"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    keep_programs()  # jax has one already
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not (tmp_path / "jaxlm").exists()


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch, jax_settings):
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_processors_of_other_instructions_have_other_programs(tmp_path, monkeypatch):
    keys = set()
    for flags in ("flags\t: avx2 avx512f\n", "flags\t: avx2\n", "Features\t: asimd i8mm\n"):
        info = tmp_path / "cpuinfo"
        info.write_text(f"model name\t: x\n{flags}flags\t: of the next core\n")
        monkeypatch.setattr(user_cache, "CPU_INFO", info)
        keys.add(processor_key())
    assert len(keys) == 3
    assert all(len(key) == 16 for key in keys)


def test_the_cache_is_in_the_home_directory_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "jaxlm"

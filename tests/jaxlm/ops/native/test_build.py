import subprocess

import pytest

from jaxlm.ops.machine.user_cache import cache_directory
from jaxlm.ops.native import build
from jaxlm.ops.native.build import NoLibraryError, build_library, find_compiler, make_known

COMPILER = """#!/bin/sh
echo called >> {log}
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxlm"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "sums.cc"
    path.write_text("int one() { return 1; }\n")
    return path


def compiler(tmp_path, monkeypatch, script):
    path = tmp_path / "compiler"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def test_a_library_is_built_once_for_a_source_and_a_processor(tmp_path, monkeypatch, cache, source):
    log = tmp_path / "log"
    compiler(tmp_path, monkeypatch, COMPILER.format(log=log))
    first = build_library(source, ["avx2"])
    assert first.parent == cache == cache_directory() and first.read_text() == "library\n"
    assert build_library(source, ["avx2"]) == first
    assert build_library(source, ["avx2", "avx512f"]) != first
    (tmp_path / "sums.h").write_text("int three();\n")
    with_header = build_library(source, ["avx2"])
    source.write_text("int two() { return 2; }\n")
    assert len({first, with_header, build_library(source, ["avx2"])}) == 3
    assert log.read_text().count("called") == 4
    assert sorted(path.suffix for path in cache.iterdir()) == [".so"] * 4  # nothing else is left


def test_without_a_compiler_the_reason_names_what_was_looked_for(monkeypatch, cache, source):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert find_compiler() is None
    with pytest.raises(NoLibraryError, match=r"no C\+\+ compiler: found none of g\+\+, clang\+\+, c\+\+, nor \$CXX"):
        build_library(source, [])
    assert not cache.exists()


def test_a_compiler_that_fails_leaves_nothing(tmp_path, monkeypatch, cache, source):
    path = compiler(tmp_path, monkeypatch, "#!/bin/sh\necho unknown flag >&2\nexit 3\n")
    with pytest.raises(NoLibraryError, match=f"{path} ended with code 3: unknown flag"):
        build_library(source, [])
    assert list(cache.iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(monkeypatch, cache, source):
    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, 300)

    monkeypatch.setattr(build.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(build.subprocess, "run", hang)
    with pytest.raises(NoLibraryError, match="timed out after 300 seconds"):
        build_library(source, [])


def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path, monkeypatch, source):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(NoLibraryError, match="file"):
        build_library(source, [])


def test_a_damaged_library_is_named(tmp_path):
    (tmp_path / "sums.so").write_text("not a library")
    with pytest.raises(NoLibraryError, match=f"{tmp_path / 'sums.so'}: "):
        make_known(tmp_path / "sums.so", [])

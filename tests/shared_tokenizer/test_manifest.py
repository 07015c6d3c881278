import random
import subprocess

import numpy as np
import pytest

from shared_tokenizer.manifest import (
    MANIFEST,
    DamagedError,
    named_errors,
    seal_directory,
    sealed_directory,
    verify_manifest,
    write_file,
)
from tests.conftest import flipped_bit


@pytest.fixture
def sealed(tmp_path):
    with sealed_directory(tmp_path / "sealed") as directory:
        (directory / "below").mkdir()
        (directory / "first.bin").write_bytes(random.Random(0).randbytes(500))
        (directory / "below" / "second.txt").write_text("two")
    return tmp_path / "sealed"


def test_a_sealed_directory_verifies_and_sha256sum_agrees(sealed):
    verify_manifest(sealed)
    command = ["sha256sum", "--check", "--strict", MANIFEST]
    done = subprocess.run(command, cwd=sealed, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == sum(path.is_file() for path in sealed.rglob("*")) - 1  # all but the manifest


def test_any_flipped_bit_in_any_file_is_found(sealed):
    rng = np.random.default_rng(1)
    files = [path for path in sealed.rglob("*") if path.is_file()]
    for _ in range(200):
        with flipped_bit(files, rng), pytest.raises(DamagedError):
            verify_manifest(sealed)
    verify_manifest(sealed)


def test_missing_added_and_unsealed_are_named(sealed):
    (sealed / "third.txt").write_text("three")
    with pytest.raises(DamagedError, match=r"third\.txt: not listed"):
        verify_manifest(sealed)
    (sealed / "third.txt").unlink()
    (sealed / "below" / "second.txt").unlink()
    with pytest.raises(DamagedError, match=r"second\.txt: missing"):
        verify_manifest(sealed)
    (sealed / MANIFEST).unlink()
    with pytest.raises(DamagedError, match="found no MANIFEST"):
        verify_manifest(sealed)


def test_a_manifest_cannot_lead_outside(sealed):
    (sealed / MANIFEST).write_text("0" * 64 + "  ../first.bin\n")
    with pytest.raises(DamagedError, match="line 1 is damaged"):
        verify_manifest(sealed)


def test_lines_end_with_newlines_alone(sealed):
    content = (sealed / MANIFEST).read_bytes()
    (sealed / MANIFEST).write_bytes(content.replace(b"\n", b"\x0b", 1))  # one bit off; str.splitlines cuts there too
    with pytest.raises(DamagedError, match="missing, but listed"):
        verify_manifest(sealed)


def test_a_failure_leaves_nothing_and_a_taken_place_stays(tmp_path, sealed):
    with pytest.raises(RuntimeError), sealed_directory(tmp_path / "other") as directory:
        (directory / "file").write_text("x")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["sealed"]
    with pytest.raises(ValueError, match="already exists"), sealed_directory(sealed):
        pass
    verify_manifest(sealed)


def test_nothing_is_put_inside_a_sealed_directory(sealed):
    with pytest.raises(ValueError, match="which is sealed by MANIFEST"), sealed_directory(sealed / "below" / "new"):
        pass
    verify_manifest(sealed)


def test_write_file_replaces_whole_or_not_at_all(tmp_path):
    write_file(tmp_path / "file", b"one")
    with pytest.raises(TypeError):
        write_file(tmp_path / "file", "two")  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "file").read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_of_the_system_names_the_file(tmp_path):
    path = tmp_path / "file.txt"
    for write in (lambda: write_file(path, b"new"), lambda: _write_sealed(tmp_path / "file.txt-sealed")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match=r"No space left on device: '.*file\.txt"):
                write()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="other"), named_errors(path):
        raise OSError(2, "No such file or directory", "other")


def _write_sealed(directory):
    with sealed_directory(directory) as temporary:
        (temporary / "a").write_text("a")


def test_a_seal_that_was_killed_is_no_part_of_the_next(tmp_path):
    (tmp_path / "file").write_text("content")
    (tmp_path / f".{MANIFEST}.o2c2vsef").write_text("0123  fi")
    seal_directory(tmp_path)
    verify_manifest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", MANIFEST}

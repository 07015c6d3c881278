import fcntl
from pathlib import Path

import pytest

from shared_tokenizer.locks import LockedError, locked_file


def test_a_lock_is_held_by_one_and_says_by_whom(tmp_path: Path):
    with locked_file(tmp_path / "lock") as file:
        file.write("pid 7\n")
        file.flush()
        with pytest.raises(LockedError, match=r"^pid 7$"), locked_file(tmp_path / "lock"):
            pass
    with locked_file(tmp_path / "lock"):
        pass


def test_a_moment_in_which_another_looks_at_the_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "lock"
    with path.open("a+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        waits = []

        def look_away(seconds: float) -> None:
            waits.append(seconds)
            fcntl.flock(looking, fcntl.LOCK_UN)

        monkeypatch.setattr("time.sleep", look_away)
        with locked_file(path), pytest.raises(BlockingIOError):
            fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert len(waits) == 1


def test_the_lock_of_a_file_that_its_holder_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, real, calls = tmp_path / "lock", fcntl.flock, []

    def holder_ends_first(file, operation):
        calls.append(operation)
        if len(calls) == 1:
            path.unlink()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", holder_ends_first)
    with locked_file(path):
        assert path.exists() and len(calls) == 2
        with pytest.raises(LockedError), locked_file(path):
            pass


def test_a_folder_that_is_gone_is_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError), locked_file(tmp_path / "gone" / "lock"):
        pass

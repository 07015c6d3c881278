"""The folder of a shelf on disk: its lock, its places, and copies that are whole or not there."""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jaxlm.common.shelf.chunks import FileDigests, copy_with_digests
from shared_tokenizer.locks import LockedError, locked_file
from shared_tokenizer.manifest import MANIFEST, manifest_lines, named_errors, refuse_inside_sealed, verify_manifest

TRASH = ".trash"
_LOCK, _BEGUN = ".lock", ".begun-"
_PATIENCE_SECONDS = 60.0


def open_root(root: Path) -> None:
    """Create the folder of a shelf. Raises ValueError where it cannot be one."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"root: {root} is a file, expected the folder of the shelf; name another with --root")
    refuse_inside_sealed(root / "any")
    root.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of a shelf, for as long as it takes to rename folders; wait for another process that holds it."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked_file(root / _LOCK))
                break
            except LockedError as error:
                if time.monotonic() > deadline:
                    raise ValueError(f"{root}: another process has locked this shelf for a minute; end it") from error
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def begun_folder(root: Path) -> Iterator[Path]:
    """Yield an empty folder on the shelf's disk that becomes part of it by a rename; what is left of it is removed.

    Folders that a kill left behind are removed too: nobody holds their locks.
    """
    for left in root.glob(f"{_BEGUN}*"):
        with contextlib.suppress(LockedError, OSError), locked_file(left / _LOCK):
            shutil.rmtree(left)
    begun = Path(tempfile.mkdtemp(prefix=_BEGUN, dir=root))
    try:
        with locked_file(begun / _LOCK):
            folder = begun / "new"
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def move(source: Path, destination: Path) -> None:
    """Rename a folder to a place that is free, and flush both sides to disk."""
    destination.parent.mkdir(exist_ok=True)
    os.rename(source, destination)
    for folder in {source.parent, destination.parent}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_model(source: Path, destination: Path) -> dict[str, FileDigests]:
    """Copy a model directory or file, without hidden files, and return the digests of its files by name.

    Raises DamagedError where a sealed model does not match its seal, and ValueError where it changes meanwhile or holds
    something that is no file.
    """
    before = _signatures(source)
    if not before:
        raise ValueError(f"{source}: found no file, expected a model")
    destination.mkdir()
    found: dict[str, FileDigests] = {}
    try:
        for name in before:
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with named_errors(target):
                found[name] = copy_with_digests(source if source.is_file() else source / name, target)
        after = _signatures(source)
    except FileNotFoundError as error:
        raise _changed(source, str(error.filename)) from error
    if differing := sorted(name for name in {*before, *after} if before.get(name) != after.get(name)):
        raise _changed(source, differing[0])
    if MANIFEST in found:
        listed = {name: digests.sha256 for name, digests in found.items() if name != MANIFEST}
        if manifest_lines(listed) != (destination / MANIFEST).read_bytes():
            verify_manifest(destination)  # which names the file, or finds lines in another order
    return found


def _changed(source: Path, name: str) -> ValueError:
    return ValueError(f"{source}: {name} changed while it was copied; add the model when nobody writes to it")


def _signatures(source: Path) -> dict[str, tuple[int, int, int]]:
    """Return the size, time and identity of the files of a model, by name."""
    paths = [source] if source.is_file() else sorted(source.rglob("*"))
    found: dict[str, tuple[int, int, int]] = {}
    for path in paths:
        name = path.name if source.is_file() else path.relative_to(source).as_posix()
        is_hidden = any(part.startswith(".") or part == "__pycache__" for part in Path(name).parts)
        if is_hidden or path.is_dir():
            continue
        status = path.stat()  # of a link that of its file, as caches of the hub have them
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: is no regular file, expected the files of a model")
        found[name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found

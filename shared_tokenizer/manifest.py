"""Directories that are whole or absent, and can prove it.

A sealed directory ends with MANIFEST.sha256 (the format of `sha256sum`) over every file in it. Artifacts,
checkpoints, tokenizers and token shards all carry one, and loading checks it: a flipped bit is found, never
trained on.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

MANIFEST = "MANIFEST.sha256"


class DamagedError(ValueError):
    """A sealed directory is not what it was when it was written."""


def write_manifest(directory: Path) -> None:
    """Seal a directory: write the digest of every file below it, and see both onto the disk."""
    write_file(directory / MANIFEST, manifest_lines({name: _digest(directory / name) for name in _files(directory)}))


def manifest_lines(sha256: Mapping[str, str]) -> bytes:
    """The content of a manifest, from the digest of every file."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sha256.items())).encode()


def seal_directory(directory: Path, sha256: Mapping[str, str] | None = None) -> None:
    """Flush every file to disk, then seal the directory, with digests that were taken when the files were written."""
    for name in _files(directory):
        _sync_file(directory / name)
    if sha256 is None:
        write_manifest(directory)
    else:
        write_file(directory / MANIFEST, manifest_lines(sha256))
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            _sync_directory(path)


def verify_manifest(directory: Path) -> None:
    """Check every file against the manifest.

    Raises DamagedError naming the first file that is missing, altered or not listed, or the manifest itself.
    """
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise DamagedError(
            f"{directory}: found no {MANIFEST}; it was not written to its end, or not by this program; "
            "copy or write it again"
        )
    listed = _parse(manifest)
    for name in listed:
        if not (directory / name).is_file():
            raise DamagedError(f"{directory / name}: missing, but listed in {MANIFEST}")
    if extra := set(_files(directory)) - set(listed):
        raise DamagedError(f"{directory / min(extra)}: not listed in {MANIFEST}; remove it or restore the directory")
    for name, expected in listed.items():
        if (found := _digest(directory / name)) != expected:
            raise DamagedError(
                f"{directory / name}: damaged, found sha256 {found[:12]}..., expected {expected[:12]}...; "
                "restore it from a copy or write it again"
            )


def _parse(manifest: Path) -> dict[str, str]:
    listed: dict[str, str] = {}
    text = manifest.read_bytes().decode("utf-8", "replace")
    for number, line in enumerate(text.split("\n")[:-1], 1):
        digest, separator, name = line.partition("  ")
        inside = name and not os.path.isabs(name) and ".." not in Path(name).parts
        if len(digest) != 64 or not separator or not inside or name in listed:
            raise DamagedError(f"{manifest}: line {number} is damaged: {line[:100]!r}")
        listed[name] = digest
    if not text.endswith("\n"):
        raise DamagedError(f"{manifest}: damaged, its last line has no end")
    return listed


def _files(directory: Path) -> list[str]:
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    # Python leaves its cache beside a model file that another program runs.
    return sorted(path.as_posix() for path in found if path != Path(MANIFEST) and path.parts[0] != "__pycache__")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: write beside it, flush to disk, rename."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Fill a file beside `path`; on success flush it to disk and rename it there, otherwise remove it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync_file(temporary)
        temporary.chmod(0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextlib.contextmanager
def sealed_directory(directory: Path) -> Iterator[Path]:
    """Build a directory beside its final place; on success seal it, flush it to disk and rename it there.

    On any exception nothing is left behind. Raises ValueError where the final place is taken.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: is a file, expected a directory to create")
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory}: already exists and is not empty; remove it or choose another place")
    refuse_inside_sealed(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        seal_directory(temporary)
        os.replace(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_directory(directory.parent)


def refuse_inside_sealed(path: Path) -> None:
    """Raise ValueError where a new file or folder at `path` would break a sealed directory around it."""
    for parent in path.absolute().parents:
        if (parent / MANIFEST).is_file():
            raise ValueError(f"{path}: lies inside {parent}, which is sealed by {MANIFEST}; choose another place")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

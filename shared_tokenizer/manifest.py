"""Sealed directories: complete or absent, and protected against damage.

A sealed directory holds MANIFEST.sha256 (in the format of `sha256sum`), which lists every file in it. Artifacts,
checkpoints, tokenizers and token shards are sealed. Loading or copying them compares every file with its digest, so no
run trains on a flipped bit.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

MANIFEST = "MANIFEST.sha256"


class DamagedError(ValueError):
    """Error: the files of a sealed directory do not match its manifest."""


def write_manifest(directory: Path) -> None:
    """Write MANIFEST.sha256 over every file below a directory, and flush it to disk."""
    write_file(directory / MANIFEST, manifest_lines({name: _digest(directory / name) for name in _files(directory)}))


def manifest_lines(sha256: Mapping[str, str]) -> bytes:
    """Return the content of a manifest for digests, as hex, by file name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sha256.items())).encode()


def seal_directory(directory: Path, sha256: Mapping[str, str] | None = None) -> None:
    """Flush every file to disk, then write the manifest.

    `sha256` holds the digests, as hex, that were taken when the files were written; None reads every file again.
    """
    for begun in directory.glob(f".{MANIFEST}.*"):  # of a seal that was killed
        begun.unlink()
    for name in _files(directory):
        _sync_file(directory / name)
    if sha256 is None:
        write_manifest(directory)
    else:
        write_file(directory / MANIFEST, manifest_lines(sha256))
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            _sync_directory(path)


def verify_manifest(directory: Path, include: Callable[[str], bool] = lambda name: True) -> None:
    """Compare every file with the manifest, or only those whose names, relative to the directory, `include` takes.

    Raises DamagedError with the name of the first file that is missing, altered or not listed, or of the manifest.
    """
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise DamagedError(
            f"{directory}: found no {MANIFEST}; the directory is incomplete, or another program has written it; "
            "copy or write it again"
        )
    listed = {name: digest for name, digest in _parse(manifest).items() if include(name)}
    for name in listed:
        if not (directory / name).is_file():
            raise DamagedError(f"{directory / name}: missing, but listed in {MANIFEST}")
    if extra := set(filter(include, _files(directory))) - set(listed):
        raise DamagedError(f"{directory / min(extra)}: not listed in {MANIFEST}; remove it or restore the directory")
    for name, expected in listed.items():
        if (found := _digest(directory / name)) != expected:
            raise DamagedError(
                f"{directory / name}: damaged, found sha256 {found[:12]}..., expected {expected[:12]}...; "
                "restore it from a copy or write it again"
            )


def verify_where_sealed(directory: Path, include: Callable[[str], bool] = lambda name: True) -> None:
    """Compare the files of a directory that `include` takes with its seal, or with the seal around it that lists them.

    Without a seal there is nothing to compare. Raises DamagedError as `verify_manifest` does.
    """
    directory = directory.absolute()
    around, below = directory.parent, f"{directory.name}/"
    if (directory / MANIFEST).is_file():
        verify_manifest(directory, include)
    elif (around / MANIFEST).is_file() and any(name.startswith(below) for name in _parse(around / MANIFEST)):
        verify_manifest(around, lambda name: name.startswith(below) and include(name.removeprefix(below)))


def _parse(manifest: Path) -> dict[str, str]:
    """Return the digest of every listed file. Raises DamagedError on a malformed line."""
    listed: dict[str, str] = {}
    text = manifest.read_bytes().decode("utf-8", "replace")
    for number, line in enumerate(text.split("\n")[:-1], 1):
        digest, separator, name = line.partition("  ")
        inside = name and not os.path.isabs(name) and ".." not in Path(name).parts
        if len(digest) != 64 or not separator or not inside or name in listed:
            raise DamagedError(f"{manifest}: line {number} is damaged: {line[:100]!r}; write the directory again")
        listed[name] = digest
    if not text.endswith("\n"):
        raise DamagedError(f"{manifest}: damaged, its last line is incomplete; write the directory again")
    return listed


def _files(directory: Path) -> list[str]:
    """Return the names of all files that a manifest lists, sorted."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    # Python writes its cache next to a model file that another program imports.
    return sorted(path.as_posix() for path in found if path != Path(MANIFEST) and path.parts[0] != "__pycache__")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Let an error of the system name the file: that of a full disk does not, and numpy's neither."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or str(path) in str(error):
            raise
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: write a temporary file next to it, flush it to disk, rename it."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to `path`. On success flush it to disk and rename it to `path`, else remove it.

    An OSError names `path` where it names no file.
    """
    with named_errors(path), _replaced(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync_file(temporary)
        temporary.chmod(0o644)  # mkstemp lets only its owner read it
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextlib.contextmanager
def sealed_directory(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory. On success seal it, flush it to disk and rename it to `directory`, else remove it.

    Raises ValueError where `directory` is a file, is not empty, or lies inside a sealed directory. An OSError names
    `directory` where it names no file.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: is a file, expected a directory to create")
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory}: already exists and is not empty; remove it or choose another path")
    refuse_inside_sealed(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with named_errors(directory):
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
    """Raise ValueError where `path` lies inside a sealed directory, which a new file would break."""
    for parent in path.absolute().parents:
        if (parent / MANIFEST).is_file():
            raise ValueError(f"{path}: lies inside {parent}, which is sealed by {MANIFEST}; choose another path")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

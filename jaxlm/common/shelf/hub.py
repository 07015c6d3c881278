"""The shelf and the Hugging Face hub: a model pushed and pulled, pinned to a commit, its files compared afterwards."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from jaxlm.common.model_name import MODEL
from jaxlm.common.shelf.card import CARD, card_text
from jaxlm.common.shelf.entry import Shelved
from jaxlm.common.shelf.place import begun_folder, open_root
from jaxlm.common.shelf.shelf import Shelf
from shared_tokenizer.manifest import MANIFEST, manifest_lines, verify_manifest

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
ATTRIBUTES = ".gitattributes"
# Files that the hub keeps outside git, with their sha256.
_LARGE = ("*.safetensors", "*.gguf", "*.model", "tokenizer.json")
# Files of a model that may be read here; nothing that could be run.
_WANTED = ("*.json", "*.jsonl", "*.safetensors", "*.gguf", "*.model", "*.txt", "*.jinja", MANIFEST)


def push(shelf: Shelf, name: str, repository: str, *, private: bool, hub: Any = None) -> str:
    """Write a model and its card into a repository of the hub as one commit, and return the id of that commit.

    The files of the repository are compared with those of the shelf before and after. Raises ValueError where the model
    is damaged, or a file of the commit is another than was sent.
    """
    _check_repository(repository)
    if differences := shelf.verify(name):
        raise ValueError(f"{name}: is damaged on the shelf and was not sent: {differences[0]}")
    hub, shelved = hub or _hub(), shelf.find(name)
    contents = _contents(shelved, repository)
    from huggingface_hub import CommitOperationAdd

    hub.create_repo(repository, repo_type="model", private=private, exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
    commit = hub.create_commit(repository, operations, commit_message=f"{shelved.name}")
    there = {
        file.path: file
        for file in hub.list_repo_tree(repository, recursive=True, revision=commit.oid)
        if hasattr(file, "blob_id")
    }
    for path, content in contents.items():
        if path not in there or not _is_same(there[path], content):
            raise ValueError(f"{repository}: {path} of commit {commit.oid} is not the file that was sent; push again")
    return commit.oid


def pull(
    shelf: Shelf, repository: str, name: str | None = None, *, revision: str | None = None, hub: Any = None
) -> Shelved:
    """Copy a model of the hub onto the shelf, under the name of its repository or another, and compare its files.

    A branch is pinned to its commit. Files are compared with the digests that the hub states for that commit, and with
    the seal where the model has one. Raises ValueError or DamagedError where they differ; then the shelf is as it was.
    """
    _check_repository(repository)
    hub = hub or _hub()
    commit = hub.model_info(repository, revision=revision).sha
    open_root(shelf.root)
    with begun_folder(shelf.root) as folder:
        target = folder / MODEL
        hub.snapshot_download(repository, revision=commit, local_dir=str(target), allow_patterns=list(_WANTED))
        shutil.rmtree(target / ".cache", ignore_errors=True)
        for file in hub.list_repo_tree(repository, recursive=True, revision=commit):
            path = target / file.path
            if hasattr(file, "blob_id") and path.is_file() and not _is_same(file, path):
                raise ValueError(f"{repository}: {file.path} is not the file of commit {commit}; pull again")
        model = target
        if (target / MANIFEST).is_file():
            ours = (CARD, ATTRIBUTES)
            verify_manifest(target, lambda path: path not in ours)
            sealed = {
                path.relative_to(target).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in target.rglob("*")
                if path.is_file() and path.name != MANIFEST
            }
            (target / MANIFEST).write_bytes(manifest_lines(sealed))  # without the card, which the shelf writes itself
        elif not (target / "config.json").is_file() and len(files := sorted(target.glob("*.gguf"))) == 1:
            model = files[0]
        origin = f"{repository} of the hub, commit {commit}"
        return shelf.add(model, name or repository.partition("/")[2], origin=origin)


def _contents(shelved: Shelved, repository: str) -> dict[str, Path | bytes]:
    """Return the files of a repository: those of the model, the card, and the seal over all of them.

    With the card in the seal, a copy of the repository is a model that loads as it is.
    """
    folder = shelved.folder / MODEL
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    files[CARD] = card_text(shelved, repository).encode()
    files[ATTRIBUTES] = attribute_lines().encode()
    if MANIFEST in files:
        del files[MANIFEST]
        files[MANIFEST] = manifest_lines({path: _sha256(content) for path, content in files.items()})
    return files


def attribute_lines() -> str:
    """Return the lines by which git keeps large files outside of it."""
    return "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LARGE)


def _is_same(there: Any, content: Path | bytes) -> bool:
    """Return True if a file of the hub has the digest that it states: of large ones sha256, of others that of git."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if there.size != size:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == _sha256(content)
    data = content if isinstance(content, bytes) else content.read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0%b" % (size, data), usedforsecurity=False).hexdigest()


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_repository(repository: str) -> None:
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 96 or ".." in repository:
        raise ValueError(f"repository: found {repository[:80]!r}, expected OWNER/NAME of the Hugging Face hub")


def _hub() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ValueError("the hub is read by an extra that is not installed; pip install 'jaxlm[hub]'") from error
    return HfApi(library_name="jaxlm")

"""The identity of a model's files."""

import hashlib
from pathlib import Path

from shared_tokenizer.manifest import MANIFEST


def files_fingerprint(path: Path) -> str:
    """Return the sha256, as hex, of a model directory's seal, or of the config and weights where it has none.

    `path` may be one file, such as a GGUF.
    """
    if (path / MANIFEST).is_file():
        files = [path / MANIFEST]
    else:
        files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("config.json")])
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

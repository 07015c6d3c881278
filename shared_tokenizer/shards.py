"""Token shards: plain .npy files of ids that anyone can open, and a manifest.json that says what they are.

A document is stored as begin-of-text (where the tokenizer has one), its ids, end-of-text.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared_tokenizer.documents import Document, is_validation
from shared_tokenizer.tokenizer import Tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
BATCH_CHARACTERS = 1 << 20


class _SplitWriter:
    """Collects the tokens of one split and writes them out shard by shard."""

    def __init__(self, directory: Path, split: Split, dtype: str, shard_tokens: int):
        self._directory, self._split, self._dtype, self._shard_tokens = directory, split, dtype, shard_tokens
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0
        self.summary: dict[str, Any] = {"tokens": 0, "documents": 0, "bytes": 0, "shards": []}

    def add(self, ids: list[int], text_bytes: int) -> None:
        self._pending.append(np.array(ids, self._dtype))
        self._pending_tokens += len(ids)
        self.summary["documents"] += 1
        self.summary["bytes"] += text_bytes
        while self._pending_tokens >= self._shard_tokens:
            self._write(self._shard_tokens)

    def close(self) -> None:
        if self._pending_tokens:
            self._write(self._pending_tokens)

    def _write(self, count: int) -> None:
        tokens = np.concatenate(self._pending)
        name = f"{self._split}-{len(self.summary['shards']):05d}.npy"
        np.save(self._directory / name, tokens[:count])
        self._pending, self._pending_tokens = [tokens[count:]], len(tokens) - count
        self.summary["shards"].append({"file": name, "tokens": count})
        self.summary["tokens"] += count


def write_shards(
    directory: Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    val_fraction: float,
    shard_tokens: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Write both splits, the tokenizer and the manifest into an existing empty directory; returns the manifest.

    `val_fraction` of the documents (by hash) is held out. `options` is recorded as given.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    writers = {split: _SplitWriter(directory, split, dtype, shard_tokens) for split in SPLITS}
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for batch in _batches(documents):
        texts = [document.text for document in batch]
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            split: Split = "val" if is_validation(text, val_fraction) else "train"
            writers[split].add([*start, *ids, tokenizer.eos_id], len(text.encode("utf-8")))
    for writer in writers.values():
        writer.close()
    manifest = {
        "format_version": FORMAT_VERSION,
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "options": options,
        "splits": {split: writer.summary for split, writer in writers.items()},
    }
    (directory / TOKENIZER).mkdir()
    tokenizer.save(directory / TOKENIZER)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return manifest


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a shard set; raises ValueError where the directory does not hold one."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{directory}: found no {MANIFEST}, expected token shards (scripts/prepare_data.py makes them)"
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; prepare the data again") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: found a {type(manifest).__name__}, expected an object; prepare the data again")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path}: found format_version {manifest.get('format_version')!r}, expected {FORMAT_VERSION}")
    if missing := {"dtype", "tokenizer_fingerprint", "options", "splits"} - set(manifest):
        raise ValueError(f"{path}: missing {min(missing)!r}; prepare the data again")
    return manifest


@dataclass(frozen=True)
class TokenShards:
    """One split as a single sequence of ids, memory-mapped."""

    arrays: tuple[np.ndarray, ...]

    @classmethod
    def open(cls, directory: Path, split: Split) -> "TokenShards":
        """Open a split; raises ValueError where a shard is not the array that the manifest describes."""
        manifest = read_manifest(directory)
        arrays = []
        for shard in manifest["splits"][split]["shards"]:
            path = Path(directory) / shard["file"]
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(f"{path}: not a token shard: {error}") from error
            if array.dtype != manifest["dtype"] or array.shape != (shard["tokens"],):
                raise ValueError(
                    f"{path}: found {array.dtype} {list(array.shape)}, expected {manifest['dtype']} [{shard['tokens']}]"
                )
            arrays.append(array)
        return cls(tuple(arrays))

    def __len__(self) -> int:
        return sum(len(array) for array in self.arrays)

    def read(self, start: int, count: int) -> np.ndarray:
        """Ids `[count]` from position `start` on, int32, across shard borders."""
        parts = []
        for array in self.arrays:
            if count > 0 and start < len(array):
                part = array[start : start + count]
                parts.append(part)
                count -= len(part)
            start = max(0, start - len(array))
        return np.concatenate(parts).astype(np.int32)

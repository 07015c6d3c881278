"""Token shards: plain .npy files of ids, and a manifest.json that describes them.

A shard NAME consists of
- NAME.npy: the ids of its documents one after another, uint16 or uint32 `[tokens]`;
- NAME.ends.npy: the position after the last token of each document, int64 `[documents]`;
- NAME.mask.npy, in a set of chats: the loss mask, bool `[tokens]`.
A text is stored as begin-of-text (where the tokenizer has one), its ids, and end-of-text. A document never crosses
the border of a shard.
"""

import hashlib
import io
import json
import re
import shlex
import tokenize
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsspec
import numpy as np

from shared_tokenizer.manifest import named_errors

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
_ARRAY = b"\x93NUMPY"
# Of numpy, whose headers are Python expressions.
_HEADER_ERRORS = (
    ValueError,
    EOFError,
    OverflowError,
    SyntaxError,
    TypeError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
    Warning,
)


def ids_dtype(vocab_size: int) -> str:
    """Return the smallest dtype that holds every id: uint16 or uint32."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


class ShardWriter:
    """Writer of the shards of one slice and split: it starts a new shard after every `shard_tokens` tokens.

    `shards` holds the manifest entries of the written shards, `sha256` the digest of each file.
    """

    def __init__(
        self,
        filesystem: fsspec.AbstractFileSystem,
        directory: str,
        stem: str,
        dtype: str,
        shard_tokens: int,
        *,
        masked: bool,
    ):
        self._filesystem, self._directory, self._stem = filesystem, directory, stem
        self._dtype, self._shard_tokens, self._masked = dtype, shard_tokens, masked
        self.shards: list[dict[str, Any]] = []
        self.sha256: dict[str, str] = {}
        self._clear()

    def _clear(self) -> None:
        self._ids: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._ends: list[int] = []

    def add(self, ids: np.ndarray, mask: np.ndarray | None) -> None:
        """Add a document: ids `[tokens]` and its loss mask, bool `[tokens]`; None counts every token."""
        self._ids.append(ids.astype(self._dtype))
        if self._masked:
            self._masks.append(np.ones(len(ids), bool) if mask is None else mask)
        self._ends.append(len(ids) + (self._ends[-1] if self._ends else 0))
        if self._ends[-1] >= self._shard_tokens:
            self._write()

    def close(self) -> None:
        """Write the last shard."""
        if self._ends:
            self._write()

    def _write(self) -> None:
        name = f"{self._stem}-{len(self.shards):02d}"
        arrays = {"": np.concatenate(self._ids), ".ends": np.array(self._ends, np.int64)}
        if self._masked:
            arrays[".mask"] = np.concatenate(self._masks)
        self.shards.append(
            {
                "name": name,
                "tokens": len(arrays[""]),
                "documents": len(self._ends),
                "learned": int(arrays[".mask"].sum()) if self._masked else len(arrays[""]),
            }
        )
        self.sha256 |= {f"{name}{kind}.npy": self._save(f"{name}{kind}.npy", array) for kind, array in arrays.items()}
        self._clear()

    def _save(self, name: str, array: np.ndarray) -> str:
        buffer = io.BytesIO()
        np.save(buffer, array)
        path = f"{self._directory}/{name}"
        with named_errors(path):
            self._filesystem.pipe_file(path, buffer.getvalue())
        return hashlib.sha256(buffer.getbuffer()).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a shard set. Raises ValueError where the directory holds none."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{directory}: found no {MANIFEST}, expected token shards{_way_to_shards(Path(directory))}")
    return parse_manifest(path.read_bytes(), str(path))


def _way_to_shards(path: Path) -> str:
    """Return how token shards are made of what a path holds."""
    if path.with_name(f"{path.name}.partial").is_dir():
        return "; its preparation is not finished: give its command once more"
    if not path.exists():
        return " (jaxlm prepare makes them)"
    words = ["jaxlm", "prepare", "--input", str(path), "--vocab_size", "4096", "--output_dir", f"{path}-shards"]
    return f"; if it holds texts, prepare them first: {shlex.join(words)}"


def parse_manifest(content: bytes, path: str) -> dict[str, Any]:
    """Return the manifest that a file holds. Raises ValueError where it is damaged or of another format version."""
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}; prepare the data again") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: found a {type(manifest).__name__}, expected an object; prepare the data again")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: found format_version {manifest.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "prepare the data again"
        )
    if missing := {"dtype", "tokenizer_fingerprint", "options", "splits", "masked"} - set(manifest):
        raise ValueError(f"{path}: missing {min(missing)!r}; prepare the data again")
    expected = {"dtype": str, "tokenizer_fingerprint": str, "options": dict, "splits": dict, "masked": bool}
    for name, kind in expected.items():
        if not isinstance(manifest[name], kind):
            raise ValueError(f"{path}: {name}: found {str(manifest[name])[:100]}, expected {kind.__name__}")
    for split in SPLITS:
        _check_split(manifest["splits"].get(split), f"{path}: splits.{split}")
    return manifest


def _check_split(found: Any, where: str) -> None:
    """Raise ValueError where a split of a manifest does not name its shards and count their tokens."""
    shards = found.get("shards") if isinstance(found, dict) else None
    if not isinstance(shards, list):
        raise ValueError(f"{where}: found {str(found)[:100]}, expected its shards; prepare the data again")
    for shard in shards:
        name = shard.get("name") if isinstance(shard, dict) else None
        # A name with a separator would lead out of the directory.
        is_shard = isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)
        counts = [shard.get(count) for count in ("tokens", "documents")] if is_shard else []
        if not counts or not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"{where}: found {str(shard)[:100]}, expected name, tokens and documents of a shard")


class Span(NamedTuple):
    """Consecutive tokens: ids int32, loss mask bool, and True at the first token of a document, all `[count]`."""

    ids: np.ndarray
    loss_mask: np.ndarray
    is_document_start: np.ndarray


@dataclass(frozen=True)
class TokenShards:
    """One split as a single, memory-mapped sequence of ids.

    `arrays`, `ends` and `masks` hold one array per shard; `masks` is None where the loss counts every token.
    """

    arrays: tuple[np.ndarray, ...]
    ends: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] | None = None

    @classmethod
    def open(cls, directory: Path, split: Split) -> "TokenShards":
        """Open a split. Raises ValueError where a shard does not have the dtypes and shapes of the manifest."""
        directory = Path(directory)
        manifest = read_manifest(directory)
        shards = manifest["splits"][split]["shards"]

        def load(kind: str, dtype: str, count: str) -> tuple[np.ndarray, ...]:
            return tuple(_load(directory / f"{shard['name']}{kind}.npy", dtype, shard[count]) for shard in shards)

        masks = load(".mask", "bool", "tokens") if manifest["masked"] else None
        ends = load(".ends", "int64", "documents")
        for shard, positions in zip(shards, ends, strict=True):
            _check_ends(directory / f"{shard['name']}.ends.npy", positions, shard["tokens"])
        return cls(load("", manifest["dtype"], "tokens"), ends, masks)

    @classmethod
    def from_documents(cls, documents: Iterable[Sequence[int]]) -> "TokenShards":
        """Return documents in memory, with every token in the loss mask."""
        arrays = [np.asarray(document, np.int32) for document in documents]
        ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        return cls((np.concatenate([np.zeros(0, np.int32), *arrays]),), (ends,))

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Return the start position of each shard and the end of the last, int64 `[shards + 1]`."""
        return np.cumsum([0, *(len(array) for array in self.arrays)])

    @cached_property
    def document_ends(self) -> np.ndarray:
        """Return the end position of each document in the whole sequence, int64 `[documents]`."""
        parts = [ends + offset for ends, offset in zip(self.ends, self._offsets, strict=False)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def read(self, start: int, count: int) -> Span:
        """Return `count` tokens from position `start` on, across shard borders; fewer at the end."""
        first = int(np.searchsorted(self._offsets, start, "right")) - 1
        parts = []
        for i in range(first, len(self.arrays)):
            local = start - int(self._offsets[i])
            if count <= 0:
                break
            part = self._part(i, local, count)
            parts.append(part)
            start, count = start + len(part.ids), count - len(part.ids)
        return Span(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _part(self, i: int, start: int, count: int) -> Span:
        """Return at most `count` tokens of shard `i`, from its position `start` on."""
        ids = self.arrays[i][start : start + count].astype(np.int32)
        loss_mask = np.ones(len(ids), bool) if self.masks is None else np.asarray(self.masks[i][start : start + count])
        is_document_start = np.zeros(len(ids), bool)
        # A document begins where the one before ends.
        inside = np.searchsorted(self.ends[i], [start, start + len(ids)])
        is_document_start[np.asarray(self.ends[i][inside[0] : inside[1]]) - start] = True
        is_document_start[0] |= start == 0
        return Span(ids, loss_mask, is_document_start)


def _check_ends(path: Path, ends: np.ndarray, tokens: int) -> None:
    """Raise ValueError where documents do not end one after another, the last with the shard."""
    last = int(ends[-1]) if len(ends) else 0
    if last != tokens or np.any(ends[1:] < ends[:-1]) or (len(ends) and ends[0] < 0):
        raise ValueError(f"{path}: found documents up to token {last}, expected them in order up to {tokens}")


def _load(path: Path, dtype: str, count: int) -> np.ndarray:
    try:
        # Without this prefix numpy takes a file for an archive or a pickle.
        with path.open("rb") as file:
            is_array = file.read(len(_ARRAY)) == _ARRAY
        with warnings.catch_warnings(action="error"):  # of headers that only an old numpy could have written
            array = np.load(path, mmap_mode="r", allow_pickle=False) if is_array else None
    except (OSError, *_HEADER_ERRORS) as error:
        raise ValueError(f"{path}: not a token shard: {error}") from error
    if array is None:
        raise ValueError(f"{path}: not a token shard: it does not begin as a .npy file does")
    if array.dtype != dtype or array.shape != (count,):
        raise ValueError(f"{path}: found {array.dtype} {list(array.shape)}, expected {dtype} [{count}]")
    return array

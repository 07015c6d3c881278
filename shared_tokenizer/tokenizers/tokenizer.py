"""The interface of all tokenizers: text -> ids -> text.

`sentencepiece_tokenizer` and `json_tokenizer` implement it; `load.load_tokenizer` opens either.
"""

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np


class Tokenizer(ABC):
    """A loaded tokenizer.

    Special tokens are inserted by id and never parsed from text: `encode("<|im_end|>")` returns the ids of these ten
    characters.
    """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without begin and end token. Raises ValueError on a lone surrogate."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        """Return the ids of each text; `num_threads` None uses all cores. Raises ValueError on a lone surrogate."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write all files that transformers and `load_tokenizer` read into an existing directory."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Return the number of ids, with special ones."""

    @property
    @abstractmethod
    def bos_id(self) -> int | None:
        """Return the id that begins a document, None where documents begin without one."""

    @property
    @abstractmethod
    def eos_id(self) -> int:
        """Return the id that ends a document."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """Return the ids at which a generation stops: `eos_id`, then those that the model's files name besides."""
        return (self.eos_id,)

    @property
    def notes(self) -> list[str]:
        """Return a line for each part that the tokenizer's files state differently, and how it was read."""
        return []

    @property
    @abstractmethod
    def pad_id(self) -> int | None:
        """Return the id of padding, None where there is none."""

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[str, int]:
        """Return the ids of the special tokens by their spelling."""

    @cached_property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return the sha256 of the tokenizer, as hex: token shards and checkpoints identify their tokenizer by it."""

    @cached_property
    @abstractmethod
    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes of each id `[vocab_size]`; empty for special tokens."""

    @property
    def strips_first_space(self) -> bool:
        """Return True if encoding puts a space before the text, which decoding removes."""
        return False

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Return the UTF-8 bytes without a token: `encode` silently drops characters that need one."""
        return frozenset()

    @property
    def start_ids(self) -> list[int]:
        """Return the ids that begin a document: `bos_id`, or none."""
        return [] if self.bos_id is None else [self.bos_id]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each token, int32 `[vocab_size]`; 0 for special tokens."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of the start of a document: `start_ids`, then the text.

        Raises ValueError where the text holds lone surrogates (bytes of a terminal that are not UTF-8).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt: found {text[error.start]!r} at {error.start}, expected UTF-8 text") from error
        return [*self.start_ids, *self.encode(text)]

    def encode_to_continue(self, text: str) -> list[int]:
        """Return the ids of `encode_prompt`, or the end token where there are none, so that a model can continue them.

        There are none for an empty text of a tokenizer without a begin token (Qwen's). In training, documents of such a
        tokenizer follow the end of another.
        """
        return self.encode_prompt(text) or [self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids. Special tokens decode to nothing, bytes that are not UTF-8 to U+FFFD."""
        stream = TextStream(self)
        return "".join([stream.add(token) for token in ids]) + stream.end()


class TextStream:
    """Decoder of one token at a time, which never returns an incomplete character.

    Ids beyond those of the tokenizer, which a model with a padded vocabulary has, decode to nothing.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._pieces = tokenizer.pieces
        self._strip = tokenizer.strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Return the text that this token completes, possibly empty."""
        piece = self._pieces[int(token)] if token < len(self._pieces) else b""
        if self._strip and piece:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def end(self) -> str:
        """Return the rest of the text: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)


def check_unicode(text: str) -> None:
    """Raise UnicodeEncodeError, a ValueError, where a text holds a lone surrogate."""
    text.encode("utf-8")


def sha256(*contents: bytes) -> str:
    """Return the sha256, as hex, of contents one after another."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()

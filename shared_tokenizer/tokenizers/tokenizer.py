"""Tokenizer: text to ids and back, one interface for every kind, the same in every program.

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

    Special tokens are inserted by id and never parsed out of text: `encode("<|im_end|>")` gives the ids of
    these ten characters.
    """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without a begin or an end token."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        """Ids of many texts; `num_threads` None uses all cores."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write every file that transformers and `load_tokenizer` read into an existing directory."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special ones among them."""

    @property
    @abstractmethod
    def bos_id(self) -> int | None:
        """The token that begins a document, None where the tokenizer begins it with none."""

    @property
    @abstractmethod
    def eos_id(self) -> int:
        """The token that ends a document."""

    @property
    @abstractmethod
    def pad_id(self) -> int | None:
        """The token that fills a batch up."""

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens as they are written, and their ids."""

    @cached_property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the model: token shards and checkpoints name the tokenizer they belong to by it."""

    @cached_property
    @abstractmethod
    def pieces(self) -> list[bytes]:
        """UTF-8 bytes that each id stands for `[vocab_size]`; empty for special tokens."""

    @property
    def strips_first_space(self) -> bool:
        """Whether encoding puts a space before the text, which decoding takes away again."""
        return False

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes of UTF-8 that no token stands for: `encode` leaves out of a text, silently, what needs one."""
        return frozenset()

    @property
    def start_ids(self) -> list[int]:
        """Ids that begin a document."""
        return [] if self.bos_id is None else [self.bos_id]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token stands for, int32 `[vocab_size]`; 0 for special tokens."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of the start of a document: the begin-of-text token, then the text.

        Raises ValueError where the text is not Unicode (bytes of a terminal that are not UTF-8).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt: found {text[error.start]!r} at {error.start}, expected UTF-8 text") from error
        return [*self.start_ids, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens decode to nothing, bytes that are not UTF-8 to U+FFFD."""
        stream = TextStream(self)
        return "".join([stream.add(token) for token in ids]) + stream.end()


class TextStream:
    """Decodes one token at a time and never emits half a character.

    Ids beyond the tokenizer's, which a model with a padded vocabulary has, decode to nothing.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._pieces = tokenizer.pieces
        self._strip = tokenizer.strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        piece = self._pieces[int(token)] if token < len(self._pieces) else b""
        if self._strip and piece:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def end(self) -> str:
        """What is left: U+FFFD where the last character is not whole."""
        return self._decoder.decode(b"", final=True)


def check_unicode(text: str) -> None:
    """Raises ValueError (UnicodeEncodeError) where a text holds half of a surrogate pair."""
    text.encode("utf-8")


def sha256(*contents: bytes) -> str:
    """Fingerprint of the files that define a tokenizer."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()

"""Tokenizer: text to ids and back, the same in every program.

A sentencepiece model with byte fallback and no normalisation, so `decode(encode(text)) == text`. Special
tokens are control symbols: they are inserted by id and never parsed out of user text.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
SPACE_MARKER = "\u2581"  # how sentencepiece writes a space inside a piece


class Tokenizer:
    """A loaded tokenizer. Raises ValueError where `model` is not a sentencepiece model."""

    def __init__(self, model: bytes):
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            usable = self._processor.vocab_size() > 0 and self._processor.eos_id() >= 0
        except RuntimeError as error:
            raise ValueError("tokenizer: found bytes that are not a sentencepiece model") from error
        if not usable:
            raise ValueError("tokenizer: found a sentencepiece model without an end-of-text token, expected one")

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read the tokenizer of a directory; raises ValueError naming the file that is missing or wrong."""
        path = Path(directory) / MODEL_FILE
        if not path.is_file():
            raise ValueError(f"{directory}: found no {MODEL_FILE}, expected a tokenizer directory")
        try:
            return cls(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, directory: Path) -> None:
        """Write the files that sentencepiece and transformers read into an existing directory."""
        (directory / MODEL_FILE).write_bytes(self._model)
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "add_prefix_space": False,
            "add_bos_token": self.bos_id is not None,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "bos_token": self._special(self.bos_id),
            "eos_token": self._special(self.eos_id),
            "pad_token": self._special(self.pad_id),
            "unk_token": self._special(self._processor.unk_id()),
        }
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Special tokens written in the text stay text."""
        parts = text.split(SPACE_MARKER)
        ids = self._processor.encode(parts[0])
        for part in parts[1:]:
            # sentencepiece would read its own marker as a space; its bytes say what it is.
            ids += self._marker_ids
            ids += self._processor.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        encoded = self._processor.encode(list(texts), num_threads=-1)
        for i, text in enumerate(texts):
            if SPACE_MARKER in text:
                encoded[i] = self.encode(text)
        return encoded

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of the start of a document: the begin-of-text token, then the text.

        Raises ValueError where the text is not Unicode (bytes of a terminal that are not UTF-8).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt: found {text[error.start]!r} at {error.start}, expected UTF-8 text") from error
        return [*([] if self.bos_id is None else [self.bos_id]), *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens decode to nothing, bytes that are not UTF-8 to U+FFFD."""
        return self._processor.decode([int(i) for i in ids])

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @property
    def bos_id(self) -> int | None:
        return self._optional(self._processor.bos_id())

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def pad_id(self) -> int | None:
        return self._optional(self._processor.pad_id())

    @cached_property
    def _marker_ids(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARKER.encode()]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the model: token shards and checkpoints name the tokenizer they belong to by it."""
        return hashlib.sha256(self._model).hexdigest()

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token stands for, int32 `[vocab_size]`; 0 for special tokens."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for i in range(self.vocab_size):
            if self._processor.is_byte(i):
                sizes[i] = 1
            elif not (self._processor.is_control(i) or self._processor.is_unknown(i)):
                sizes[i] = len(self._processor.id_to_piece(i).replace(SPACE_MARKER, " ").encode())
        return sizes

    def _special(self, token_id: int | None) -> str | None:
        return None if token_id is None or token_id < 0 else self._processor.id_to_piece(token_id)

    @staticmethod
    def _optional(token_id: int) -> int | None:
        return None if token_id < 0 else token_id

"""Tokenizer of a tokenizer.json, run by the tokenizers library: byte-level BPE, WordPiece and other kinds."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from shared_tokenizer.tokenizers.effective_definition import effective_definition, llama_spaces
from shared_tokenizer.tokenizers.json_definition import JsonDefinition, library_errors, open_definition
from shared_tokenizer.tokenizers.json_pieces import begins_words, missing_bytes, piece_bytes
from shared_tokenizer.tokenizers.named_tokens import NamedTokens
from shared_tokenizer.tokenizers.tokenizer import Tokenizer, check_unicode, sha256
from shared_tokenizer.tokenizers.tokenizer_files import CONFIG_FILE, DEFINITION_FILE, kept_files

# The library reads this variable at every call, and uses its threads unless it is false.
PARALLELISM = "TOKENIZERS_PARALLELISM"
_parallelism = os.environ.get(PARALLELISM, "true")


class JsonTokenizer(Tokenizer):
    """A loaded tokenizer.json.

    `files` are the contents of the files next to it, by name: tokenizer_config.json and others name the special
    tokens, and `save` writes them back. Special tokens are the added tokens that are marked as special or named like
    a chat marker, and the begin, end, padding and unknown tokens; other added tokens are ordinary text. Decoding
    restores neither text that the normalizer changes nor text without a token. Raises ValueError where the definition
    is damaged, or where no file and no well-known name tells the end-of-text token.
    """

    def __init__(self, definition: bytes, files: Mapping[str, bytes] | None = None):
        self._files = dict(files or {})
        self._named = NamedTokens(self._files)
        self._definition, self._content, self._notes = effective_definition(definition, self._named)
        spaces = llama_spaces(self._definition, self._named) or {}
        self._tokenizer = open_definition(replace(self._definition, parts=self._definition.parts | spaces))
        ids = self._definition.ids
        self._eos_id = self._named.find_eos(ids)
        self._notes += self._named.stop_notes(self._eos_id)
        self._pad_id = self._named.find_pad(ids)
        self._bos_id = self._find_bos()
        special = {self._bos_id, self._eos_id, self._pad_id, self._definition.unknown_id}
        self._special = self._definition.special | {token: i for token, i in ids.items() if i in special}
        self._spelled = {i: token for token, i in self._special.items() if i != self._definition.unknown_id}

    def save(self, directory: Path) -> None:
        """Write tokenizer.json as it was read, and tokenizer_config.json plus the tokens that no file names."""
        tokens = {"bos": self._bos_id, "eos": self._eos_id, "pad": self._pad_id}
        contents = {i: token for token, i in self._special.items()}
        named = {role: None if i is None else contents[i] for role, i in tokens.items()}
        files = kept_files(self._files, self.stop_ids, self._bos_id, self._pad_id)
        files |= {DEFINITION_FILE: self._content, CONFIG_FILE: self._named.saved_config(named)}
        for name, content in files.items():
            (directory / name).write_bytes(content)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Special tokens that are spelled out stay text."""
        return self._spell(self._encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        """Return the ids of each text; `num_threads` 1 uses no other thread, any other value all cores."""
        parallelism = "false" if num_threads == 1 else _parallelism
        if os.environ.get(PARALLELISM) != parallelism:
            os.environ[PARALLELISM] = parallelism
        for text in texts:
            check_unicode(text)
        with library_errors(DEFINITION_FILE):
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._spell(encoding.ids) for encoding in encoded]

    @property
    def definition(self) -> JsonDefinition:
        """Return the checked tokenizer.json."""
        return self._definition

    @property
    def vocab_size(self) -> int:
        """Return the highest id plus one; ids may have holes."""
        return self._definition.vocab_size

    @property
    def bos_id(self) -> int | None:
        """Return the id that the tokenizer or `add_bos_token` of tokenizer_config.json puts before a text, or None."""
        return self._bos_id

    @property
    def eos_id(self) -> int:
        """Return the id of the end-of-text token."""
        return self._eos_id

    @property
    def stop_ids(self) -> Sequence[int]:
        """Return the id of the end-of-text token, then the others that the model's files name."""
        return self._named.stop_ids(self._eos_id)

    @property
    def notes(self) -> list[str]:
        """Return a line for each part that the tokenizer's files state differently."""
        return self._notes

    @property
    def pad_id(self) -> int | None:
        """Return the id of the padding token, None where there is none."""
        return self._pad_id

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Return the ids of the special tokens by their spelling."""
        return self._special

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 of tokenizer.json and of the ids that begin and end a document."""
        return sha256(self._content, f"{self._bos_id} {self._eos_id}".encode())

    @cached_property
    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes of each id `[vocab_size]`; empty for special tokens and for holes."""
        pieces = piece_bytes(self._definition)
        for token_id in self._special.values():
            pieces[token_id] = b""
        return pieces

    @property
    def strips_first_space(self) -> bool:
        """Return True if encoding puts a space before the text."""
        return self._strips_first_space

    @cached_property
    def _strips_first_space(self) -> bool:
        if begins_words(self._definition):
            return True
        first = next((self.pieces[i] for i in self.encode("a") if self.pieces[i]), b"")
        return first.startswith(b" ")

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Return the UTF-8 bytes without a token: `encode` silently drops characters that need one."""
        return missing_bytes(self._definition)

    def _find_bos(self) -> int | None:
        """Return the id that tokenizer_config.json or the post-processor puts before a text, None where none does."""
        plain = self._encode("a", add_special_tokens=False)
        whole = self._encode("a", add_special_tokens=True)
        begins = whole and whole[1 : 1 + len(plain)] == plain and whole[0] in self._definition.special.values()
        written = whole[0] if begins else None
        adds_bos = self._named.config.get("add_bos_token")
        if not isinstance(adds_bos, bool):
            return written
        chosen = self._named.find("bos", self._definition.ids) if adds_bos else None
        if chosen != written and self._definition.parts.get("post_processor"):
            self._notes.append(
                f"add_bos_token: read {adds_bos} of {CONFIG_FILE}; transformers 5 reads the post-processor of "
                f"{DEFINITION_FILE}, which puts {'no token' if written is None else written} before a text"
            )
        return chosen

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        check_unicode(text)
        with library_errors(DEFINITION_FILE):
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def _spell(self, ids: list[int]) -> list[int]:
        """Replace the ids of special tokens, which some models match in a text, by those of their characters."""
        if self._spelled.keys().isdisjoint(ids):
            return ids
        spelled = []
        for token_id in ids:
            if token_id not in self._spelled:
                spelled.append(token_id)
                continue
            for character in self._spelled[token_id]:
                spelled += [token.id for token in self._tokenizer.model.tokenize(character)]
        return spelled


def _in_forked_child() -> None:
    """Turn the threads of the library off in a forked child, which would wait for them forever."""
    global _parallelism
    _parallelism = os.environ[PARALLELISM] = "false"


os.register_at_fork(after_in_child=_in_forked_child)

"""Tokenizer over the tokenizers library: byte-level BPE, WordPiece and all else that a tokenizer.json describes."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from shared_tokenizer.tokenizers.json_definition import JsonDefinition, library_errors, open_definition, read_definition
from shared_tokenizer.tokenizers.json_pieces import begins_words, missing_bytes, piece_bytes
from shared_tokenizer.tokenizers.named_tokens import NamedTokens
from shared_tokenizer.tokenizers.tokenizer import Tokenizer, check_unicode, sha256
from shared_tokenizer.tokenizers.tokenizer_files import CONFIG_FILE, DEFINITION_FILE, KEPT_FILES

# The library asks this variable at every call whether to use its threads.
PARALLELISM = "TOKENIZERS_PARALLELISM"
_wish = os.environ.get(PARALLELISM, "true")


class JsonTokenizer(Tokenizer):
    """A loaded tokenizer.json.

    `files` are the ones it came with, by name: tokenizer_config.json and the like name the end-of-text token, and
    `save` writes them back. Special are the added tokens marked so, those with the name of a chat marker, and the
    begin, end, padding and unknown tokens; other added tokens are ordinary text. Text that is lowered or otherwise
    changed before it is cut, and text that the vocabulary has no token for, does not come back. Raises ValueError
    where the definition is damaged, or no file and no well-known name says which token ends a text.
    """

    def __init__(self, definition: bytes, files: Mapping[str, bytes] | None = None):
        self._content = definition
        self._files = dict(files or {})
        self._definition = read_definition(definition)
        self._tokenizer = open_definition(self._definition)
        self._named = NamedTokens(self._files)
        ids = self._definition.ids
        self._eos_id = self._named.find_eos(ids)
        self._pad_id = self._named.find_pad(ids)
        self._bos_id = self._find_bos()
        special = {self._bos_id, self._eos_id, self._pad_id, self._definition.unknown_id}
        self._special = self._definition.special | {token: i for token, i in ids.items() if i in special}
        self._spelled = {i: token for token, i in self._special.items() if i != self._definition.unknown_id}

    def save(self, directory: Path) -> None:
        """Write tokenizer.json as it came, and tokenizer_config.json with the tokens that no file beside it names."""
        tokens = {"bos": self._bos_id, "eos": self._eos_id, "pad": self._pad_id}
        contents = {i: token for token, i in self._special.items()}
        named = {role: None if i is None else contents[i] for role, i in tokens.items()}
        files = {name: self._files[name] for name in KEPT_FILES if name in self._files}
        files |= {DEFINITION_FILE: self._content, CONFIG_FILE: self._named.saved_config(named)}
        for name, content in files.items():
            (directory / name).write_bytes(content)

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Special tokens written in the text stay text."""
        return self._spell(self._encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        """Ids of many texts; `num_threads` 1 uses no other thread, anything else all cores."""
        wish = "false" if num_threads == 1 else _wish
        if os.environ.get(PARALLELISM) != wish:
            os.environ[PARALLELISM] = wish
        for text in texts:
            check_unicode(text)
        with library_errors(DEFINITION_FILE):
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._spell(encoding.ids) for encoding in encoded]

    @property
    def definition(self) -> JsonDefinition:
        """The tokenizer.json, checked."""
        return self._definition

    @property
    def vocab_size(self) -> int:
        """The highest id and one: ids may have holes."""
        return self._definition.vocab_size

    @property
    def bos_id(self) -> int | None:
        """The token that the tokenizer itself, or `add_bos_token` in tokenizer_config.json, puts before a text."""
        return self._bos_id

    @property
    def eos_id(self) -> int:
        """The end-of-text token."""
        return self._eos_id

    @property
    def pad_id(self) -> int | None:
        """The padding token, None where there is none."""
        return self._pad_id

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens as they are written, and their ids."""
        return self._special

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of tokenizer.json and of the tokens that begin and end a document."""
        return sha256(self._content, f"{self._bos_id} {self._eos_id}".encode())

    @cached_property
    def pieces(self) -> list[bytes]:
        """UTF-8 bytes that each id stands for; empty for special tokens and for ids that no token has."""
        pieces = piece_bytes(self._definition)
        for token_id in self._special.values():
            pieces[token_id] = b""
        return pieces

    @property
    def strips_first_space(self) -> bool:
        """Whether encoding puts a space before the text."""
        return self._strips_first_space

    @cached_property
    def _strips_first_space(self) -> bool:
        if begins_words(self._definition):
            return True
        first = next((self.pieces[i] for i in self.encode("a") if self.pieces[i]), b"")
        return first.startswith(b" ")

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes of UTF-8 that no token stands for: `encode` leaves out of a text, silently, what needs one."""
        return missing_bytes(self._definition)

    def _find_bos(self) -> int | None:
        named = self._named.find("bos", self._definition.ids)
        asked = self._named.config.get("add_bos_token")
        if isinstance(asked, bool):
            return named if asked else None
        plain = self._encode("a", add_special_tokens=False)
        whole = self._encode("a", add_special_tokens=True)
        if whole and whole[1 : 1 + len(plain)] == plain and whole[0] in self._definition.special.values():
            return whole[0]
        return None

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        check_unicode(text)
        with library_errors(DEFINITION_FILE):
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def _spell(self, ids: list[int]) -> list[int]:
        """Some models find a special token's name in the text itself: put the tokens of its characters there."""
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
    """The library's threads do not live on in a child, which would wait for them forever."""
    global _wish
    _wish = os.environ[PARALLELISM] = "false"


os.register_at_fork(after_in_child=_in_forked_child)

"""Tokenizer of a sentencepiece model, trained by `train_tokenizer` or imported."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import sentencepiece

from shared_tokenizer.tokenizers.effective_model import LLAMA_CLASS, adds_no_second_space, effective_model
from shared_tokenizer.tokenizers.named_tokens import NamedTokens
from shared_tokenizer.tokenizers.sentencepiece_model import (
    BPE,
    SPACE_MARKER,
    SPECIAL_KINDS,
    PieceKind,
    ends_lines,
    parse_model,
    plain_pieces,
)
from shared_tokenizer.tokenizers.sentencepiece_to_json import to_tokenizer_json
from shared_tokenizer.tokenizers.tokenizer import Tokenizer, check_unicode, sha256
from shared_tokenizer.tokenizers.tokenizer_files import (
    CONFIG_FILE,
    DEFINITION_FILE,
    MODEL_FILE,
    SPECIAL_TOKENS_FILE,
    dump_json,
    kept_files,
)

# Characters. Shorter texts are not cut for speed.
PART_CHARACTERS = 200


class SentencePieceTokenizer(Tokenizer):
    """A loaded sentencepiece model.

    `files` are the contents of the files next to it, by name: they add tokens, name the begin, end and padding tokens
    and set the space before a text (see `effective_model`), and `save` writes them back. User-defined symbols are
    ordinary text. Raises ValueError where `model` is not a sentencepiece model, has no end-of-text token, or does not
    fit the files.
    """

    def __init__(self, model: bytes, files: Mapping[str, bytes] | None = None):
        self._files = dict(files or {})
        self._named = NamedTokens(self._files)
        self._model, self._notes = effective_model(model, self._named)
        self._parsed = parse_model(self._model)
        self._processor = _processor(self._model)
        pieces = enumerate(self._parsed.pieces)
        self._special_tokens = {piece.piece: i for i, piece in pieces if piece.type in SPECIAL_KINDS}
        self._config = self._named.config
        # A text that begins with a space gets no other one.
        self._keeps_first_space = self._normalizer.add_dummy_prefix and adds_no_second_space(self._named)
        if self._processor.eos_id() < 0:
            raise ValueError("tokenizer: found a sentencepiece model without an end-of-text token, expected one")
        self._notes += self._named.stop_notes(self.eos_id)

    def save(self, directory: Path) -> None:
        """Write the files that sentencepiece and transformers read into an existing directory.

        A tokenizer.json that was read with the model is written back, else one is made. Where it would have other ids
        (see `to_tokenizer_json`), none is written, and transformers opens the directory only with its class for Llama.
        """
        (directory / MODEL_FILE).write_bytes(self._model)
        files = kept_files(self._files, self.stop_ids, self.bos_id, self.pad_id)
        if DEFINITION_FILE not in files:
            files.pop(SPECIAL_TOKENS_FILE, None)  # all names are in the config
            files[CONFIG_FILE] = dump_json(self._made_config())
            definition = None if self._keeps_first_space else to_tokenizer_json(self._model, self.bos_id)
            if definition is not None:
                files[DEFINITION_FILE] = definition.encode("utf-8")
        for name, content in files.items():
            (directory / name).write_bytes(content)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Special tokens that are spelled out stay text."""
        check_unicode(text)
        if SPACE_MARKER not in text or self._marker_ids is None:
            return self._encode_start(text)
        first, *rest = text.split(SPACE_MARKER)
        # A text that begins with the marker still begins with the dummy prefix.
        ids = self._encode_start(first) if first else list(self._prefix_ids)
        for part in rest:
            # sentencepiece would decode its own marker as a space, so the character is encoded as its bytes.
            ids += self._marker_ids
            ids += self._inner.encode(part)
        return ids

    def _encode_start(self, text: str) -> list[int]:
        has_space = self._keeps_first_space and text.startswith(" ")
        return (self._inner if has_space else self._processor).encode(text)

    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        """Return the ids of each text; `num_threads` None uses all cores."""
        cuts = [self._cut(text) for text in texts]
        try:
            parts = self._processor.encode(
                list(chain.from_iterable(cuts)), num_threads=-1 if num_threads is None else num_threads
            )
        except TypeError:
            for text in texts:
                check_unicode(text)
            raise
        encoded = iter(parts)
        found = [list(chain.from_iterable(islice(encoded, len(cut)))) for cut in cuts]
        for i, text in enumerate(texts):
            if SPACE_MARKER in text or (self._keeps_first_space and text.startswith(" ")):
                found[i] = self.encode(text)
        return found

    def _cut(self, text: str) -> list[str]:
        """Cut a text after newlines, where that changes no id: sentencepiece is faster on short texts."""
        if not self._may_be_cut:
            return [text]
        parts, start = [], 0
        while (end := text.find("\n", start + PART_CHARACTERS) + 1) > 0:
            parts.append(text[start:end])
            start = end
        return [*parts, text[start:]]

    @cached_property
    def _may_be_cut(self) -> bool:
        is_bpe = self._parsed.trainer_spec.model_type == BPE
        return is_bpe and not self._normalizer.add_dummy_prefix and self._is_exact and ends_lines(self._parsed)

    @property
    def _normalizer(self) -> Any:
        return self._parsed.normalizer_spec

    @property
    def _is_exact(self) -> bool:
        """Return True if the normalizer changes no text."""
        return not (self._normalizer.precompiled_charsmap or self._normalizer.remove_extra_whitespaces)

    @property
    def model(self) -> Any:
        """Return the ModelProto of the model file."""
        return self._parsed

    @property
    def vocab_size(self) -> int:
        """Return the number of ids, with special ones."""
        return self._processor.vocab_size()

    @property
    def bos_id(self) -> int | None:
        """Return the id of begin-of-text, None where there is none or tokenizer_config.json turns it off."""
        return None if self._config.get("add_bos_token") is False else _optional(self._processor.bos_id())

    @property
    def eos_id(self) -> int:
        """Return the id of the end-of-text token."""
        return self._processor.eos_id()

    @property
    def stop_ids(self) -> Sequence[int]:
        """Return the id of end-of-text, then the others that the model's files name."""
        return self._named.stop_ids(self.eos_id)

    @property
    def notes(self) -> list[str]:
        """Return a line for each part that the tokenizer's files state differently."""
        return self._notes

    @property
    def pad_id(self) -> int | None:
        """Return the id of the padding token, None where there is none."""
        return _optional(self._processor.pad_id())

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Return the ids of control symbols (with begin, end and padding) and of the unknown token."""
        return self._special_tokens

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 of the model file, and of `add_bos_token: false` where that turns off its begin token."""
        if self.bos_id is None and self._processor.bos_id() >= 0:
            return sha256(self._model, b"add_bos_token: false")
        return sha256(self._model)

    @cached_property
    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes of each id `[vocab_size]`; empty for special tokens."""
        found = [piece.encode() for piece in plain_pieces(self._parsed)]
        for i, piece in enumerate(self._parsed.pieces):
            if piece.type == PieceKind.BYTE:
                found[i] = bytes([int(piece.piece[3:5], 16)])
            elif piece.type in SPECIAL_KINDS:
                found[i] = b""
        return found

    @property
    def strips_first_space(self) -> bool:
        """Return True if the model puts a space before the text."""
        return self._normalizer.add_dummy_prefix

    @cached_property
    def _marker_ids(self) -> list[int] | None:
        """Return the ids of the bytes of U+2581, None where the model lacks them or keeps plain spaces."""
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARKER.encode()]
        return byte_ids if self._normalizer.escape_whitespaces and all(map(self._processor.is_byte, byte_ids)) else None

    @cached_property
    def _inner(self) -> sentencepiece.SentencePieceProcessor:
        """Return the model without the dummy prefix, for parts inside a text."""
        if not self.strips_first_space:
            return self._processor
        changed = parse_model(self._model)
        changed.normalizer_spec.add_dummy_prefix = False
        return _processor(changed.SerializeToString())

    @cached_property
    def _prefix_ids(self) -> list[int]:
        return self._inner.encode(" ") if self.strips_first_space else []

    def _made_config(self) -> dict[str, object]:
        kept = ("chat_template", "add_prefix_space", "legacy") if self._keeps_first_space else ("chat_template",)
        chat = {name: value for name, value in self._config.items() if name in kept}
        tokens = {
            "bos_token": _optional(self._processor.bos_id()),
            "eos_token": self.eos_id,
            "pad_token": self.pad_id,
            "unk_token": self._processor.unk_id(),
        }
        return {
            "tokenizer_class": LLAMA_CLASS if self._keeps_first_space else "PreTrainedTokenizerFast",
            "add_bos_token": self.bos_id is not None,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            **{name: self._processor.id_to_piece(i) for name, i in tokens.items() if i is not None},
            **chat,
        }


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        usable = processor.vocab_size() > 0
    except RuntimeError as error:
        raise ValueError("tokenizer: found bytes that are not a sentencepiece model") from error
    if not usable:
        raise ValueError("tokenizer: found an empty sentencepiece model, expected a vocabulary")
    return processor


def _optional(token_id: int) -> int | None:
    return None if token_id < 0 else token_id

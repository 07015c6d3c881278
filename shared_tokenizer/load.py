"""Open a tokenizer of any kind, its files and its chat format."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.template import chat_format_of, read_chat_template
from shared_tokenizer.gguf.reader import gguf_tokenizer
from shared_tokenizer.manifest import verify_where_sealed
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from shared_tokenizer.tokenizers.json_vocabulary import definition_of_vocabulary
from shared_tokenizer.tokenizers.named_tokens import NamedTokens
from shared_tokenizer.tokenizers.same_ids import first_difference
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.tokenizer_files import (
    DEFINITION_FILE,
    MERGES_FILE,
    MODEL_FILE,
    VOCABULARY_FILE,
    parse_json_object,
    read_files,
)

# `load_tokenizer` opens the first of these in a directory.
KINDS = (MODEL_FILE, DEFINITION_FILE, VOCABULARY_FILE)
WEIGHT_ENDINGS = (".safetensors", ".gguf")
# Folders that hold the tokenizer of a run or of token shards, and of a fine-tuning run.
INNER_FOLDERS = ("tokenizer", "artifact", "data/tokenizer")


def log_line(line: str) -> None:
    """Write a line to stderr, so that generated text stays alone on stdout."""
    sys.stderr.write(f"{line}\n")


def has_tokenizer(directory: Path) -> bool:
    """Return True if a directory holds a file that `load_tokenizer` opens."""
    return any((Path(directory) / name).is_file() for name in KINDS)


def tokenizer_place(path: Path) -> Path:
    """Return the directory or file of the tokenizer that a path means: itself, or that inside a run or token shards."""
    path = Path(path)
    if not path.is_dir() or has_tokenizer(path):
        return path
    return next((path / name for name in INNER_FOLDERS if has_tokenizer(path / name)), path)


def find_tokenizer(path: Path, metadata: Mapping[str, Any] | None = None, *, verify: bool = True) -> Tokenizer | None:
    """Return the tokenizer of a model directory, or of the metadata of a GGUF file; None where there is none.

    Raises ValueError as `load_tokenizer` does.
    """
    if metadata is not None:
        try:
            return gguf_tokenizer(metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    path = tokenizer_place(path)
    if has_tokenizer(path):
        return load_tokenizer(path, verify=verify)
    if verify:
        verify_tokenizer(path)
    return None


def verify_tokenizer(directory: Path) -> None:
    """Compare the files of a tokenizer with the seal of its directory, or of a directory around it; weights are left
    to who opens them.

    To be called before a tokenizer is copied. Without a seal there is nothing to compare. Raises DamagedError where a
    file is missing, altered or not listed.
    """
    verify_where_sealed(Path(directory), lambda name: not name.endswith(WEIGHT_ENDINGS))


@contextlib.contextmanager
def tokenizer_directory(path: Path, tokenizer: Tokenizer | None) -> Iterator[Path | None]:
    """Yield the directory that holds the files of a model's tokenizer, None where the model has none.

    The tokenizer of a GGUF file is written to a temporary directory.
    """
    path = tokenizer_place(path)
    if tokenizer is None:
        yield None
    elif has_tokenizer(path):
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            yield Path(folder)


def find_chat_template(path: Path, tokenizer: Tokenizer) -> str | None:
    """Return the chat template of a model directory or a GGUF file, None where it has none."""
    with tokenizer_directory(path, tokenizer) as directory:
        return None if directory is None else read_chat_template(directory)


def find_chat_format(path: Path, tokenizer: Tokenizer) -> ChatFormat | None:
    """Return the chat format of a model, None where it has no template. Raises ValueError on an unknown template."""
    template = find_chat_template(path, tokenizer)
    try:
        return None if template is None else chat_format_of(template)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_tokenizer(path: Path, *, verify: bool = True, log: Callable[[str], None] = log_line) -> Tokenizer:
    """Read the tokenizer of a directory, or of one file in it: tokenizer.model, tokenizer.json or vocab.json.

    Of a run and of token shards it is the tokenizer that they hold.

    The files next to it add tokens, say which ones are special, and are saved with the tokenizer; all are read as
    transformers reads them. Where they state something differently, and where tokenizer.model and tokenizer.json would
    produce other ids, `log` receives a line that says what was read. `verify=False` skips the comparison with the seal.
    Raises DamagedError where the files differ from the seal of their directory, or of the one around it, and ValueError
    with the name of the file that is missing or wrong.
    """
    path = tokenizer_place(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory, expected a tokenizer")
    if verify:  # before any content of the files is used
        verify_tokenizer(path if path.is_dir() else path.parent)
    tokenizer = _load_directory(path) if path.is_dir() else _load_file(path)
    for note in tokenizer.notes:
        log(f"{path}: {note}")
    return tokenizer


def _load_directory(directory: Path) -> Tokenizer:
    found = [directory / name for name in KINDS if (directory / name).is_file()]
    if not found:
        raise ValueError(f"{directory}: found no {MODEL_FILE}, {DEFINITION_FILE} or {VOCABULARY_FILE}, expected one")
    first, *others = found
    if first.name == MODEL_FILE and others and others[0].name == DEFINITION_FILE:
        return _load_both(first, others[0])
    return _load_file(first)


def _load_both(model: Path, definition: Path) -> Tokenizer:
    """Read tokenizer.json, as transformers does, by tokenizer.model where that produces the same ids."""
    read = _load_file(definition)
    try:
        fast = _load_file(model)
    except ValueError as error:
        read.notes.append(f"read {DEFINITION_FILE}, as transformers does; {MODEL_FILE} cannot be read with it: {error}")
        return read
    difference = first_difference(fast, read)
    if difference is None:
        return fast
    if read.vocab_size <= fast.vocab_size:  # more tokens are usual: those that were added after training
        read.notes.append(f"read {DEFINITION_FILE}, as transformers does; {MODEL_FILE} differs: {difference}")
    return read


def _load_file(path: Path) -> Tokenizer:
    try:
        files = read_files(path.parent)
        content = path.read_bytes()
        if path.suffix != ".json":
            return SentencePieceTokenizer(content, files)
        if path.name == DEFINITION_FILE or isinstance(parse_json_object(path.name, content).get("model"), dict):
            return JsonTokenizer(content, files)
        return _load_vocabulary(path, content, files)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_vocabulary(path: Path, content: bytes, files: dict[str, bytes]) -> Tokenizer:
    merges = path.parent / MERGES_FILE
    named = NamedTokens(files)
    lowercase = named.config.get("do_lower_case")
    definition = definition_of_vocabulary(
        content,
        merges.read_bytes() if merges.is_file() else None,
        named.names,
        lowercase if isinstance(lowercase, bool) else None,
    )
    return JsonTokenizer(definition, files)

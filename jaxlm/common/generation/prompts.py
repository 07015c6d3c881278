"""A file of prompts -> the ids of each, with the line that it stands on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.messages import encode_generation_prompt
from shared_tokenizer.chat.parse import parse_messages
from shared_tokenizer.readers.readers import format_of, read_rows
from shared_tokenizer.readers.rows import BadRow, Row
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Keys that a line of completions adds to those of its prompt.
ADDED = ("line", "sample", "seed", "completion", "finish_reason", "tokens", "error")


@dataclass(frozen=True)
class Prompt:
    """A row of a file of prompts."""

    line: int
    """Its line in the file, from 1."""
    row: Mapping[str, Any]
    """The row as it is in the file."""
    ids: list[int] = field(default_factory=list)
    error: str | None = None
    """The reason why it cannot be continued, None where it can."""


def read_prompts(
    path: Path, tokenizer: Tokenizer, find_format: Callable[[], ChatFormat], check: Callable[[list[int]], None]
) -> list[Prompt]:
    """Return the prompts of a file: the lines of a text, or the objects of jsonl; blank lines are none.

    An object (or a row of json, csv or parquet) has `prompt`, a text, or `messages`, a conversation, which is written
    in the format that `find_format` returns. `check` raises ValueError where ids cannot be continued. A row that cannot
    be continued has an error. Raises ValueError where the file is neither, or holds no prompt that can be continued.
    """
    if not path.is_file():
        raise ValueError(f"prompts: found no file {path}, expected jsonl with a prompt per line, or lines of text")
    file_format = format_of(path)
    if file_format is None:
        raise ValueError(f"prompts: found {path}, expected jsonl with a prompt per line, or lines of text in a .txt")
    found = _text_lines(path) if file_format == "text" else list(map(_row_prompt, read_rows(path, file_format)))
    read = [_encode(prompt, tokenizer, find_format, check) for prompt in found]
    if not read:
        raise ValueError(f"prompts: found no prompt in {path}, expected one per line")
    if all(prompt.error is not None for prompt in read):
        raise ValueError(f"prompts: found none in {path} that can be continued; line {read[0].line}: {read[0].error}")
    return read


def _text_lines(path: Path) -> list[Prompt]:
    pieces = list(read_rows(path, "text"))
    if bad := next((piece.reason for piece in pieces if isinstance(piece, BadRow)), None):
        raise ValueError(f"prompts: {path}: {bad}")
    lines = "".join(piece.value for piece in pieces if isinstance(piece, Row)).split("\n")
    texts = ((number, line.removesuffix("\r")) for number, line in enumerate(lines, 1))
    return [Prompt(number, {"prompt": text}) for number, text in texts if text.strip()]


def _row_prompt(row: Row | BadRow) -> Prompt:
    if isinstance(row, BadRow):
        return Prompt(row.number, {}, error=row.reason)
    return Prompt(row.number, row.value)


def _encode(
    prompt: Prompt, tokenizer: Tokenizer, find_format: Callable[[], ChatFormat], check: Callable[[list[int]], None]
) -> Prompt:
    if prompt.error is not None:
        return prompt
    try:
        ids = _ids(prompt.row, tokenizer, find_format)
        check(ids)
        return Prompt(prompt.line, prompt.row, ids)
    except ValueError as error:
        return Prompt(prompt.line, prompt.row, error=str(error))


def _ids(row: Mapping[str, Any], tokenizer: Tokenizer, find_format: Callable[[], ChatFormat]) -> list[int]:
    if taken := [key for key in ADDED if key in row]:
        raise ValueError(f"found the key {taken[0]!r}, which completions add; rename it")
    has = [key for key in ("prompt", "messages") if key in row]
    if len(has) != 1:
        found = " and ".join(map(repr, has)) or f"the keys {json.dumps(list(row)[:8])}"
        raise ValueError(f"found {found}, expected either 'prompt' or 'messages'")
    if has == ["messages"]:
        messages = parse_messages(row["messages"], needs_reply=False)
        return encode_generation_prompt(messages, tokenizer, find_format())
    if not isinstance(row["prompt"], str):
        raise ValueError(f"prompt: found {json.dumps(row['prompt'])[:40]}, expected a text")
    return tokenizer.encode_to_continue(row["prompt"])

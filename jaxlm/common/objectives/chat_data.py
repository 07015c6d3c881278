"""The data of supervised fine-tuning: chats, of which the answers are learned, in the format of the model."""

import contextlib
from pathlib import Path

from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.shards import read_manifest
from shared_tokenizer.load import find_chat_format, find_tokenizer


def check_chat_data(sets: DataSets, base: Path | None) -> None:
    """Raise ValueError where a shard set cannot be learned from answer by answer, or not by the model `base`.

    Every set needs a loss mask, which tells answers from the rest. All have one chat format and one tokenizer, those of
    the base, where it has them.
    """
    formats = {directory: _chat_format(directory) for directory in sets.directories}
    if base is not None:
        _check_tokenizer(base, sets)
        with contextlib.suppress(ValueError):  # a template that cannot be read names no format
            if (found := find_chat_format(base, sets.tokenizer)) is not None:
                formats = {base: found.name} | formats
    first, expected = next(iter(formats.items()))
    for path, name in formats.items():
        if name != expected:
            raise ValueError(
                f"objective: found sft with {path} in chat format {name}, expected {expected}, that of {first}; "
                f"prepare the chats anew with --chat_format {expected}"
            )


def _chat_format(directory: Path) -> str:
    manifest = read_manifest(directory)
    if not manifest["masked"]:
        raise ValueError(
            f"objective: found sft with {directory}, which holds text, expected chats: prepare rows of messages "
            "(jaxlm prepare --input chats.jsonl), or leave objective out to learn all text"
        )
    return str(manifest["chat_format"])


def _check_tokenizer(base: Path, sets: DataSets) -> None:
    found = find_tokenizer(base)
    if found is not None and found.fingerprint != sets.tokenizer.fingerprint:
        raise ValueError(
            f"objective: found sft of {base} with tokenizer {found.fingerprint[:12]}... on chats with tokenizer "
            f"{sets.tokenizer.fingerprint[:12]}..., expected the same; prepare the chats with --tokenizer {base}"
        )

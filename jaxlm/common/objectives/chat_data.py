"""The data of supervised fine-tuning: chats, of which the answers are learned."""

from collections.abc import Iterable
from pathlib import Path

from shared_tokenizer.data.shards import read_manifest


def check_answers(directories: Iterable[Path]) -> None:
    """Raise ValueError where a shard set has no loss mask, so that its answers cannot be told from the rest."""
    for directory in directories:
        if not read_manifest(directory)["masked"]:
            raise ValueError(
                f"objective: found sft with {directory}, which holds text, expected chats: prepare rows of messages "
                "(jaxlm prepare --input chats.jsonl --chat_format chatml), or leave objective out to learn all text"
            )

"""The files of a tokenizer directory: their names, and strict reading of their JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL_FILE = "tokenizer.model"
DEFINITION_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG_FILE = "generation_config.json"
# Files of the model next to the tokenizer, the last ones that are searched for special tokens.
MODEL_CONFIG_FILES = (GENERATION_CONFIG_FILE, "config.json")
# Files that are saved with a tokenizer if it was read with them.
KEPT_FILES = (DEFINITION_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE)


def read_files(directory: Path) -> dict[str, bytes]:
    """Return the contents, by name, of the files that define tokenizer, special tokens and chat template."""
    names = dict.fromkeys((*KEPT_FILES, ADDED_TOKENS_FILE, *MODEL_CONFIG_FILES))
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def kept_files(
    files: Mapping[str, bytes], stop_ids: Sequence[int], bos_id: int | None, pad_id: int | None
) -> dict[str, bytes]:
    """Return the files that are saved with a tokenizer, with all ids that end a text in generation_config.json."""
    kept = {name: files[name] for name in KEPT_FILES if name in files}
    if len(stop_ids) > 1 and GENERATION_CONFIG_FILE not in kept:  # config.json named them, which is the model's
        kept[GENERATION_CONFIG_FILE] = generation_config(bos_id, stop_ids, pad_id)
    return kept


def parse_json_object(name: str, content: bytes) -> dict[str, Any]:
    """Return the JSON object of a file. Raises ValueError on other content, and on a key that occurs twice."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON: {error or 'empty'}; download or save it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: found a JSON {type(value).__name__}, expected an object")
    return value


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"found the key {twice!r} twice")
    return found


def generation_config(bos_id: int | None, eos_ids: Sequence[int], pad_id: int | None) -> bytes:
    """Return generation_config.json, which tells other programs the tokens that end a text, the tokenizer's first."""
    ids = {"bos_token_id": bos_id, "eos_token_id": list(eos_ids), "pad_token_id": pad_id}
    return dump_json({name: value for name, value in ids.items() if value is not None})


def dump_json(value: Mapping[str, Any]) -> bytes:
    """Return an object as the JSON of a tokenizer file, UTF-8."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")

"""The begin, end, padding and other special tokens that the files next to a tokenizer.json name."""

from collections.abc import Mapping, Sequence
from typing import Any

from shared_tokenizer.tokenizers.known_tokens import EOS_NAMES, PAD_NAMES
from shared_tokenizer.tokenizers.tokenizer_files import (
    CONFIG_FILE,
    MODEL_CONFIG_FILES,
    SPECIAL_TOKENS_FILE,
    dump_json,
    parse_json_object,
)

ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


class NamedTokens:
    """The parsed files that name special tokens. Raises ValueError where one is no JSON object."""

    def __init__(self, files: Mapping[str, bytes]):
        names = (CONFIG_FILE, SPECIAL_TOKENS_FILE, *MODEL_CONFIG_FILES)
        self._parsed = {name: parse_json_object(name, files[name]) for name in names if name in files}
        self._config_file = files.get(CONFIG_FILE)

    @property
    def config(self) -> Mapping[str, Any]:
        """Return tokenizer_config.json, empty where there is none."""
        return self._parsed.get(CONFIG_FILE, {})

    @property
    def names(self) -> set[str]:
        """Return all tokens that tokenizer_config.json or special_tokens_map.json names."""
        return {name for role in ROLES for name in self._names(role)}

    def find(self, role: str, ids: Mapping[str, int]) -> int | None:
        """Return the id of a role such as `eos`, by the first file that names a token of the vocabulary, else None."""
        for name in self._names(role):
            if name in ids:
                return ids[name]
        known = set(ids.values())
        for file in MODEL_CONFIG_FILES:
            found = self._parsed.get(file, {}).get(f"{role}_token_id")
            for token_id in found if isinstance(found, list) else [found]:
                if isinstance(token_id, int) and not isinstance(token_id, bool) and token_id in known:
                    return token_id
        return None

    def find_eos(self, ids: Mapping[str, int]) -> int:
        """Return the id of the end-of-text token, by its well-known name where no file names it.

        Raises ValueError where there is none, or the named one is not in the vocabulary.
        """
        found = self.find("eos", ids)
        if found is not None:
            return found
        named = sorted(self._names("eos"))
        known = [name for name in EOS_NAMES if name in ids]
        if named or not known:
            what = f"eos_token {named[0]!r}, which the vocabulary does not have" if named else "no end-of-text token"
            raise ValueError(f"tokenizer: found {what}; name one as eos_token in {CONFIG_FILE}")
        return ids[known[0]]

    def find_pad(self, ids: Mapping[str, int]) -> int | None:
        """Return the id of the padding token, by its well-known name where no file names it, or None."""
        found = self.find("pad", ids)
        return found if found is not None else next((ids[name] for name in PAD_NAMES if name in ids), None)

    def saved_config(self, tokens: Mapping[str, str | None]) -> bytes:
        """Return tokenizer_config.json as it was read, plus the tokens that no file names."""
        made = {} if self._config_file is not None else {"tokenizer_class": "PreTrainedTokenizerFast"}
        made |= {} if self._config_file is not None else {"clean_up_tokenization_spaces": False}
        missing = {f"{role}_token": token for role, token in tokens.items() if token and not list(self._names(role))}
        if self._config_file is not None and not missing:
            return self._config_file
        return dump_json({**made, **self.config, **missing})

    def _names(self, role: str) -> Sequence[str]:
        values = (self._parsed.get(file, {}).get(f"{role}_token") for file in (CONFIG_FILE, SPECIAL_TOKENS_FILE))
        contents = (value.get("content") if isinstance(value, dict) else value for value in values)
        return [content for content in contents if isinstance(content, str) and content]

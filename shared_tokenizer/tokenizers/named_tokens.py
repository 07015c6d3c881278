"""The tokens that the files next to a tokenizer name: begin, end, padding, added tokens, and the ids that end a text.

transformers reads them in this order, and so does this module: with `added_tokens_decoder` in tokenizer_config.json the
names in that file come first; without it those of special_tokens_map.json do, and added_tokens.json is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.tokenizers.known_tokens import CHAT_MARKERS, EOS_NAMES, PAD_NAMES
from shared_tokenizer.tokenizers.tokenizer_files import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    MODEL_CONFIG_FILES,
    SPECIAL_TOKENS_FILE,
    dump_json,
    parse_json_object,
)

ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_DECODER = "added_tokens_decoder"
# Options of an added token that is matched in a text.
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True)
class AddedToken:
    """A token beyond those of the model: special, or matched in a text before the model runs."""

    content: str
    token_id: int
    is_special: bool
    source: str
    """Name of the file that lists it."""
    flags: Mapping[str, bool]


class NamedTokens:
    """The parsed files that name tokens. Raises ValueError where one is no JSON object or lists no tokens."""

    def __init__(self, files: Mapping[str, bytes]):
        names = (CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE, *MODEL_CONFIG_FILES)
        self._parsed = {name: parse_json_object(name, files[name]) for name in names if name in files}
        self._config_file = files.get(CONFIG_FILE)
        self.added_tokens = tuple(sorted(self._read_added(), key=lambda token: token.token_id))

    @property
    def config(self) -> Mapping[str, Any]:
        """Return tokenizer_config.json, empty where there is none."""
        return self._parsed.get(CONFIG_FILE, {})

    @property
    def tokenizer_class(self) -> str:
        """Return the class that tokenizer_config.json names, without `Fast`; empty where it names none."""
        return str(self.config.get("tokenizer_class") or "").removesuffix("Fast")

    @property
    def adds_prefix_space(self) -> bool | None:
        """Return `add_prefix_space` of tokenizer_config.json, None where it is not set."""
        found = self.config.get("add_prefix_space")
        return found if isinstance(found, bool) else None

    @property
    def names(self) -> set[str]:
        """Return all tokens that tokenizer_config.json or special_tokens_map.json names."""
        return {name for role in ROLES for name in self.names_of(role)}

    @property
    def disagreements(self) -> Iterator[str]:
        """Yield a line per role that tokenizer_config.json and special_tokens_map.json name differently."""
        for role in ROLES:
            found = self._by_file(role)
            if len(set(found.values())) > 1:
                (first, chosen), *others = found.items()
                also = ", ".join(f"{name!r} in {file}" for file, name in others)
                yield f"{role}_token: read {chosen!r} of {first}, as transformers does; found {also}"

    def find_named(self, role: str, ids: Mapping[str, int]) -> int | None:
        """Return the id of the first token of the vocabulary that a tokenizer's file names for a role, else None."""
        return next((ids[name] for name in self.names_of(role) if name in ids), None)

    def find(self, role: str, ids: Mapping[str, int]) -> int | None:
        """Return the id of a role such as `eos`, by the first file that names a token of the vocabulary, else None."""
        found = self.find_named(role, ids)
        if found is not None:
            return found
        known = set(ids.values())
        listed = (self._listed_ids(file, role) for file in MODEL_CONFIG_FILES)
        return next((token_id for ids_of_file in listed for token_id in ids_of_file if token_id in known), None)

    def stop_ids(self, eos_id: int) -> tuple[int, ...]:
        """Return the ids that end a text: the tokenizer's, then those of generation_config.json.

        As in transformers, config.json counts where generation_config.json names none.
        """
        listed = (self._listed_ids(file, "eos") for file in MODEL_CONFIG_FILES)
        return tuple(dict.fromkeys((eos_id, *next(filter(None, listed), ()))))

    def stop_notes(self, eos_id: int) -> Iterator[str]:
        """Yield a line where the model's files name ids that end a text, and the tokenizer's is none of them."""
        for file in MODEL_CONFIG_FILES:
            if listed := self._listed_ids(file, "eos"):
                if eos_id not in listed:
                    ids = ", ".join(map(str, listed))
                    yield f"a text ends at {eos_id}, the tokenizer's eos_token, and at {ids}, eos_token_id of {file}"
                return

    def find_eos(self, ids: Mapping[str, int]) -> int:
        """Return the id of the end-of-text token, by its well-known name where no file names it.

        Raises ValueError where there is none, or the named one is not in the vocabulary.
        """
        found = self.find("eos", ids)
        if found is not None:
            return found
        self.check_named("eos", ids)
        known = [name for name in EOS_NAMES if name in ids]
        if not known:
            raise ValueError(f"tokenizer: found no end-of-text token; name one as eos_token in {CONFIG_FILE}")
        return ids[known[0]]

    def check_named(self, role: str, ids: Mapping[str, int]) -> None:
        """Raise ValueError where a file names a token of a role, and the vocabulary has none of the named ones."""
        named = self.names_of(role)
        if named and not any(name in ids for name in named):
            raise ValueError(
                f"tokenizer: found {role}_token {named[0]!r}, which the vocabulary does not have; name one as "
                f"{role}_token in {CONFIG_FILE}"
            )

    def find_pad(self, ids: Mapping[str, int]) -> int | None:
        """Return the id of the padding token, by its well-known name where no file names it, or None."""
        found = self.find("pad", ids)
        return found if found is not None else next((ids[name] for name in PAD_NAMES if name in ids), None)

    def saved_config(self, tokens: Mapping[str, str | None]) -> bytes:
        """Return tokenizer_config.json as it was read, plus the tokens that no file names."""
        made = {} if self._config_file is not None else {"tokenizer_class": "PreTrainedTokenizerFast"}
        made |= {} if self._config_file is not None else {"clean_up_tokenization_spaces": False}
        missing = {f"{role}_token": token for role, token in tokens.items() if token and not self.names_of(role)}
        if self._config_file is not None and not missing:
            return self._config_file
        return dump_json({**made, **self.config, **missing})

    def names_of(self, role: str) -> Sequence[str]:
        """Return the tokens that the tokenizer's files name for a role, that of transformers first."""
        return list(self._by_file(role).values())

    def _by_file(self, role: str) -> dict[str, str]:
        files = (CONFIG_FILE, SPECIAL_TOKENS_FILE) if _DECODER in self.config else (SPECIAL_TOKENS_FILE, CONFIG_FILE)
        values = {file: self._parsed.get(file, {}).get(f"{role}_token") for file in files}
        contents = {file: value.get("content") if isinstance(value, dict) else value for file, value in values.items()}
        return {file: content for file, content in contents.items() if isinstance(content, str) and content}

    def _listed_ids(self, file: str, role: str) -> list[int]:
        found = self._parsed.get(file, {}).get(f"{role}_token_id")
        listed = found if isinstance(found, list) else [found]
        return [token_id for token_id in listed if type(token_id) is int and token_id >= 0]

    def _read_added(self) -> Iterator[AddedToken]:
        """Yield the tokens of `added_tokens_decoder`, or without it those of added_tokens.json."""
        decoder = self.config.get(_DECODER)
        if decoder is None:
            special = {*self.names, *self._additional_special_tokens()}
            for content, token_id in self._parsed.get(ADDED_TOKENS_FILE, {}).items():
                is_special = content in special or content in CHAT_MARKERS
                yield AddedToken(
                    content, _checked_id(ADDED_TOKENS_FILE, content, token_id), is_special, ADDED_TOKENS_FILE, {}
                )
            return
        where = f"{CONFIG_FILE}: {_DECODER}"
        if not isinstance(decoder, dict):
            raise ValueError(f"{where}: found a JSON {type(decoder).__name__}, expected an object of ids and tokens")
        for key, token in decoder.items():
            content = token.get("content") if isinstance(token, dict) else None
            if not isinstance(content, str) or not content:
                raise ValueError(f"{where}: found {str(token)[:100]!r} for {key!r}, expected an object with a content")
            token_id = _checked_id(where, content, int(key) if key.isascii() and key.isdigit() else key)
            is_special = bool(token.get("special")) or content in CHAT_MARKERS
            yield AddedToken(content, token_id, is_special, where, {flag: bool(token.get(flag)) for flag in _FLAGS})

    def _additional_special_tokens(self) -> Iterator[str]:
        for file in (CONFIG_FILE, SPECIAL_TOKENS_FILE):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                found = self._parsed.get(file, {}).get(key)
                for value in found if isinstance(found, list) else found.values() if isinstance(found, dict) else ():
                    content = value.get("content") if isinstance(value, dict) else value
                    if isinstance(content, str):
                        yield content


def _checked_id(where: str, content: str, token_id: Any) -> int:
    if type(token_id) is not int or token_id < 0:
        raise ValueError(f"{where}: {content!r}: found id {token_id!r}, expected a whole number")
    return token_id

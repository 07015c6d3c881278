"""How llama.cpp cuts a text into words before byte-level BPE, by name, as tokenizer.json says the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.tokenizers.json_vocabulary import BYTE_LEVEL


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers.

    names: of `tokenizer.ggml.pre`; the first one is written.
    steps: the `pre_tokenizer` of tokenizer.json.
    keeps_whole_words: a word that is a token stays whole, whatever the merges say (`ignore_merges`).
    adds_bos: whether the begin token comes first where the metadata does not say.
    """

    names: tuple[str, ...]
    steps: Mapping[str, Any]
    keeps_whole_words: bool = False
    adds_bos: bool = False

    @property
    def name(self) -> str:
        """The name that is written."""
        return self.names[0]


def _sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3_SPLIT = {"type": "Split", "pattern": {"Regex": _LLAMA_3_WORDS}, "behavior": "Isolated", "invert": False}

# Not "default", which llama.cpp also takes where there is no name: it is not GPT-2's, and no tokenizer's own.
PRE_TOKENIZERS = (
    PreTokenizer(names=("gpt-2",), steps=BYTE_LEVEL),
    PreTokenizer(names=("smollm",), steps=_sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)),
    PreTokenizer(
        names=("llama-bpe", "llama3", "llama-v3"),
        steps=_sequence(_LLAMA_3_SPLIT, BYTE_LEVEL | {"use_regex": False}),
        keeps_whole_words=True,
        adds_bos=True,
    ),
)

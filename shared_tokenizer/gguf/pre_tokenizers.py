"""The pre-tokenizers of llama.cpp, which cut a text into words before byte-level BPE, in the form of tokenizer.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared_tokenizer.tokenizers.json_vocabulary import BYTE_LEVEL


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers.

    names: its values of `tokenizer.ggml.pre`; the writer takes the first one.
    steps: the same as `pre_tokenizer` of tokenizer.json.
    keeps_whole_words: True if a word that is a token becomes that token, without the merges (`ignore_merges`).
    adds_bos: True if a text begins with the begin token where the metadata does not say.
    normalizer: the `normalizer` of the tokenizer.json of these models, which llama.cpp leaves out: a text with letters
    and accents in separate characters has other ids there.
    """

    names: tuple[str, ...]
    steps: Mapping[str, Any]
    keeps_whole_words: bool = False
    adds_bos: bool = False
    normalizer: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return the name that the writer takes."""
        return self.names[0]


def _sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _words(digits: str) -> dict[str, Any]:
    """Return the steps of Llama 3 and Qwen2, which differ in the digits that stay together."""
    words = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    return _sequence(split, BYTE_LEVEL | {"use_regex": False})


# Without "default", which llama.cpp takes where there is no name: it differs from GPT-2's and fits no tokenizer.
PRE_TOKENIZERS = (
    PreTokenizer(names=("gpt-2",), steps=BYTE_LEVEL),
    PreTokenizer(names=("smollm",), steps=_sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)),
    PreTokenizer(
        names=("llama-bpe", "llama3", "llama-v3"),
        steps=_words(r"\p{N}{1,3}"),
        keeps_whole_words=True,
        adds_bos=True,
    ),
    PreTokenizer(names=("qwen2", "deepseek-r1-qwen"), steps=_words(r"\p{N}"), normalizer={"type": "NFC"}),
)

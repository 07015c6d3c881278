"""A comparison of two tokenizers of one directory: do they produce the same ids?"""

from itertools import zip_longest

from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Texts in which tokenizers differ: spaces at either end and several of them, newlines, digits, letters with accents.
PROBES = (
    "the quick brown fox",
    " a text that begins with a space",
    "  two spaces  inside and at the end  ",
    "lines\n\n  and\ttabs\r\n",
    "12345 67.89, x_axis = a[0] + b!",
    "Caf\u00e9 e\u0301 \u4f60\u597d \u0434\u0430 \U0001f600",
    "DON'T don't We'll <s> </s>",
)


def first_difference(first: Tokenizer, second: Tokenizer) -> str | None:
    """Return the first difference of two tokenizers in words, None where all tokens and the probes are the same."""
    if first.vocab_size != second.vocab_size:
        return f"{first.vocab_size} tokens, not {second.vocab_size}"
    for name in ("bos_id", "eos_id"):
        if (ours := getattr(first, name)) != (theirs := getattr(second, name)):
            return f"{name} {ours}, not {theirs}"
    for token_id, (ours, theirs) in enumerate(zip_longest(first.pieces, second.pieces)):
        if ours != theirs:
            return f"token {token_id} is {ours!r}, not {theirs!r}"
    for text in PROBES:
        if (ours := first.encode(text)) != (theirs := second.encode(text)):
            return f"{text!r} is {_short(ours)}, not {_short(theirs)}"
    return None


def _short(ids: list[int]) -> str:
    return str(ids if len(ids) <= 8 else [*ids[:8], "..."])

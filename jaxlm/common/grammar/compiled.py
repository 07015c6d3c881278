"""Grammars of llguidance over the tokens of a model: the same for the server and for the process that tries them first.

It imports nothing else of this project, so that the process starts fast.
"""

import re
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

# A step of a usual grammar takes less than a hundredth of these.
LIMITS = LLParserLimits(
    step_lexer_fuel=100_000, initial_lexer_fuel=300_000, max_lexer_states=20_000, verbose_errors=False
)
LONGEST_MESSAGE = 300
# Bytes. llguidance ends with a panic on a longer one.
LONGEST_TOKEN = 1024
# What llguidance adds to an error: its state, and the lines of the grammar.
_DETAILS = re.compile(r"<(?:backtrace|state|grammar|non-verbose)\b|\n +\d+ \| ")
_PLACE = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?")


class _Tokens:
    """The tokens as llguidance asks for them."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], end: int):
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end

    def __call__(self, text: str) -> list[int]:
        """Return no tokens: a grammar of `compile_grammar` has none forced on it, so none is asked for."""
        return []


def grammar_tokenizer(tokens: Sequence[bytes], special: Sequence[int], ends: Sequence[int]) -> LLTokenizer:
    """Return the tokens of a model `[vocab_size]`: their bytes, the ids of special ones, and those that end a text.

    A token of more than LONGEST_TOKEN bytes stands in no text that follows a grammar.
    """
    known = [token if len(token) <= LONGEST_TOKEN else b"" for token in tokens]
    wrapper = TokenizerWrapper(_Tokens(known, special, ends[0]))
    return LLTokenizer(wrapper, n_vocab=len(tokens), eos_token=list(ends))


def compile_grammar(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """Return the matcher of a grammar in llguidance's Lark, at its start.

    Any tokens that spell the text may stand for it. Raises ValueError where the grammar is none, is too large, or
    allows no text of these tokens.
    """
    matcher = LLMatcher(tokenizer, f'%llguidance {{"no_forcing": true}}\n{grammar}', log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(shortened(matcher.get_error()))
    if matcher.is_stopped() and not matcher.is_accepting():
        raise ValueError("none of the model's tokens can begin a text that follows it")
    return matcher


def shortened(error: str) -> str:
    """Return an error of llguidance in one line, without its state."""
    text = _PLACE.sub("", _DETAILS.split(error, maxsplit=1)[0]).strip()
    if text.startswith("regex parse error"):  # between these lines stands the whole expression
        text = f"regex parse error: {text.rpartition('error: ')[2]}"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."

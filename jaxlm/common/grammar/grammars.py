"""The grammars of one model: a schema from elsewhere -> a constraint for each text, compiled once."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from jaxlm.common.grammar.compiled import compile_grammar, grammar_tokenizer
from jaxlm.common.grammar.constraint import GrammarConstraint
from jaxlm.common.grammar.trial import grammar_trial
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Characters of JSON.
LONGEST_SCHEMA = 100_000
KEPT_GRAMMARS = 32
# Requests whose grammars wait for each other; they hold threads that read other requests too.
MOST_WAITING = 8
# White space that JSON may hold at any place: one space, or a new line and its indent. Without a limit a small model
# writes nothing else for ever.
JSON_SPACE = r"(\n[ \t]{0,20}| )"


def json_rule(name: str, schema: Mapping[str, Any]) -> str:
    """Return a rule in llguidance's Lark for the JSON texts that a schema describes.

    Raises ValueError where the schema is too large.
    """
    text = json.dumps(dict(schema) | {"x-guidance": {"whitespace_pattern": JSON_SPACE}})
    if len(text) > LONGEST_SCHEMA:
        raise ValueError(f"schema: found {len(text)} characters, expected at most {LONGEST_SCHEMA}; simplify it")
    return f"{name}: %json {text}\n"


class BusyError(Exception):
    """As many grammars wait to be compiled as may."""


class Grammars:
    """The grammars over the tokens of one model. `ends` are the tokens that end a text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Collection[int]):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._ends = sorted(end for end in set(ends) if end < vocab_size)
        self._waiting, self._compiling = threading.BoundedSemaphore(MOST_WAITING), threading.Lock()
        self._compiled = OrderedDict[str, LLMatcher]()

    def json(self, schema: Mapping[str, Any], name: str) -> GrammarConstraint:
        """Return a constraint to a JSON text that a schema describes, after one space or none.

        `name` is the field that asks for it, for errors. Raises ValueError where the schema cannot be followed, and
        BusyError.
        """
        return self.follow(f"start: SPACE? value\nSPACE: / /\n{json_rule('value', schema)}", name)

    def follow(self, grammar: str, name: str) -> GrammarConstraint:
        """Return a constraint to a grammar in llguidance's Lark; see `json`."""
        matcher = self._compiled.get(grammar) or self._compile(grammar)
        return GrammarConstraint(matcher.deep_copy(), self._vocab_size, self._ends, name)

    def _compile(self, grammar: str) -> LLMatcher:
        if not self._waiting.acquire(blocking=False):
            raise BusyError
        try:
            with self._compiling:
                tokens, special, key = self._vocabulary
                grammar_trial().check(grammar, key, tokens, special, self._ends)
                matcher = self._compiled[grammar] = compile_grammar(grammar, self._tokens)
                if len(self._compiled) > KEPT_GRAMMARS:
                    self._compiled.popitem(last=False)
                return matcher
        finally:
            self._waiting.release()

    @cached_property
    def _vocabulary(self) -> tuple[list[bytes], list[int], str]:
        """Return the bytes of each token, the ids of those that are no text, and a key of both."""
        tokenizer, size = self._tokenizer, self._vocab_size
        names = {token: text.encode() for text, token in tokenizer.special_tokens.items() if token < size}
        tokens = [*tokenizer.pieces[:size], *[b""] * (size - len(tokenizer.pieces))]
        for token, name in names.items():
            tokens[token] = name
        content = repr((tokens, sorted(names), self._ends)).encode()
        return tokens, sorted(names), hashlib.sha256(content).hexdigest()

    @cached_property
    def _tokens(self) -> LLTokenizer:
        tokens, special, _ = self._vocabulary
        return grammar_tokenizer(tokens, special, self._ends)

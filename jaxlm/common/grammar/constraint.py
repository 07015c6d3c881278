"""A grammar that a text follows, and where in it the text is."""

from collections.abc import Collection

import numpy as np
from llguidance import LLMatcher

from jaxlm.common.grammar.compiled import shortened


class GrammarConstraint:
    """The state of one text. The tokens of `ends` end it, where the grammar accepts what stands before them."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, ends: Collection[int], name: str):
        """`name` is the field of a request that asks for the grammar, for errors."""
        self._matcher, self._vocab_size, self._ends, self._name = matcher, vocab_size, frozenset(ends), name
        self._has_ended = False

    def copied(self) -> "GrammarConstraint":
        """Return a constraint for another text, which is where this one is."""
        return GrammarConstraint(self._matcher.deep_copy(), self._vocab_size, self._ends, self._name)

    def allowed(self) -> np.ndarray:
        """Return bools `[vocab_size]`: True for the tokens that may come next, those that end the text among them.

        After an end, and where the text cannot go on (see `failure`), only those are.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)

    def accept(self, token: int) -> None:
        """Go on by a token."""
        if token in self._ends:
            self._has_ended = True
        elif not self._has_ended:
            self._matcher.consume_token(token)

    @property
    def failure(self) -> str | None:
        """Return why the text cannot be brought to an end that the grammar accepts, None where nothing has failed."""
        matcher = self._matcher
        if not (matcher.is_error() or matcher.is_stopped()) or matcher.is_accepting():
            return None
        if "NoExtension" in (matcher.get_error() or matcher.stop_reason()):
            return f"{self._name}: found no token of the model that continues the text by its grammar; simplify it"
        return f"{self._name}: the grammar is too complex: {shortened(matcher.get_error())}; simplify it"

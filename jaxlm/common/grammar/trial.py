"""The trial of a grammar in a child process with limits on time and memory (`child`)."""

import functools
import threading
from collections.abc import Sequence

from shared_tokenizer.sandbox.isolated import IsolatedChild, Limits, Wording

# A vocabulary of 128k tokens is 2 MB, and takes half a second.
LIMITS = Limits(seconds=1.0, wait_s=3.0, bytes_per_s=1_000_000, memory_bytes=1 << 30)
LONGEST_REPLY = 10_000


class GrammarTrial:
    """A child process that compiles grammars, to see that they compile in time; it lives as long as this process."""

    def __init__(self) -> None:
        wording = Wording("schema", "a grammar", "simplify it")
        self._lock = threading.Lock()
        self._child = IsolatedChild("jaxlm.common.grammar.child", ("llguidance",), LIMITS, wording)

    def check(
        self, grammar: str, key: str, tokens: Sequence[bytes], special: Sequence[int], ends: Sequence[int]
    ) -> None:
        """Raise ValueError where a grammar over these tokens, of this key, does not compile within the limits."""
        request = {"key": key, "grammar": grammar}
        with self._lock:
            if "unknown" in self._child.ask_within_limits(request, LONGEST_REPLY):
                spelled = [token.decode("latin-1") for token in tokens]
                vocabulary = {"key": key, "tokens": spelled, "special": list(special), "ends": list(ends)}
                self._child.ask_within_limits(vocabulary, LONGEST_REPLY)
                self._child.ask_within_limits(request, LONGEST_REPLY)


@functools.cache
def grammar_trial() -> GrammarTrial:
    """Return the trial that all models of this process share."""
    return GrammarTrial()

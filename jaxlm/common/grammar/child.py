"""Compile grammars in a process of its own, which `trial` starts: one from elsewhere may take for ever or crash."""

import json
from typing import Any

from llguidance import LLTokenizer

from jaxlm.common.grammar.compiled import compile_grammar, grammar_tokenizer
from shared_tokenizer.sandbox.child_loop import answer_within_limits


def answer(content: bytes, known: dict[str, LLTokenizer]) -> dict[str, Any]:
    """Return the reply to a request: what is wrong with a grammar, or nothing.

    A vocabulary comes once, and has a key from then on.
    """
    try:
        request = json.loads(content)
        if "tokens" in request:
            tokens = [token.encode("latin-1") for token in request["tokens"]]
            known.clear()
            known[request["key"]] = grammar_tokenizer(tokens, request["special"], request["ends"])
            return {}
        if request["key"] not in known:
            return {"unknown": True}
        compile_grammar(request["grammar"], known[request["key"]])
    except MemoryError:
        return {"limit": "memory"}
    except ValueError as error:
        return {"wrong": str(error)}
    except BaseException as error:  # llguidance's own faults are none of Exception
        return {"wrong": f"a grammar that cannot be compiled: {type(error).__name__}"}
    return {}


def main() -> None:
    """Answer requests until standard input ends."""
    known = dict[str, LLTokenizer]()
    tiny = {"key": "", "tokens": ["", "a"], "special": [0], "ends": [0]}
    for request in (tiny, {"key": "", "grammar": 'start: "a"'}):  # imports what compiling needs
        answer(json.dumps(request).encode(), known)
    answer_within_limits(lambda content: answer(content, known))


if __name__ == "__main__":
    main()

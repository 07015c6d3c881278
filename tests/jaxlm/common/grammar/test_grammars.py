"""Schemas, of friends and of others: what they allow token by token, and how they are refused."""

import random
import re
import threading
import time

import numpy as np
import pytest

from jaxlm.common.grammar.compiled import LONGEST_TOKEN, compile_grammar, grammar_tokenizer
from jaxlm.common.grammar.grammars import JSON_SPACE, LONGEST_SCHEMA, MOST_WAITING, BusyError, Grammars
from jaxlm.common.grammar.trial import LIMITS, GrammarTrial
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import byte_level_library_tokenizer

SIZE = 310  # of a model, with ids that the tokenizer has not
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "tags": {"type": "array", "items": {"type": "integer"}}},
    "required": ["kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, SIZE, [*tokenizer.stop_ids, tokenizer.special_tokens["<|im_end|>"], SIZE + 5])


def ends(tokenizer):
    return {tokenizer.eos_id, tokenizer.special_tokens["<|im_end|>"]}


def follow(constraint, tokens):
    """Go on by tokens, each of which is allowed."""
    for token in tokens:
        assert constraint.allowed()[token], token
        constraint.accept(token)


def allowed(constraint):
    return set(np.flatnonzero(constraint.allowed()).tolist())


@pytest.mark.parametrize("text", ['{"kind":"b","tags":[1, 23]}', '{\n  "kind": "a",\n  "tags": []\n}'])
def test_a_text_of_the_schema_may_be_written_and_ends_where_it_is_whole(grammars, tokenizer, text):
    constraint = grammars.json(SCHEMA, "response_format")
    assert constraint.allowed().shape == (SIZE,)
    for token in tokenizer.encode(text):
        assert not allowed(constraint) & ends(tokenizer)
        follow(constraint, [token])
    assert allowed(constraint) == ends(tokenizer) and constraint.failure is None
    constraint.accept(tokenizer.eos_id)
    constraint.accept(tokenizer.encode("x")[0])  # what an engine computes ahead
    assert allowed(constraint) == ends(tokenizer) and constraint.failure is None


@pytest.mark.parametrize("text", ['{"kind":"c', '{"t', "[", '{"kind":"a","tags":[1.', '{"kind":  ', "\n", "<"])
def test_another_text_may_not(grammars, tokenizer, text):
    constraint, tokens = grammars.json(SCHEMA, "response_format"), tokenizer.encode(text)
    follow(constraint, tokens[:-1])
    assert not constraint.allowed()[tokens[-1]]


def test_tokens_are_what_they_spell_byte_by_byte(grammars, tokenizer):
    constraint = grammars.json({"type": "string"}, "response_format")
    follow(constraint, [*tokenizer.encode('"\N{SLIGHTLY SMILING FACE}')])
    partial = tokenizer.encode("\N{SLIGHTLY SMILING FACE}")[0]
    quote = tokenizer.encode('a"')[-1]
    follow(constraint, [partial])
    assert not constraint.allowed()[quote]  # within a character
    special = set(tokenizer.special_tokens.values())
    assert not allowed(constraint) & special and max(allowed(constraint)) < tokenizer.vocab_size


def test_a_tokenizer_json_is_followed_too():
    tokenizer = JsonTokenizer(byte_level_library_tokenizer().to_str().encode())
    constraint = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids).json(SCHEMA, "response_format")
    follow(constraint, tokenizer.encode('{"kind": "a", "tags": [12]}'))
    assert allowed(constraint) == set(tokenizer.stop_ids)


def test_a_vocabulary_may_hold_a_very_long_token():
    tokens = [b"</s>", *(bytes([byte]) for byte in range(256)), b"a" * (LONGEST_TOKEN + 1), b"a" * LONGEST_TOKEN]
    matcher = compile_grammar("start: /a*/", grammar_tokenizer(tokens, [0], [0]))
    found = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    assert found.nonzero()[0].tolist() == [0, 1 + ord("a"), 258]


def test_texts_go_on_apart(grammars, tokenizer):
    first = grammars.json(SCHEMA, "response_format")
    follow(first, tokenizer.encode('{"kind"'))
    second = first.copied()
    follow(first, tokenizer.encode(':"a"'))
    follow(second, tokenizer.encode(':"b"'))
    third = grammars.json(SCHEMA, "response_format")
    assert third.allowed()[tokenizer.encode("{")[0]] and not second.allowed()[tokenizer.encode("{")[0]]


def test_any_order_of_white_space_is_no_way_to_write_for_ever():
    assert all(re.fullmatch(JSON_SPACE, space) for space in (" ", "\n", "\n    ", "\n\t"))
    assert not any(re.fullmatch(JSON_SPACE, space) for space in ("", "  ", "\n\n", f"\n{' ' * 21}"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "(" * 999 + ")" * 999}, "regex parse error: .*nested parentheses"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "regex parse error: look-around"),
        ({"type": "array", "uniqueItems": True}, "Unimplemented keys: ..uniqueItems"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": 3}, "type"),
        ({"maximum": float("inf")}, ""),
        ({"$ref": "file:///etc/passwd"}, "not present in a registry"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "allOf": [{"const": "a"}, {"const": "b"}]}, "[Uu]nsatisfiable"),
        ({"enum": ["x" * 30] * 9999}, f"expected at most {LONGEST_SCHEMA}"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_in_one_line(grammars, schema, message):
    with pytest.raises(ValueError, match=rf"^schema: found .*{message}.*; simplify it$") as caught:
        grammars.json(schema, "response_format")
    text = str(caught.value)
    assert len(text) < 400 and "\n" not in text and not re.search("<state|<backtrace|/home|[.]rs", text)


def test_a_recursive_schema_and_unknown_keywords_are_fine(grammars, tokenizer):
    tree = {"type": "array", "items": {"$ref": "#"}, "x-mine": 1, "x-guidance": {"whitespace_flexible": False}}
    constraint = grammars.json(tree, "response_format")
    follow(constraint, tokenizer.encode("[[], [[]]]"))
    assert allowed(constraint) == ends(tokenizer)


def test_a_schema_that_takes_for_ever_is_ended_and_the_next_one_is_served(grammars, monkeypatch):
    trial = GrammarTrial()
    monkeypatch.setattr("jaxlm.common.grammar.grammars.grammar_trial", lambda: trial)
    bomb = {"type": "string", "allOf": [{"pattern": f"a.{{{count}}}b"} for count in range(200)]}
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=f"schema: it ran for {LIMITS.seconds:g} s and had not ended, expected a grammar"
    ):
        grammars.json({"type": "object", "properties": {"a": bomb}}, "response_format")
    assert time.monotonic() - started < LIMITS.wait_s + 2
    assert grammars.json({"type": "null"}, "response_format").failure is None
    trial._child.end()


def test_a_grammar_that_grows_too_complex_while_it_is_followed_says_so(grammars, tokenizer):
    constraint = grammars.json({"type": "string", "pattern": "(.*a.{500}){9}"}, "response_format")
    choose = random.Random(0)
    constraint.accept(tokenizer.encode('x"')[-1])
    for _ in range(500):
        tokens = allowed(constraint)
        if constraint.failure is not None:
            break
        constraint.accept(tokenizer.encode("x" + choose.choice("abz"))[-1])
    assert tokens == ends(tokenizer)
    assert re.match(r"response_format: the grammar is too complex: [^<\n]+; simplify it$", constraint.failure)


def test_a_grammar_without_tokens_for_it_says_so(grammars):
    constraint = grammars.json({"$ref": "#"}, "response_format")
    constraint.accept(np.flatnonzero(constraint.allowed())[0])
    assert constraint.allowed().any() and "no token of the model that continues the text" in constraint.failure


def test_few_requests_wait_for_a_grammar(grammars, monkeypatch):
    goes_on = threading.Event()

    class Slow:
        def check(self, *_):
            goes_on.wait(10)

    monkeypatch.setattr("jaxlm.common.grammar.grammars.grammar_trial", Slow)
    schemas = [{"const": number} for number in range(MOST_WAITING)]
    threads = [threading.Thread(target=grammars.json, args=(schema, "x")) for schema in schemas]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 5
    while grammars._waiting._value and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(BusyError):
        grammars.json({"const": "more"}, "x")
    assert grammars.json(SCHEMA, "x").failure is None  # compiled before
    goes_on.set()
    for thread in threads:
        thread.join()
    assert grammars.json({"const": "more"}, "x").failure is None

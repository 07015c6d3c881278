"""The rows of the probes: small questions, each about one thing that a language model learns early.

A row is a context and choices that may follow it. Rows come in groups: all rows of a group have the same choices, and
each choice is the answer of one of them. So whoever looks at the choices alone, at their lengths or at the frequencies
of their tokens, is right exactly as often as by chance.

Words have four letters and are common in books and in source code.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared_tokenizer.sources.documents import is_validation, read_documents

# fmt: off
NOUNS = (
    "name", "line", "time", "list", "word", "part", "type", "form", "case", "side", "hand", "work", "book", "page",
    "text", "item", "code", "mode", "size", "root", "tree", "path", "link", "node", "unit", "test", "base", "body",
    "call", "copy", "date", "door", "edge", "fact", "face", "game",
)
PEOPLE = ("Mary", "John", "Paul", "Jane", "Mark", "Anna", "Luke", "Rose", "Jack", "Emma")
THINGS = ("book", "lamp", "coin", "ring", "rope", "boat", "ball", "cake", "door", "card")
ADJECTIVES = ("first", "second", "last", "same", "other", "new", "old", "long", "short", "small", "large", "next")
# fmt: on
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))
PREPOSITIONS = ("of", "for", "in", "near", "with", "after")
# Kinds of brackets by letters, in the order in which they open and, as capitals, close.
FLAT, NESTED = ("a",), ("ab", "abc", "abB", "bcC", "abcC", "acCbB")
OPENERS, CLOSERS = "([{", ")]}"
# The fraction that a preparation holds out by default: models that were trained on the library have not seen it.
HELD_OUT = 0.05
CONTEXT_LINES, SHORTEST_LINE = 8, 16


@dataclass(frozen=True)
class Choices:
    """A context, the choices that may follow it, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


# Yields the rows of one group after another, without an end.
Groups = Callable[[random.Random], Iterator[list[Choices]]]


def group(contexts: Iterable[str], choices: Sequence[str]) -> list[Choices]:
    """Return the rows of a group. Each context is followed by the choice of the same index."""
    return [Choices(context, tuple(choices), index) for index, context in enumerate(contexts)]


def copying(distance: int) -> Groups:
    """Return rows in which a line of `distance` words is written again: which word comes next?"""

    def groups(source: random.Random) -> Iterator[list[Choices]]:
        while True:
            words = source.sample(NOUNS, distance)
            places = source.sample(range(1, distance), 4)
            contexts = [" ".join(words) + "\n" + " ".join(words[:place]) for place in places]
            yield group(contexts, [f" {words[place]}" for place in places])

    return groups


def induction(distance: int) -> Groups:
    """Return rows in which one word stands again, `distance` words after its pair: which word followed it?"""

    def groups(source: random.Random) -> Iterator[list[Choices]]:
        while True:
            words = source.sample(NOUNS, len(NOUNS))
            pairs, others = words[:8], words[8:]
            between = [source.choice(others) for _ in range(distance)]
            before = " ".join([*others[:4], *pairs, *between])
            yield group([f"{before} {cue}" for cue in pairs[::2]], [f" {word}" for word in pairs[1::2]])

    return groups


def brackets(shapes: Sequence[str]) -> Groups:
    """Return rows with open brackets, of one of the shapes: which one is closed first?"""

    def groups(source: random.Random) -> Iterator[list[Choices]]:
        while True:
            shape, words, kinds = source.choice(shapes), source.sample(NOUNS, 6), source.sample(range(3), 3)
            rows = [_bracketed(shape, words, [(kind + turn) % 3 for kind in kinds]) for turn in range(3)]
            yield group([context for context, _ in rows], [closer for _, closer in rows])

    return groups


def _bracketed(shape: str, words: Sequence[str], kinds: Sequence[int]) -> tuple[str, str]:
    """Return nested displays of names, such as `name = (line, [time], word`, and what closes the innermost one."""
    names, open_kinds = iter(words), list[int]()
    text = f"{next(names)} ="
    for letter in shape:
        kind = kinds["abc".index(letter.lower())]
        if letter.isupper():
            text += CLOSERS[open_kinds.pop()]
        else:
            text += f"{',' if open_kinds else ''} {OPENERS[kind]}{next(names)}"
            open_kinds.append(kind)
    return f"{text}, {next(names)}", CLOSERS[open_kinds[-1]]


def agreement(*, across: bool) -> Groups:
    """Return rows with a subject: is its verb singular or plural? `across` a noun of the other number, or beside it."""

    def groups(source: random.Random) -> Iterator[list[Choices]]:
        while True:
            adjective, preposition = source.choice(ADJECTIVES), source.choice(PREPOSITIONS)
            noun, other = source.sample(NOUNS, 2)
            subjects = [f"The {adjective} {noun}", f"The {adjective} {_plural(noun)}"]
            if across:
                subjects = [
                    f"{subjects[0]} {preposition} the {_plural(other)}",
                    f"{subjects[1]} {preposition} the {other}",
                ]
            yield group(subjects, source.choice(VERBS))

    return groups


def _plural(noun: str) -> str:
    return {"body": "bodies", "copy": "copies"}.get(noun, f"{noun}s")


def addition(source: random.Random) -> Iterator[list[Choices]]:
    """Yield rows with a sum of two two-digit numbers, after three sums with their results."""
    while True:
        lowest = source.randrange(30, 88)
        results = [lowest, lowest + 1, lowest + 10, lowest + 11]
        examples = source.sample([result for result in range(20, 100) if result not in results], 3)
        before = "".join(f"{_sum(result, source)} {result}\n" for result in examples)
        yield group([before + _sum(result, source) for result in results], [f" {result}" for result in results])


def _sum(result: int, source: random.Random) -> str:
    first = source.randrange(10, result - 9)
    return f"{first} + {result - first} ="


def recall(source: random.Random) -> Iterator[list[Choices]]:
    """Yield rows that say who has which of six things, and ask for one of them."""
    while True:
        people, things = source.sample(PEOPLE, 6), source.sample(THINGS, 6)
        told = " ".join(f"{person} has the {thing}." for person, thing in zip(people, things, strict=True))
        asked = source.sample(range(6), 4)
        yield group([f"{told} {people[index]} has the" for index in asked], [f" {things[index]}" for index in asked])


def next_line(texts: Sequence[str]) -> Groups:
    """Return rows with lines of source code: which of three lines of the same file, depth and length comes next?

    Contexts have at most CONTEXT_LINES lines.
    """

    def groups(source: random.Random) -> Iterator[list[Choices]]:
        found = [(lines, places) for lines in map(str.splitlines, texts) for places in _similar_lines(lines)]
        if not found:
            raise ValueError("next_line: found no three lines of one depth and length, expected source code")
        while True:
            lines, places = source.choice(found)
            places = source.sample(places, 3)
            contexts = ["\n".join(lines[max(0, place - CONTEXT_LINES) : place]) for place in places]
            choices = [f"\n{lines[place]}" for place in places]
            if not any(choice in f"\n{context}" for choice in choices for context in contexts):
                yield group(contexts, choices)

    return groups


def _similar_lines(lines: Sequence[str]) -> list[list[int]]:
    """Return places of at least three different lines of the same depth, whose lengths differ by at most an eighth."""
    by_shape = dict[tuple[int, int], dict[str, int]]()
    for place, line in enumerate(lines[CONTEXT_LINES:], CONTEXT_LINES):
        text = line.strip()
        if len(text) >= SHORTEST_LINE and not text.startswith("#") and lines[place - 1].strip():
            # Lengths 16 to 17, 18 to 19, 20 to 22, ...: each at most an eighth above the shortest.
            width, start = 0, SHORTEST_LINE
            while start + start // 8 <= len(text):
                width, start = width + 1, start + start // 8
            by_shape.setdefault((len(line) - len(text), width), {}).setdefault(line, place)
    return [list(places.values()) for places in by_shape.values() if len(places) >= 3]


def held_out_library() -> list[str]:
    """Return the files of this Python's standard library that a preparation of it holds out by default."""
    return [document.text for document in read_documents(["stdlib"]) if is_validation(document, HELD_OUT)]

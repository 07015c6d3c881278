"""Texts to continue together, the same in every framework."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jaxlm.common.sampling import Sampling


@dataclass(frozen=True)
class Text:
    """The ids of a prompt, and what belongs to its continuation alone."""

    prompt: Sequence[int]
    max_tokens: int
    """Tokens to generate, at most; a full context ends the text before."""
    seed: int = 0
    """Seed of its random choices: the text is the same alone and in a batch, but for rounding."""


# Takes the number of a text and its next token, and returns True where this token ends the text.
AddToken: TypeAlias = Callable[[int, int], bool]

# Texts, how to choose their tokens, what takes the tokens -> the number of each text as soon as it has ended. Raises
# ValueError where a prompt is empty, holds an id outside the vocabulary, or leaves no room in the model's context.
ContinueTexts: TypeAlias = Callable[[Sequence[Text], Sampling, AddToken], Iterator[int]]


def longest_first(texts: Sequence[Text]) -> list[int]:
    """Return the numbers of texts in the order in which they are generated: by length of the prompt, longest first.

    A batch is padded to the longest, and what needs the most memory comes first.
    """
    return sorted(range(len(texts)), key=lambda number: len(texts[number].prompt), reverse=True)

"""A model as the tasks of an evaluation see it, in any framework."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxlm.common.evaluation.scoring import TokenScores, Track
from jaxlm.common.generation.texts import ContinueTexts
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


class Score(Protocol):
    """Scores of the tokens of rows that follow their contexts, see `score_rows`."""

    def __call__(
        self, rows: Sequence[Sequence[int]], context_lengths: Sequence[int], *, track: Track = iter
    ) -> list[TokenScores]: ...


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its tokenizer, and the two things that tasks ask of it: scores and continuations."""

    name: str
    tokenizer: Tokenizer
    max_seq_len: int
    """Tokens that the model sees, at most."""
    score: Score
    continue_texts: ContinueTexts
    chat_format: ChatFormat | None = None
    """Format in which tasks are written as conversations; None writes them as text."""

"""The work that a request asks of an engine, and the events by which the engine answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class TokenPenalties:
    """Amounts that are taken off the logits of tokens which the answer holds already; 0 changes nothing."""

    presence: float = 0.0
    """Taken off once."""
    frequency: float = 0.0
    """Taken off for every time that the token was generated."""


class Constraint(Protocol):
    """A grammar that a text follows, and where in it the text is."""

    def allowed(self) -> np.ndarray:
        """Return bools `[vocab_size]`: True for the tokens that may come next, those that end the text among them."""
        ...

    def accept(self, token: int) -> None:
        """Go on by a token."""
        ...

    @property
    def failure(self) -> str | None:
        """Return why the text cannot be brought to a valid end, for its client; None where nothing has failed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One text to generate."""

    prompt: list[int]
    """Token ids, which fit the model's context."""
    generates: bool = True
    """False if only the prompt is scored."""
    sampling: Sampling
    penalties: TokenPenalties = TokenPenalties()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Amounts that are added to the logits of these tokens."""
    logprobs: int | None = None
    """Likeliest tokens that are reported with each generated token and its log-probability; None reports nothing."""
    scores_prompt: bool = False
    """True if the tokens of the prompt are scored too, with `logprobs` likeliest tokens each."""
    constraint: Constraint | None = None
    """Grammar that the text follows; only the engine's thread uses it."""
    adapter: str | None = None
    """Name of the adapters to use, None for the model as it is served."""
    stop_ids: frozenset[int]
    """Tokens that end the text."""
    reply: ReplyText
    """Decoder of the tokens; only the engine's thread uses it."""

    def check_constraint(self) -> None:
        """Raise ApiError (400) where the grammar cannot be followed any further."""
        if self.constraint is not None and (failure := self.constraint.failure) is not None:
            raise ApiError(400, failure, code="grammar_failed")


@dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability in nats, of the model's own distribution: before temperature and penalties."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place with their log-probabilities, in falling order."""


@dataclass(frozen=True)
class PromptScores:
    """The scores of a prompt's tokens but the first, which nothing precedes; the first event where they are asked."""

    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True)
class Piece:
    """The text that one or more tokens add, and their scores if the task asks for them.

    The text may be empty: it holds back an incomplete character, or what may become a stop sequence.
    """

    text: str
    tokens: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The end of a generation, with its token counts."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    """Generated tokens, including the one that ended the text."""
    cached_tokens: int
    """Tokens of the prompt whose keys, values and states were in memory."""


Event: TypeAlias = PromptScores | Piece | Finish

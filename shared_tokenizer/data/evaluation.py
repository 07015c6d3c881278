"""Loss on text, in nats per token and in bits per byte, the same in every framework.

Bits per byte can be compared between models of different tokenizers; nats per token cannot.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import SupportsFloat, SupportsInt

import numpy as np

from shared_tokenizer.data.batches import evaluation_batches
from shared_tokenizer.data.examples import Example, Windows
from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Returns the summed loss of a batch in nats over the tokens of its loss mask, and the number of these tokens.
LossSum = Callable[[Example], tuple[SupportsFloat, SupportsInt]]


@dataclass(frozen=True)
class Evaluation:
    """Totals over the predicted tokens."""

    nats: float
    """Summed loss."""
    tokens: int
    text_bytes: int
    """UTF-8 bytes of their text."""
    greedy: int | None = None
    """Tokens that are the likeliest ones; None where this was not computed."""
    unknown: int | None = None
    """Tokens that stand for characters which the tokenizer has no token for; None likewise."""

    def __add__(self, other: "Evaluation") -> "Evaluation":
        counts = {
            name: None if None in (ours, theirs) else ours + theirs
            for name in ("greedy", "unknown")
            for ours, theirs in [(getattr(self, name), getattr(other, name))]
        }
        return Evaluation(
            self.nats + other.nats, self.tokens + other.tokens, self.text_bytes + other.text_bytes, **counts
        )

    def __str__(self) -> str:
        return f"{self.loss:.4f} nats per token  {self.bits_per_byte:.4f} bits per byte"

    @property
    def accuracy(self) -> float | None:
        """Return the share of tokens that are the likeliest ones, None where this was not computed."""
        return None if self.greedy is None else self.greedy / self.tokens

    @property
    def unknown_share(self) -> float | None:
        """Return the share of unknown tokens, None where this was not computed."""
        return None if self.unknown is None else self.unknown / self.tokens

    @property
    def loss(self) -> float:
        """Return the loss in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Return exp(loss)."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Return the loss in bits per UTF-8 byte of text."""
        return self.nats / math.log(2) / self.text_bytes


def evaluate_batches(
    loss_sum: LossSum,
    batches: Iterable[Example],
    token_bytes: np.ndarray,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Return the totals over batches of `[B, L]`.

    `token_bytes` int32 `[vocab_size]` is `Tokenizer.token_bytes`. `check` is called before every batch; it may raise,
    to stop the evaluation.
    """
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
        check()
        loss, count = loss_sum(batch)
        nats += float(loss)
        tokens += int(count)
        text_bytes += count_bytes(batch, token_bytes)
    return Evaluation(nats, tokens, text_bytes)


def count_bytes(batch: Example, token_bytes: np.ndarray) -> int:
    """Return the UTF-8 bytes of the targets in the loss mask. `token_bytes` is int32 `[vocab_size]`."""
    return int(token_bytes[batch["targets"][batch["loss_mask"]]].sum())


def text_batches(
    tokenizer: Tokenizer, texts: Iterable[str], seq_len: int, batch_size: int, vocab_size: int
) -> list[Example]:
    """Return texts as documents in windows of `seq_len` tokens, in batches `[batch_size, seq_len]`.

    Raises ValueError where there is no text, or a token lies outside the `vocab_size` of the model.
    """
    encoded = tokenizer.encode_batch(list(texts))
    documents = [[*tokenizer.start_ids, *ids, tokenizer.eos_id] for ids in encoded]
    if (largest := max(map(max, documents), default=0)) >= vocab_size:
        raise ValueError(f"tokenizer: found token {largest}, expected 0..{vocab_size - 1}; it belongs to another model")
    windows = Windows(TokenShards.from_documents(documents), seq_len, "text")
    return evaluation_batches([windows], batch_size, len(windows))

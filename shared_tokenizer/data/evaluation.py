"""Loss on text in nats per token and in bits per byte, which no tokenizer can flatter; the same in every framework."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import SupportsFloat, SupportsInt

import numpy as np

from shared_tokenizer.data.batches import evaluation_batches
from shared_tokenizer.data.examples import Example, Windows
from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# The summed loss of a batch in nats over the tokens of its loss mask, and how many they are.
LossSum = Callable[[Example], tuple[SupportsFloat, SupportsInt]]


@dataclass(frozen=True)
class Evaluation:
    """Totals over the predicted tokens."""

    nats: float
    tokens: int
    text_bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.text_bytes


def evaluate_batches(
    loss_sum: LossSum,
    batches: Iterable[Example],
    token_bytes: np.ndarray,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Total loss over batches. `token_bytes` is the tokenizer's table; `check` runs between batches."""
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
        check()
        loss, count = loss_sum(batch)
        nats += float(loss)
        tokens += int(count)
        text_bytes += count_bytes(batch, token_bytes)
    return Evaluation(nats, tokens, text_bytes)


def count_bytes(batch: Example, token_bytes: np.ndarray) -> int:
    """UTF-8 bytes of the text that the batch's targets stand for."""
    return int(token_bytes[batch["targets"][batch["loss_mask"]]].sum())


def text_batches(
    tokenizer: Tokenizer, texts: Iterable[str], seq_len: int, batch_size: int, vocab_size: int
) -> list[Example]:
    """Documents one after another, in windows of `seq_len` tokens.

    Raises ValueError where there is no text, or a token lies outside the `vocab_size` of the model.
    """
    encoded = tokenizer.encode_batch(list(texts))
    documents = [[*tokenizer.start_ids, *ids, tokenizer.eos_id] for ids in encoded]
    if (largest := max(map(max, documents), default=0)) >= vocab_size:
        raise ValueError(f"tokenizer: found token {largest}, expected 0..{vocab_size - 1}; it belongs to another model")
    windows = Windows(TokenShards.from_documents(documents), seq_len, "text")
    return evaluation_batches([windows], batch_size, len(windows))

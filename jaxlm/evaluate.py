"""Loss of a model on text, in nats per token and in bits per byte (which no tokenizer can flatter)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxlm.data import Batch
from jaxlm.loss import loss_sum
from jaxlm.model import LanguageModel
from jaxlm.ternary_linear import Params, ternarize
from shared_tokenizer.batches import evaluation_batches
from shared_tokenizer.examples import Windows
from shared_tokenizer.shards import TokenShards
from shared_tokenizer.tokenizer import Tokenizer

UNIGRAM_TOKENS = 100_000_000
UNIGRAM_CHUNK = 1 << 22


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


LossFunction = Callable[[Params, Batch], tuple[jax.Array, jax.Array]]


def make_loss_function(model: LanguageModel) -> jax.stages.Wrapped:
    """The jitted summed loss and token count of a batch; parameters may be latent or ternary."""
    return jax.jit(lambda params, batch: loss_sum(model, params, batch))


def evaluate(
    loss_function: LossFunction,
    params: Params,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Total loss over batches. `token_bytes` is the tokenizer's table; `check` runs between batches."""
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
        check()
        loss, count = loss_function(params, batch)
        nats += float(loss)
        tokens += int(count)
        text_bytes += count_bytes(batch, token_bytes)
    return Evaluation(nats, tokens, text_bytes)


def count_bytes(batch: Batch, token_bytes: np.ndarray) -> int:
    """UTF-8 bytes of the text that the batch's targets stand for."""
    return int(token_bytes[batch["targets"][batch["loss_mask"]]].sum())


def evaluate_text(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    seq_len: int,
    batch_size: int,
) -> Evaluation:
    """Evaluate on documents, in windows of `seq_len` tokens. Raises ValueError where there is no text."""
    encoded = tokenizer.encode_batch(list(texts))
    shards = TokenShards.from_documents([[*tokenizer.start_ids, *ids, tokenizer.eos_id] for ids in encoded])
    windows = Windows(shards, min(seq_len, model.config.max_seq_len), "text")
    batches = evaluation_batches([windows], batch_size, len(windows))
    ternary = ternarize(params, model.config)
    return evaluate(make_loss_function(model), ternary, batches, tokenizer.token_bytes)


def unigram_evaluation(
    train: Sequence[TokenShards], vocab_size: int, batches: Iterable[Batch], token_bytes: np.ndarray
) -> Evaluation:
    """The same tokens under the train splits' token frequencies (add-one): what any model must beat.

    The frequencies are those of the first UNIGRAM_TOKENS tokens of each.
    """
    counts = np.ones(vocab_size)
    for shards in train:
        for start in range(0, min(len(shards), UNIGRAM_TOKENS), UNIGRAM_CHUNK):
            span = shards.read(start, UNIGRAM_CHUNK)
            counts += np.bincount(span.ids[span.learned], minlength=vocab_size)
    nats_per_token = -np.log(counts / counts.sum())
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
        targets = batch["targets"][batch["loss_mask"]]
        nats += float(nats_per_token[targets].sum())
        tokens += len(targets)
        text_bytes += count_bytes(batch, token_bytes)
    return Evaluation(nats, tokens, text_bytes)

"""The loss of a model on text, and that of its token frequencies, which any model must beat."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.common.evaluation.scoring import ScoredPlaces
from jaxlm.common.evaluation.text_scores import evaluate_contents, evaluate_windows
from jaxlm.model.language_model import LanguageModel
from jaxlm.model.loss import loss_sum
from jaxlm.ops.ternary_linear import Params, ternarize
from jaxlm.score import score, score_places
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.data.evaluation import Evaluation, count_bytes, evaluate_batches, text_batches
from shared_tokenizer.data.evaluation_text import Content, EvaluationText
from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

UNIGRAM_TOKENS = 100_000_000
UNIGRAM_CHUNK = 1 << 22

LossFunction = Callable[[Params, Batch], tuple[jax.Array, jax.Array]]


def make_loss_function(model: LanguageModel, out_shardings: Any = None) -> jax.stages.Wrapped:
    """Return the jitted function (params, batch) -> (summed nats, tokens). Parameters may be latent or ternary."""
    return jax.jit(lambda params, batch: loss_sum(model, params, batch), out_shardings=out_shardings)


def evaluate(
    loss_function: LossFunction,
    params: Params,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Return the total loss over batches. `token_bytes` is the tokenizer's table; `check` runs between batches."""
    return evaluate_batches(lambda batch: loss_function(params, batch), batches, token_bytes, check)


def evaluate_text(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    seq_len: int,
    batch_size: int,
    track: Callable[[Sequence[Batch]], Iterable[Batch]] = iter,
) -> Evaluation:
    """Evaluate on documents, in windows of `seq_len` tokens. `track` may show progress over the batches.

    Raises ValueError as `text_batches` does.
    """
    config = model.config
    batches = text_batches(tokenizer, texts, min(seq_len, config.max_seq_len), batch_size, config.vocab_size)
    ternary = ternarize(params, config)

    def score(batch: Batch, places: np.ndarray, targets: np.ndarray) -> ScoredPlaces:
        inputs = {name: array for name, array in batch.items() if name in ("inputs", "positions", "segment_ids")}
        return score_places(model, ternary, inputs, places, targets)

    return evaluate_windows(score, track(batches), tokenizer)


def evaluate_documents(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    contents: Sequence[Content],
    chat_format: ChatFormat | None,
    settings: EvaluationText,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    log: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluate on texts in windows, and on the answers of chats; without a chat format chats are texts.

    Raises ValueError as `text_batches` and `evaluate_chats` do.
    """
    return evaluate_contents(
        contents,
        chat_format,
        lambda texts: evaluate_text(model, params, tokenizer, texts, settings.seq_len, settings.batch_size, track),
        lambda rows, contexts: score(model, params, rows, contexts, track=track),
        tokenizer,
        model.config.max_seq_len,
        log,
    )


def unigram_evaluation(
    train: Sequence[TokenShards], vocab_size: int, batches: Iterable[Batch], token_bytes: np.ndarray
) -> Evaluation:
    """Return the loss of the same tokens under the token frequencies of the train splits, plus one each.

    Any model must beat it. The frequencies are those of the first UNIGRAM_TOKENS tokens of each split.
    """
    counts = np.ones(vocab_size)
    for shards in train:
        for start in range(0, min(len(shards), UNIGRAM_TOKENS), UNIGRAM_CHUNK):
            span = shards.read(start, UNIGRAM_CHUNK)
            counts += np.bincount(span.ids[span.loss_mask], minlength=vocab_size)
    nats_per_token = -np.log(counts / counts.sum())
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in batches:
        targets = batch["targets"][batch["loss_mask"]]
        nats += float(nats_per_token[targets].sum())
        tokens += len(targets)
        text_bytes += count_bytes(batch, token_bytes)
    return Evaluation(nats, tokens, text_bytes)

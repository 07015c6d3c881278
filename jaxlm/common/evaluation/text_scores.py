"""Scores of texts and chats, summed up: the loss, and how many tokens are the likeliest ones."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from jaxlm.common.evaluation.scoring import ScoredPlaces, TokenScores, padded_places
from shared_tokenizer.chat.chat_format import ChatFormat, Message
from shared_tokenizer.chat.messages import encode_chat
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.data.evaluation_text import Content, as_texts
from shared_tokenizer.data.examples import Example
from shared_tokenizer.tokenizers.known_tokens import UNKNOWN_NAMES
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Inputs of a batch with places `[S]` in them and targets `[S]`, see `scoring.ScorePlaces`.
ScoreBatch: TypeAlias = Callable[[Example, np.ndarray, np.ndarray], ScoredPlaces]
ScoreRows: TypeAlias = Callable[[Sequence[list[int]], Sequence[int]], list[TokenScores]]


def evaluate_contents(
    contents: Sequence[Content],
    chat_format: ChatFormat | None,
    of_texts: Callable[[Sequence[str]], Evaluation],
    score: ScoreRows,
    tokenizer: Tokenizer,
    max_seq_len: int,
    log: Callable[[str], None] = print,
) -> Evaluation:
    """Return the totals over texts, and over the answers of chats; without a chat format chats are texts.

    Raises ValueError as `evaluate_chats` does.
    """
    if chat_format is None:
        return of_texts(as_texts(contents))
    texts = [content for content in contents if isinstance(content, str)]
    chats = [content for content in contents if not isinstance(content, str)]
    total = of_texts(texts) if texts else Evaluation(0.0, 0, 0, 0, 0)
    return total + evaluate_chats(score, chats, tokenizer, chat_format, max_seq_len, log) if chats else total


def evaluate_windows(score: ScoreBatch, batches: Iterable[Example], tokenizer: Tokenizer) -> Evaluation:
    """Return the totals over windows of text, batches of `[B, L]` as `text_batches` makes them."""
    total = Evaluation(0.0, 0, 0, 0, 0)
    for batch in batches:
        places = np.flatnonzero(batch["loss_mask"])
        targets = np.asarray(batch["targets"]).reshape(-1)[places]
        scores = score(batch, *padded_places(places, targets))
        total += _evaluation(scores.logprobs, scores.is_greedy, targets, tokenizer)
    return total


def evaluate_chats(
    score: ScoreRows,
    chats: Iterable[Sequence[Message]],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    max_seq_len: int,
    log: Callable[[str], None] = print,
) -> Evaluation:
    """Return the totals over the answers of chats, written in a chat format: what the assistant writes of them.

    Each chat is scored from its beginning, as far as the model's context reaches; `log` receives a line where some are
    longer. Raises ValueError where the format cannot write a chat, or no answer is left.
    """
    rows, masks, longer = list[list[int]](), list[np.ndarray](), 0
    for chat in chats:
        encoded = encode_chat(chat, tokenizer, chat_format)
        longer += len(encoded.ids) > max_seq_len + 1
        rows.append(encoded.ids[: max_seq_len + 1])
        masks.append(np.array(encoded.loss_mask[1 : max_seq_len + 1], bool))
    if longer:
        log(f"{longer:,} of {len(rows):,} chats are longer than the model's context: their ends are not scored")
    if not any(mask.any() for mask in masks):
        raise ValueError("chats: found no answer of the assistant to score, expected at least one")
    total = Evaluation(0.0, 0, 0, 0, 0)
    for row, mask, scores in zip(rows, masks, score(rows, [1] * len(rows)), strict=True):
        targets = np.array(row[1:])[mask]
        total += _evaluation(scores.logprobs[mask], scores.is_greedy[mask], targets, tokenizer)
    return total


def _evaluation(logprobs: np.ndarray, is_greedy: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> Evaluation:
    """Return the totals over targets `[n]`; scores may be longer, for padding. Raises ValueError on NaN."""
    count = len(targets)
    if not np.isfinite(logprobs[:count]).all():
        raise ValueError("loss: found a log-probability that is not finite; the model's weights hold NaN or infinity")
    special = tokenizer.special_tokens
    unknown = [special[name] for name in UNKNOWN_NAMES if name in special]
    return Evaluation(
        nats=-float(logprobs[:count].sum(dtype=np.float64)),
        tokens=count,
        text_bytes=int(tokenizer.token_bytes[targets].sum()),
        greedy=int(is_greedy[:count].sum()),
        unknown=int(np.isin(targets, unknown).sum()),
    )

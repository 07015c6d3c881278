"""Log-likelihoods of texts after other texts, with the tokens that lm-evaluation-harness scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.evaluation.scoring import Track
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# The ids of a context and of the continuation after it; both hold at least one.
TokenPair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class LogLikelihood:
    """The log-probability of a continuation in nats, and if greedy decoding would write it."""

    nats: float
    is_greedy: bool


def encode_pair(context: str, continuation: str, tokenizer: Tokenizer) -> TokenPair:
    """Return the ids of a context and of its continuation.

    They are encoded as one text, which is cut after as many tokens as the context alone has, without the spaces at its
    end: these belong to the continuation. Before an empty context stands the token that begins a text, or that ends
    the text before it. Raises ValueError where the continuation is empty.
    """
    if not continuation:
        raise ValueError(f"continuation: found no text after {context[-40:]!r}, expected at least one character")
    stripped = context.rstrip()
    ids = tokenizer.encode_prompt(context + continuation)
    # A tokenizer may join the end of the context to the continuation; at least one token is scored.
    cut = min(len(tokenizer.encode_prompt(stripped)) if context else len(tokenizer.start_ids), len(ids) - 1)
    return (ids[:cut], ids[cut:]) if cut > 0 else ([tokenizer.eos_id], ids)


def loglikelihoods(
    model: EvaluatedModel, pairs: Sequence[TokenPair], *, log: Callable[[str], None], track: Track = iter
) -> list[LogLikelihood]:
    """Return the log-likelihood of each continuation after its context, in the order of the pairs.

    What is too long for the model loses the start of its context, as in the harness; `log` receives their number.
    Raises ValueError where a continuation alone is longer than the model's context.
    """
    longest = model.max_seq_len + 1  # the last token is predicted, not seen
    rows, context_lengths, num_cut = list[list[int]](), list[int](), 0
    for number, (context, continuation) in enumerate(pairs):
        if len(continuation) > model.max_seq_len:
            raise ValueError(
                f"row {number}: found a continuation of {len(continuation)} tokens, expected at most "
                f"{model.max_seq_len}, the context of {model.name}; leave this task out"
            )
        row = (context + continuation)[-longest:]
        num_cut += len(row) < len(context) + len(continuation)
        rows.append(row)
        context_lengths.append(len(row) - len(continuation))
    if num_cut:
        log(
            f"{num_cut:,} of {len(pairs):,} rows are longer than the context of {model.max_seq_len} tokens of "
            f"{model.name}: the start of their contexts is left out"
        )
    scores = model.score(rows, context_lengths, track=track)
    return [LogLikelihood(float(each.logprobs.sum(dtype="float64")), bool(each.is_greedy.all())) for each in scores]

"""Losses of pairs of answers, written once for numpy, jax.numpy and mlx.core; `xp` is the array namespace.

For a pair with a chosen answer w and a rejected one l to the same question, lp(y) is the sum of the log-probabilities
of the tokens of y, mean(y) their mean, and ref(y) the sum under a reference model, the one that training starts from:

    orpo   -mean(w) - beta log sigmoid(log_odds(w) - log_odds(l)),  log_odds(y) = mean(y) - log(1 - exp(mean(y)))
    dpo    -log sigmoid(beta margin),      margin = (lp(w) - ref(w)) - (lp(l) - ref(l))
    ipo    (margin - 1 / (2 beta))^2,      with the same margin

Sources: ORPO arXiv 2403.07691, DPO arXiv 2305.18290, IPO arXiv 2310.12036.
"""

from typing import Any, Literal, NamedTuple, get_args

Array = Any  # numpy.ndarray, jax.Array or mlx.core.array

Preference = Literal["orpo", "dpo", "ipo"]
PREFERENCES: tuple[str, ...] = get_args(Preference)
# Objectives that compare with the model that training starts from.
WITH_REFERENCE = ("dpo", "ipo")
# A larger mean log-probability has odds that float32 cannot hold.
LARGEST_MEAN = -1e-6


class PairLosses(NamedTuple):
    """Losses `[P]` of pairs, and the margins `[P]` that they raise: above 0 the chosen answer is preferred."""

    loss: Array
    margin: Array


def pair_losses(
    kind: Preference, log_probs: Array, tokens: Array, reference: Array | None, beta: float, xp: Any
) -> PairLosses:
    """Return the losses of P pairs.

    `log_probs` are the sums lp in nats `[P, 2]`, chosen and rejected, `tokens` the numbers of their tokens `[P, 2]`,
    `reference` the sums ref `[P, 2]`, None for orpo. A pair without tokens has a finite loss, to be left out.
    """
    if kind == "orpo":
        means = log_probs / xp.maximum(tokens, 1)
        bounded = xp.minimum(means, LARGEST_MEAN)
        log_odds = bounded - xp.log(-xp.expm1(bounded))
        margin = log_odds[:, 0] - log_odds[:, 1]
        return PairLosses(-means[:, 0] + beta * _softplus(-margin, xp), margin)
    assert reference is not None
    ratios = log_probs - reference
    margin = ratios[:, 0] - ratios[:, 1]
    loss = _softplus(-beta * margin, xp) if kind == "dpo" else xp.square(margin - 1 / (2 * beta))
    return PairLosses(loss, margin)


def pair_metrics(found: PairLosses, log_probs: Array, is_pair: Array, beta: float, xp: Any) -> dict[str, Array]:
    """Return sums over the pairs `is_pair` `[P]`, to be divided by their number.

    accuracy: 1 where the chosen answer is preferred, 1/2 where neither is. reward_difference: beta times the margin.
    """
    margin = found.margin
    preferred = (margin > 0) * 1.0 + (margin == 0) * 0.5
    values = {
        "accuracy": preferred,
        "margin": margin,
        "reward_difference": beta * margin,
        "chosen_logprob": log_probs[:, 0],
        "rejected_logprob": log_probs[:, 1],
    }
    return {name: xp.sum(value * is_pair) for name, value in values.items()}


def _softplus(x: Array, xp: Any) -> Array:
    """Return log(1 + exp(x)), which is -log sigmoid(-x)."""
    return xp.logaddexp(x, xp.zeros_like(x))

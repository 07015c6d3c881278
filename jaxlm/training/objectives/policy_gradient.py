"""The policy gradient of GRPO in its small form, and expert iteration as the same sum with other advantages.

For the tokens t of answers that were sampled from the policy itself, with log-probability l_t, and the advantage A of
their answer (the reward's distance from the mean of its group, in standard deviations, arXiv 2402.03300):

    loss = -sum_t A l_t / number of tokens  +  kl_weight * sum_t k_t / number of tokens

Samples are those of the very weights that are updated, so there is no ratio of policies and nothing to clip.
k_t = exp(r_t - l_t) - (r_t - l_t) - 1, with the reference's log-probability r_t, estimates the KL divergence without
bias and is never negative (Schulman, "Approximating KL divergence", 2020). Where A is 1 for answers that pass and 0 for
others, the loss is the cross-entropy of the answers that pass: expert iteration.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.logits import head_logits
from jaxlm.ops.ternary_linear import Params
from jaxlm.training.objectives.objective import Extras, Objective, Sums
from shared_tokenizer.data.batches import Batch

# Bytes of the float32 logits of a chunk of rows.
LARGEST_CHUNK_BYTES = 64 * 2**20


def policy_gradient(temperature: float = 1.0, kl_weight: float = 0.0) -> Objective:
    """Return the objective. Its batch has `advantages` and `sampler_logprobs` `[B, L]` next to the arrays of a text.

    With `kl_weight` the extras are the weights of the reference. `temperature` is that of the sampler: the policy is
    the distribution that was sampled from. Reported are the entropy of the policy in nats per token, and how far the
    log-probabilities are from those of the sampler.
    """

    def objective(model: LanguageModel, weights: Params, batch: Batch, extras: Extras) -> Sums:
        arrays: Any = batch
        mask = batch["loss_mask"]
        logprobs, entropy = token_logprobs(model, weights, batch, temperature)
        # What a sampler of the same numbers would have computed is a constant of the step: ratios are 1 or near it.
        ratio = jnp.exp(jax.lax.stop_gradient(logprobs) - arrays["sampler_logprobs"])
        terms = -arrays["advantages"] * logprobs
        metrics = {
            "entropy": jnp.sum(entropy * mask),
            "ratio_error": jnp.sum(jnp.abs(ratio - 1) * mask),
            "ratio_far_share": jnp.sum((jnp.abs(ratio - 1) > 0.1) * mask, dtype=jnp.float32),
        }
        if kl_weight:
            reference, _ = token_logprobs(model, extras, batch, temperature)
            difference = jax.lax.stop_gradient(reference) - logprobs
            kl = jnp.exp(difference) - difference - 1
            terms = terms + kl_weight * kl
            metrics["kl"] = jnp.sum(kl * mask)
        # A batch without a token to learn has a loss of 0.
        return Sums(jnp.sum(terms * mask), jnp.maximum(jnp.sum(mask), 1), metrics)

    return objective


def token_logprobs(
    model: LanguageModel, weights: Params, batch: Batch, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Return the log-probability of every target `[B, L]`, and the entropy of its distribution in nats, without
    gradient.

    The logits of some rows exist at a time, and are computed again for the gradient.
    """
    operands: Any = model.apply(
        {"params": weights}, batch["inputs"], batch["positions"], batch.get("segment_ids"), method="head_operands"
    )
    x, weight = operands
    B, L, _ = x.shape
    row_bytes = 4 * L * model.config.vocab_size
    chunks = next(n for n in range(1, B + 1) if B % n == 0 and (B // n * row_bytes <= LARGEST_CHUNK_BYTES or n == B))

    @jax.checkpoint
    def chunk(rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, targets = rows
        logprobs = jax.nn.log_softmax(
            head_logits(x, weight, model.head_modules()[1], soft_cap=model.config.logit_softcap) / temperature
        )
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        of_targets = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
        return of_targets, jax.lax.stop_gradient(entropy)

    if chunks == 1:
        return chunk((x, jnp.asarray(batch["targets"])))
    cut = jax.tree.map(
        lambda array: array.reshape(chunks, B // chunks, *array.shape[1:]), (x, jnp.asarray(batch["targets"]))
    )
    return jax.tree.map(lambda array: array.reshape(B, L), jax.lax.map(chunk, cut))

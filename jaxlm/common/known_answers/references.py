"""The numbers that a right compiler gives, computed by numpy in float64 and integers, one definition per function."""

from typing import Any

import numpy as np

from jaxlm.common.architecture.ternary import TernaryForm, quantize_activation, quantize_weight
from jaxlm.common.run.optimizer_config import OptimizerConfig

Array = Any  # numpy.ndarray of float64, where nothing else is said
HIDDEN = -np.inf


def ternary_linear(x: Array, latent: Array, dy: Array) -> dict[str, Array]:
    """Return all that a ternary linear computes of float32 x `[T, I]`, latent weights `[O, I]` and dy `[T, O]`.

    Codes, activations and sums are integers, scales float32, as the layer's. The outputs and the gradients dx and
    dW are straight-through, those of the dequantized values.
    """
    codes, weight_scale = quantize_weight(latent, TernaryForm(), np)
    integers, scale = quantize_activation(x, np)
    sums = integers.astype(np.int64) @ codes.astype(np.int64).T
    return {
        "codes": codes,
        "weight scale": weight_scale,
        "int8 activations": integers,
        "int8 product": sums,
        "outputs": sums * (np.float64(weight_scale) / np.float64(scale)),
        "dx": dy @ (codes * np.float64(weight_scale)),
        "dW": dy.T @ (integers / np.float64(scale)),
    }


def cross_entropy(x: Array, weight: Array, targets: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Return the summed nats of x `[T, D]` under a head `[V, D]`, and their gradients by x and by the head."""
    logits = x @ weight.T
    log_p = logits - logits.max(axis=-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    rows = np.arange(len(targets))
    dlogits = np.exp(log_p)
    dlogits[rows, targets] -= 1
    dlogits *= mask[:, None]
    return -(log_p[rows, targets] * mask).sum(), dlogits @ weight, dlogits.T @ x


def attention(queries: Array, keys: Array, values: Array, segment_ids: Array) -> tuple[Array, Array]:
    """Return the output `[B, L, N, H]` of causal attention within segments, and its weights `[B, N, L, L]`."""
    groups = queries.shape[2] // keys.shape[2]
    keys, values = np.repeat(keys, groups, axis=2), np.repeat(values, groups, axis=2)
    scores = np.einsum("blnh,bsnh->bnls", queries, keys) / np.sqrt(queries.shape[-1])
    length = queries.shape[1]
    visible = np.tril(np.ones((length, length), bool)) & (segment_ids[:, :, None] == segment_ids[:, None])
    scores = np.where(visible[:, None], scores, HIDDEN)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bnls,bsnh->blnh", weights, values), weights


def attention_gradients(
    queries: Array, keys: Array, values: Array, segment_ids: Array, d_output: Array
) -> tuple[Array, Array, Array]:
    """Return the gradients of attention by queries, keys and values, of the gradient of its output."""
    _, weights = attention(queries, keys, values, segment_ids)
    B, L, K, H = keys.shape
    groups = queries.shape[2] // K
    d_weights = np.einsum("blnh,bsnh->bnls", d_output, np.repeat(values, groups, axis=2))
    d_scores = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True)) / np.sqrt(H)
    d_queries = np.einsum("bnls,bsnh->blnh", d_scores, np.repeat(keys, groups, axis=2))
    d_keys = np.einsum("bnls,blnh->bsnh", d_scores, queries).reshape(B, L, K, groups, H).sum(axis=3)
    d_values = np.einsum("bnls,blnh->bsnh", weights, d_output).reshape(B, L, K, groups, H).sum(axis=3)
    return d_queries, d_keys, d_values


def recurrence(decays: Array, updates: Array, initial: Array) -> Array:
    """Return the states `[B, L, E]` of h_t = f_t h_{t-1} + u_t."""
    states, state = [], initial
    for t in range(decays.shape[1]):
        state = decays[:, t] * state + updates[:, t]
        states.append(state)
    return np.stack(states, axis=1)


def recurrence_gradients(decays: Array, updates: Array, initial: Array, d_states: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of the states by decays, updates and the initial state, of the gradient of the states."""
    states = recurrence(decays, updates, initial)
    d_decays, d_updates = np.zeros_like(decays), np.zeros_like(updates)
    carry = np.zeros_like(initial)
    for t in reversed(range(decays.shape[1])):
        carry = d_states[:, t] + carry
        d_decays[:, t] = carry * (states[:, t - 1] if t else initial)
        d_updates[:, t] = carry
        carry = carry * decays[:, t]
    return d_decays, d_updates, carry


def dense_block(x: Array, weights: dict[str, Array], num_heads: int, theta: float, eps: float) -> Array:
    """Return the hidden states `[B, L, D]` after a dense block with attention (see `jaxlm.model.language_model`).

    `weights` are matrices `[out, in]` and norms, by the names of the layers.
    """
    B, L, _ = x.shape

    def heads(name: str) -> Array:
        return (normed @ weights[name].T).reshape(B, L, -1, weights["q_proj"].shape[0] // num_heads)

    normed = rms_norm(x, weights["input_layernorm"], eps)
    queries, keys = rotary(heads("q_proj"), theta), rotary(heads("k_proj"), theta)
    mixed, _ = attention(queries, keys, heads("v_proj"), np.zeros((B, L), int))
    x = x + mixed.reshape(B, L, -1) @ weights["o_proj"].T
    normed = rms_norm(x, weights["post_attention_layernorm"], eps)
    gate = normed @ weights["gate_proj"].T
    return x + (gate / (1 + np.exp(-gate)) * (normed @ weights["up_proj"].T)) @ weights["down_proj"].T


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return x / rms(x) * weight, along the last axis."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rotary(x: Array, theta: float) -> Array:
    """Return x `[B, L, heads, H]` with each pair (x_i, x_{i + H/2}) turned by position * theta^(-2i / H)."""
    half = x.shape[-1] // 2
    turns = np.arange(x.shape[1])[:, None, None] * theta ** (-np.arange(half) / half)
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turns)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def adamw(
    parameter: Array,
    gradients: list[Array],
    norms: list[float],
    rates: list[float],
    decay: float,
    config: OptimizerConfig,
) -> Array:
    """Return a parameter after one step of AdamW per gradient (arXiv 1711.05101), each clipped by its global norm."""
    first = second = np.zeros_like(parameter)
    for step, (gradient, norm, rate) in enumerate(zip(gradients, norms, rates, strict=True), start=1):
        gradient = gradient * min(1, config.grad_clip_norm / norm)
        first = config.b1 * first + (1 - config.b1) * gradient
        second = config.b2 * second + (1 - config.b2) * gradient**2
        update = first / (1 - config.b1**step) / (np.sqrt(second / (1 - config.b2**step)) + config.eps)
        parameter = parameter - rate * (update + decay * parameter)
    return parameter

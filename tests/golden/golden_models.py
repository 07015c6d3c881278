"""The tiny models behind the goldens: configs, weights that any program can repeat, and the parity rule.

Weights come from numpy alone, so the numbers of transformers are checked where there is no torch. They are
sums and products of `Generator.random`, which is the same on every platform; normal deviates go through libm.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.packing import pack
from jaxlm.common.architecture.parameters import Kind, Parameter, parameters, scale_name
from jaxlm.common.architecture.ternary import quantize_weight
from jaxlm.common.artifact.artifact import save_artifact

GOLDENS_FILE = Path(__file__).with_name("transformers_goldens.json")

DENSE = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_seq_len=64,
    rope_theta=500.0,
    tie_word_embeddings=False,
    initializer_range=0.1,
)
TERNARY = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_seq_len=64,
    activation="relu2",
    linear="ternary",
    sub_norm=True,
    scale_dtype="float32",
    initializer_range=0.035,
)
TERNARY_BFLOAT16 = replace(TERNARY, scale_dtype="bfloat16")

# What transformers is given. It rounds no scale when it quantizes latent weights, so those go with float32.
CASES: dict[str, tuple[ModelConfig, Kind]] = {
    "dense_llama": (DENSE, "latent"),
    "ternary_bitnet_latent": (TERNARY, "latent"),
    "ternary_bitnet_packed": (TERNARY_BFLOAT16, "packed"),
}

# The largest and mean difference of two programs' logits. A last-bit difference can push an activation over
# a rounding border, and one such flip moves the logits of a ternary model by 1e-3 to 1e-2.
DENSE_MAX = 1e-4
TERNARY_MAX = 3e-2
TERNARY_MEAN = 1e-3


def golden_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Latent float32 weights by tensor name. Rows and matrices differ in size, as they do after training."""
    rng = np.random.default_rng(seed)
    return {p.name: _weight(rng, p, config.initializer_range) for p in parameters(config)}


def _weight(rng: np.random.Generator, parameter: Parameter, std: float) -> np.ndarray:
    if len(parameter.shape) == 1:  # a norm
        return (0.5 + rng.random(parameter.shape)).astype(np.float32)
    bell = rng.random((3, *parameter.shape)).sum(0) * 2 - 3  # standard deviation 1
    rows = 0.5 + rng.random((parameter.shape[0], 1))
    is_table = parameter.name in ("model.embed_tokens.weight", "lm_head.weight")
    matrix = 1.0 if is_table else 2.0 ** rng.integers(-1, 3)
    return (bell * rows * (matrix * std)).astype(np.float32)


def weights_sha256(weights: dict[str, np.ndarray]) -> str:
    """Fingerprint of the weights, to tell a changed recipe from a changed model."""
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(name.encode() + weight.astype("<f4").tobytes())
    return digest.hexdigest()


def write_golden_artifact(directory: Path, config: ModelConfig, kind: Kind, seed: int = 0) -> None:
    """Write a golden model as an artifact, latent or packed."""
    tensors: dict[str, np.ndarray] = golden_weights(config, seed)
    for parameter in parameters(config) if kind == "packed" else ():
        if parameter.storage == "ternary":
            codes, scale = quantize_weight(tensors[parameter.name], config.ternary_form, np)
            tensors[parameter.name] = pack(codes)
            tensors[scale_name(parameter.name)] = np.asarray(scale).reshape(1)
    save_artifact(directory, config, kind, tensors.__getitem__)


def golden_token_ids(config: ModelConfig, batch_size: int = 2, length: int = 12) -> np.ndarray:
    """Token ids `[B, L]`."""
    return np.random.default_rng(1).integers(0, config.vocab_size, (batch_size, length)).astype(np.int32)


def parity_error(found: np.ndarray, expected: np.ndarray, is_ternary: bool) -> str | None:
    """Return the fault of logits `[B, L, V]` by the parity rule, or None. The counts are printed either way.

    Dense: every logit within DENSE_MAX. Ternary: within TERNARY_MAX, TERNARY_MEAN on average, and within
    DENSE_MAX at most positions, those without a flip, so that the tolerance hides nothing. The likeliest
    token is the same at every position where the best two lie further apart than the tolerance.
    """
    largest = TERNARY_MAX if is_ternary else DENSE_MAX
    mean = np.abs(found - expected).mean()
    by_position = np.abs(found - expected).max(-1)
    deviating = by_position > DENSE_MAX
    best_two = np.sort(expected, axis=-1)[..., -2:]
    clear = best_two[..., 1] - best_two[..., 0] > largest
    differs = found.argmax(-1) != expected.argmax(-1)
    summary = (
        f"logits differ by at most {by_position.max():.1e} (allowed {largest:.0e}), "
        f"on average {mean:.1e} (allowed {TERNARY_MEAN:.0e}); of {deviating.size} positions "
        f"{deviating.sum()} deviate, {differs.sum()} prefer another token, {(differs & clear).sum()} clearly"
    )
    print(summary)
    equal = by_position.max() <= largest and mean <= TERNARY_MEAN and not (differs & clear).any()
    return None if equal and deviating.mean() < 0.5 else summary

"""Settings of text generation, the same for JAX and MLX."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxlm.common.bounds import check_bounds

LARGEST_SEED = 2**31 - 1
# Beyond these float32 has no number left for what logits are divided by, or for a probability.
SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-6, 1e3
SMALLEST_TOP_P = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Raises ValueError on a value out of range."""

    max_tokens: int = 128
    """Tokens to generate, at most."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more varied."""
    top_k: int = 0
    """Choose among this many likeliest tokens; 0 does not limit."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together reach this probability; 1 does not limit."""
    min_p: float = 0.0
    """Leave out tokens less likely than this fraction of the likeliest; 0 does not limit."""
    seed: int = 0
    """Seed of the random choice."""

    def __post_init__(self) -> None:
        low, high = SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE
        bounds = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (self.temperature == 0 or low <= self.temperature <= high, f"0, or {low:g} to {high:g}"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (SMALLEST_TOP_P <= self.top_p <= 1, f"{SMALLEST_TOP_P:g} to 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "seed": (0 <= self.seed <= LARGEST_SEED, f"0 to {LARGEST_SEED}"),
        }
        check_bounds(self, bounds)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling):
    """What to generate, and from which model."""

    model: str
    """Artifact, transformers or MLX directory or GGUF file; JAX opens a run directory too."""
    prompt: str = ""
    """Start of the text."""


def check_prompt(prompt: Sequence[int], vocab_size: int, max_seq_len: int) -> None:
    """Raise ValueError where a prompt of token ids cannot be continued."""
    if len(prompt) == 0:
        raise ValueError("prompt: found no token, expected at least one; this tokenizer has no begin-of-text token")
    if len(prompt) >= max_seq_len:
        raise ValueError(
            f"prompt: found {len(prompt)} tokens, expected fewer than the model's context of {max_seq_len}"
        )
    if not all(0 <= token < vocab_size for token in prompt):
        raise ValueError(f"prompt: found a token id outside 0..{vocab_size - 1}; it belongs to another tokenizer")

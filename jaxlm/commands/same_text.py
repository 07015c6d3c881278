"""The script `same_text.py`: greedy text from a trained run in JAX and from its artifact in MLX, compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxlm.generate
import jaxlm.load
from jaxlm.common.sampling import Sampling

# A last-bit difference can push an activation over a rounding border, which moves logits by about 1e-2; where
# the two best tokens lie closer together than this, either is right.
NEAR_TIE = 3e-2


@dataclass(frozen=True, kw_only=True)
class SameTextConfig:
    """A run, its artifact, and a prompt."""

    run: str
    """Run directory (or artifact) that JAX reads."""
    artifact: str | None = None
    """Artifact that MLX reads; the run's own if not given."""
    prompt: str = "def get"
    """Start of the text; the default suits a model of the standard library's source files."""
    max_tokens: int = 64
    """Tokens to generate, at most."""


def main(config: SameTextConfig) -> None:
    """Generate greedily with JAX and with MLX, print both texts and say whether they are equal."""
    import mlxlm.generate  # MLX is not everywhere that JAX is
    import mlxlm.load

    artifact = config.artifact or str(Path(config.run) / "artifact")
    jax_model, params, tokenizer = jaxlm.load.load_model(config.run)
    mlx_model, mlx_tokenizer = mlxlm.load.load_model(artifact)
    if tokenizer is None or mlx_tokenizer is None or tokenizer.fingerprint != mlx_tokenizer.fingerprint:
        raise ValueError(f"{config.run}, {artifact}: expected the same tokenizer in both")
    prompt = tokenizer.encode_to_continue(config.prompt)
    sampling = Sampling(max_tokens=config.max_tokens)
    from_jax = list(jaxlm.generate.generate(jax_model, params, prompt, sampling))
    from_mlx = list(mlxlm.generate.generate(mlx_model, prompt, sampling))
    print(f"--- JAX, from {config.run}\n{config.prompt}{tokenizer.decode(from_jax)}")
    print(f"--- MLX, from {artifact}\n{config.prompt}{tokenizer.decode(from_mlx)}\n---")
    if from_jax == from_mlx:
        print(f"JAX and MLX say the same {len(from_jax)} tokens")
        return
    position = next(i for i, (a, b) in enumerate(zip(from_jax, from_mlx, strict=True)) if a != b)
    gap = _gap(jax_model, params, [*prompt, *from_jax[:position]], from_jax[position], from_mlx[position])
    if gap >= NEAR_TIE:
        raise ValueError(f"JAX and MLX differ at token {position}, where JAX prefers its own by {gap:.4f}: a fault")
    print(f"JAX and MLX say the same {position} tokens, then part at a near tie ({gap:.1e} between the two logits)")


def _gap(model, params, token_ids: Sequence[int], ours: int, theirs: int) -> float:
    """Return the difference of the two logits: JAX's own next token less MLX's."""
    logits = np.asarray(model.apply({"params": params}, jnp.array([list(token_ids)])))[0, -1]
    return float(logits[ours] - logits[theirs])

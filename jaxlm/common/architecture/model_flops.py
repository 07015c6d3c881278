"""The model FLOPs of a training step."""

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.architecture.rational import RATIONAL


def model_flops(config: ModelConfig, batch_size: int, seq_len: int) -> float:
    """Return the floating-point operations of one step, for the whole batch (PaLM, arXiv 2204.02311 appendix B).

    A step takes 6 operations per matrix weight and token, and attention 12 `seq_len` per token, layer and unit of its
    width. The count does not leave out the pairs that the causal mask hides.
    """
    tokens = batch_size * seq_len
    weights = sum(parameter.size for parameter in parameters(config) if _is_multiplied(parameter.path))
    if config.tie_word_embeddings:
        weights += config.vocab_size * config.hidden_size
    attention_layers = config.num_layers - config.num_mlgru_layers
    return 6 * weights * tokens + 12 * seq_len * tokens * attention_layers * config.num_heads * config.head_dim


def _is_multiplied(path: tuple[str, ...]) -> bool:
    """Return True if a parameter is a matrix that multiplies activations."""
    others = ("embed_tokens", "lower_bounds", "bias", RATIONAL)
    return not any("norm" in key or key in others for key in path)

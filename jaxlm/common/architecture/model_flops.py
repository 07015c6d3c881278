"""Operations of a training step on paper."""

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameters


def model_flops(config: ModelConfig, batch_size: int, seq_len: int) -> float:
    """Multiplications and additions of a step on paper: 6 for each weight of a product and token, and for attention
    12 L for each token and unit of its width (PaLM's count, arXiv 2204.02311 appendix B, without leaving out what the
    causal mask hides). Operations, for the whole batch.
    """
    tokens = batch_size * seq_len
    weights = sum(parameter.size for parameter in parameters(config) if _is_product(parameter.path))
    if config.tie_word_embeddings:
        weights += config.vocab_size * config.hidden_size
    attention_layers = config.num_layers - config.num_mlgru_layers
    return 6 * weights * tokens + 12 * seq_len * tokens * attention_layers * config.num_heads * config.head_dim


def _is_product(path: tuple[str, ...]) -> bool:
    """Whether a parameter is a matrix that activations are multiplied with."""
    spared = ("embed_tokens", "lower_bounds")
    return not any("norm" in key or key in spared for key in path)

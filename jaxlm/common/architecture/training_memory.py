"""What one device needs to train a model, on paper: from its config, before anything is compiled or allocated.

It is that of AdamW with float32 moments, `--remat products` (the default on accelerators; less is kept on a CPU), no
gradient accumulation, and no other device to share with. For a step of T tokens, with D the hidden size, F the
feed-forward's, Q and K the widths of queries and keys (0 without attention), and activations of a bytes each, it is the
sum of

- the state: 4 bytes a parameter for the weight and 8 for Adam's moments, 1 a ternary parameter for its code;
- the gradient: 4 bytes a parameter;
- activations, what is kept of each block: T a (2 D + 2 F + 2 Q + 2 K), its input and what its linears give (MLGRU's
  gates are computed again), and a byte for each number that ternary linears take;
- the workspace: the larger of what the backward pass has of one block at a time, and what the update needs when
  activations are gone, a second gradient and new codes.

All but a block's share of the workspace follows from the program; that share is fitted, and logits are left out, since
there is no gradient yet when they are there. Against what XLA plans for CPUs in float32 (31 steps, of 2.6M to 730M
parameters and 128 to 16,384 tokens) the sum was between 4.7 % too low and 2.3 % too high. Against what libtpu plans for
a v5p in bfloat16 (7 steps) it was 2 to 12 % too high, and 26 % where a step had 256 tokens or fewer: there the update
needs no second gradient.
"""

from dataclasses import dataclass

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameter_count, ternary_parameter_count

_FLOAT32 = 4
# Arrays as wide as the feed-forward, and as the stream, that a block's backward pass has at a time: fitted.
_WIDE_ARRAYS, _WIDE_ARRAYS_OF_SUB_NORM = 7, 4
_STREAMS = {"attention": 12, "mlgru": 30}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one device's memory that training needs."""

    parameters: int
    moments: int
    codes: int
    gradient: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return self.parameters + self.moments + self.codes + self.gradient + self.activations + self.workspace


def training_memory(config: ModelConfig, batch_size: int, seq_len: int, activation_bytes: int) -> TrainingMemory:
    """Memory of steps of `batch_size` sequences; `activation_bytes` is 4 with float32 and 2 with bfloat16.

    Raises ValueError for a pattern of token mixers: the compiler keeps more at a time of the blocks of a repeat.
    """
    if len(config.token_mixer) > 1:
        raise ValueError(f"token_mixer: found {', '.join(config.token_mixer)}, expected one for all layers")
    tokens = batch_size * seq_len
    parameters = _FLOAT32 * parameter_count(config)
    codes = ternary_parameter_count(config)
    activations = tokens * config.num_layers * (activation_bytes * _given(config) + _taken(config))
    in_block = tokens * activation_bytes * _block_width(config)
    in_update = parameters + codes - activations
    return TrainingMemory(
        parameters=parameters,
        moments=2 * parameters,
        codes=codes,
        gradient=parameters,
        activations=activations,
        workspace=max(in_block, in_update),
    )


def _given(config: ModelConfig) -> int:
    """Numbers a token: a block's input, and what is kept of what its linears give (the last nothing needs again)."""
    # Without attention there are no heads.
    heads = config.head_dim * (config.num_heads + config.num_kv_heads)
    return 2 * (config.hidden_size + config.intermediate_size + heads)


def _taken(config: ModelConfig) -> int:
    """Numbers a token that a block's ternary linears take, once where several take the same."""
    if config.linear == "dense":
        return 0
    D, F = config.hidden_size, config.intermediate_size
    # A norm inside each linear makes of the same input one for each.
    mixer_inputs = 3 if config.linear_norm else 1
    feed_forward_inputs = 2 if config.linear_norm and not config.fused_gate else 1
    mixed = config.num_heads * config.head_dim if config.has_attention else D
    return mixer_inputs * D + mixed + feed_forward_inputs * D + F


def _block_width(config: ModelConfig) -> int:
    """Numbers a token that the backward pass of one block has at a time."""
    wide = _WIDE_ARRAYS + _WIDE_ARRAYS_OF_SUB_NORM * config.sub_norm
    return wide * config.intermediate_size + _STREAMS[config.token_mixer[0]] * config.hidden_size

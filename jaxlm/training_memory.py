"""What one device needs to train a model, on paper: from its config, before anything is compiled or allocated.

It is that of the trainer's defaults: AdamW with float32 moments, `--remat products`, no gradient accumulation, and no
other device to share with. For a step of T tokens, with D the hidden size, F the feed-forward's, Q and K the widths of
queries and keys, and activations of a bytes each, it is the sum of

- the state: 4 bytes a parameter for the weight and 8 for Adam's moments, 1 a ternary parameter for its code;
- the gradient: 4 bytes a parameter;
- activations, what is kept of each block: T a (2 D + 2 F + 2 Q + 2 K) with attention and T a (5 D + 2 F) with MLGRU,
  which are its input and what its linears give; and a byte for each number that ternary linears take;
- the workspace: the larger of what the backward pass has of one block at a time, and what the update needs when
  activations are gone, a second gradient and new codes.

All but a block's share of the workspace follows from the program; that share is fitted, and logits are left out, since
there is no gradient yet when they are there. Against what XLA plans for CPUs in float32 (31 steps, of 2.6M to 730M
parameters and 128 to 16,384 tokens) the sum was between 4.7 % too low and 2.2 % too high. Against what libtpu plans for
a v5p in bfloat16 (7 steps) it was 2 to 12 % too high, and 26 % where a step had 256 tokens or fewer: there the update
needs no second gradient.
"""

from dataclasses import dataclass

from jaxlm.spec.config import ModelConfig
from jaxlm.spec.names import parameter_count, ternary_parameter_count

_FLOAT32 = 4
# Arrays as wide as the feed-forward, and as the stream, that a block's backward pass has at a time: fitted.
_WIDE_ARRAYS, _WIDE_ARRAYS_OF_SUB_NORM = 7, 4
_STREAMS = {"attention": 12, "mlgru": 24}


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
    """Memory of steps of `batch_size` sequences; `activation_bytes` is 4 with float32 and 2 with bfloat16."""
    tokens = batch_size * seq_len
    parameters = _FLOAT32 * parameter_count(config)
    codes = ternary_parameter_count(config)
    activations = tokens * _kept(config, activation_bytes)
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


def _kept(config: ModelConfig, activation_bytes: int) -> int:
    """Bytes a token that the backward pass finds of all blocks."""
    layers = {"mlgru": config.num_mlgru_layers, "attention": config.num_layers - config.num_mlgru_layers}
    ternary = config.linear == "ternary"
    return sum(
        count * (activation_bytes * _given(config, mixer) + ternary * _taken(config, mixer))
        for mixer, count in layers.items()
    )


def _given(config: ModelConfig, mixer: str) -> int:
    """Numbers a token: a block's input, and what its linears give but for the last, which nothing needs again."""
    D, F = config.hidden_size, config.intermediate_size
    if mixer == "mlgru":
        return 5 * D + 2 * F
    return 2 * D + 2 * F + 2 * config.head_dim * (config.num_heads + config.num_kv_heads)


def _taken(config: ModelConfig, mixer: str) -> int:
    """Numbers a token that a block's linears take, once where several take the same."""
    D, F = config.hidden_size, config.intermediate_size
    # A norm inside each linear makes of the same input one for each.
    mixer_inputs = 3 if config.linear_norm else 1
    feed_forward_inputs = 2 if config.linear_norm and not config.fused_gate else 1
    mixed = D if mixer == "mlgru" else config.num_heads * config.head_dim
    return mixer_inputs * D + mixed + feed_forward_inputs * D + F


def _block_width(config: ModelConfig) -> int:
    """Numbers a token that the backward pass of one block has at a time."""
    wide = _WIDE_ARRAYS + _WIDE_ARRAYS_OF_SUB_NORM * config.sub_norm
    streams = max(_STREAMS[mixer] for mixer in config.token_mixer)
    return wide * config.intermediate_size + streams * config.hidden_size

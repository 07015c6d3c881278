"""Memory that one device needs to train a model, as a formula: from the config, before anything is compiled.

It holds for AdamW and Muon, `--remat products` (the default on accelerators, where it fits), no gradient
accumulation, and one device. The state and the activations follow from the program. The width of a block's backward
pass is fitted. Logits are left out: while they exist there is no gradient yet.

Error against XLA's plan for CPUs in float32 (31 steps of 2.6M to 730M parameters and 128 to 16,384 tokens): -4.7 % to
+2.3 %; up to -5 % where the heads together are twice as wide as the residual stream. Error against libtpu's plan for a
v5p in bfloat16 (7 steps): +2 to +12 %, and +26 % for steps of 256 tokens or fewer, whose update needs no second
gradient. Against XLA's plan for CPUs in float32 (9 steps of 4M to 135M parameters): Muon -3 to +17 %, where the same
steps with AdamW have 0 to +17 %.
"""

import math
from collections import Counter
from dataclasses import dataclass

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import (
    block_matrix_parameter_count,
    is_block_matrix,
    parameter_count,
    parameters,
    ternary_parameter_count,
)

_FLOAT32_BYTES = 4
_INT8_BYTES = 1
# Fitted: arrays `[tokens, intermediate_size]` and `[tokens, hidden_size]` that the backward pass of a block holds at
# the same time.
_FEED_FORWARD_ARRAYS = 7
_FEED_FORWARD_ARRAYS_OF_SUB_NORM = 4
_HIDDEN_ARRAYS = {"attention": 12, "mlgru": 30}
# Fitted: copies of the largest stack of matrices that Muon's Newton-Schulz steps hold at the same time.
_ORTHOGONALIZED_COPIES = 3.5


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of one device that training needs, in bytes."""

    parameters: int
    moments: int
    codes: int
    gradient: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return self.parameters + self.moments + self.codes + self.gradient + self.activations + self.workspace


def training_memory(
    config: ModelConfig,
    batch_size: int,
    seq_len: int,
    activation_bytes: int,
    *,
    has_muon: bool = False,
    first_moment_bytes: int = _FLOAT32_BYTES,
    offloads_optimizer: bool = False,
) -> TrainingMemory:
    """Return the memory of steps of `batch_size` sequences of `seq_len` tokens.

    `activation_bytes` is the size of one activation: 4 with float32, 2 with bfloat16. With `has_muon` the matrices of
    the blocks have a first moment only. With `offloads_optimizer` the moments are on the device during the update
    alone. Raises ValueError for a pattern of several token mixers, whose blocks the compiler holds several of at the
    same time.
    """
    if len(config.token_mixer) > 1:
        raise ValueError(f"token_mixer: found {', '.join(config.token_mixer)}, expected one for all layers")
    tokens = batch_size * seq_len
    count = parameter_count(config)
    parameter_bytes = _FLOAT32_BYTES * count
    without_second_moment = block_matrix_parameter_count(config) if has_muon else 0
    moments = first_moment_bytes * count + _FLOAT32_BYTES * (count - without_second_moment)
    codes = _INT8_BYTES * ternary_parameter_count(config)
    gradient = parameter_bytes
    saved_floats = activation_bytes * _saved_float_width(config)
    saved_codes = _INT8_BYTES * _saved_code_width(config)
    activations = tokens * config.num_layers * (saved_floats + saved_codes)
    backward_of_block = tokens * activation_bytes * _backward_width(config)
    # The update starts when the activations are free, and needs a second gradient and new codes.
    update = gradient + codes - activations
    if has_muon:
        # Before the parameters that AdamW updates, whose second gradient does not exist yet.
        others = _FLOAT32_BYTES * (count - without_second_moment)
        update += max(0, _orthogonalization_bytes(config) - others)
    if offloads_optimizer:
        update += moments
    return TrainingMemory(
        parameters=parameter_bytes,
        moments=0 if offloads_optimizer else moments,
        codes=codes,
        gradient=gradient,
        activations=activations,
        workspace=max(backward_of_block, update),
    )


def _orthogonalization_bytes(config: ModelConfig) -> int:
    """Return the bytes of Newton-Schulz steps for the largest stack of matrices `[O, I]`, with their `X X^T`."""
    stacks = Counter(parameter.path for parameter in parameters(config) if is_block_matrix(parameter.path))
    shapes = {parameter.path: parameter.shape for parameter in parameters(config) if parameter.path in stacks}
    elements = (
        layers * (_ORTHOGONALIZED_COPIES * math.prod(shapes[path]) + min(shapes[path]) ** 2)
        for path, layers in stacks.items()
    )
    return int(_FLOAT32_BYTES * max(elements))


# The widths below are numbers per token, of one block.


def _query_width(config: ModelConfig) -> int:
    return config.num_heads * config.head_dim  # 0 without attention


def _key_width(config: ModelConfig) -> int:
    return config.num_kv_heads * config.head_dim  # 0 without attention


def _saved_float_width(config: ModelConfig) -> int:
    """Return the width of the floats that a block keeps for its backward pass: its input and its linear outputs.

    The output of down_proj is not kept. The gates of an MLGRU are computed again.
    """
    block_input = config.hidden_size
    queries = _query_width(config)
    attention_output = _query_width(config)
    keys_and_values = 2 * _key_width(config)
    o_proj_output = config.hidden_size
    gate_and_up = 2 * config.intermediate_size
    return block_input + queries + attention_output + keys_and_values + o_proj_output + gate_and_up


def _saved_code_width(config: ModelConfig) -> int:
    """Return the width of the int8 inputs of ternary linears. Linears that read the same input share one copy."""
    if config.linear == "dense":
        return 0
    # With a norm inside each linear, three projections of the mixer and two of the feed-forward read different inputs.
    mixer_inputs = 3 if config.linear_norm else 1
    feed_forward_inputs = 2 if config.linear_norm and not config.fused_gate else 1
    o_proj_input = _query_width(config) if config.has_attention else config.hidden_size
    down_proj_input = config.intermediate_size
    return (mixer_inputs + feed_forward_inputs) * config.hidden_size + o_proj_input + down_proj_input


def _backward_width(config: ModelConfig) -> int:
    """Return the width of all arrays that the backward pass of a block holds at the same time. Fitted."""
    feed_forward_arrays = _FEED_FORWARD_ARRAYS + _FEED_FORWARD_ARRAYS_OF_SUB_NORM * config.sub_norm
    hidden_arrays = _HIDDEN_ARRAYS[config.token_mixer[0]]
    return feed_forward_arrays * config.intermediate_size + hidden_arrays * config.hidden_size

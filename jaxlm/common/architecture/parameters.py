"""One table of a model's parameters: path in the JAX tree, tensor name, shape, logical axes and storage of each.

Names and the `[out, in]` orientation are Hugging Face's. Every program that counts, saves, loads, shards or converts
parameters reads this table; none guesses from shapes or spellings.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.mmfreelm import is_mmfreelm, released_name
from jaxlm.common.architecture.packing import packed_rows
from jaxlm.common.architecture.rational import RATIONAL, SHAPES

Storage = Literal["float", "ternary", "int8"]
Kind = Literal["latent", "packed"]
# Logical name of a dimension: tokens of the vocabulary; the residual stream; the inside of a block (heads, the width of
# the feed-forward layer, gates). None is a dimension that no device splits. `jaxlm.parallel.sharding` maps the names to
# mesh axes.
Axis = Literal["vocab", "embed", "wide"] | None
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint32": 4, "uint8": 1, "int8": 1}


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model. Each layer of a stacked leaf is a parameter of its own."""

    path: tuple[str, ...]
    """Keys into the JAX parameter tree."""
    layer: int | None
    """Index along the leading axis of the stacked leaf; None where the leaf is not stacked."""
    name: str
    """Tensor name in an artifact."""
    shape: tuple[int, ...]
    """Shape of one layer; a matrix is `[out, in]`."""
    storage: Storage
    """Packed form: the float itself, ternary codes and their scales, or int8 codes and one scale per row."""
    axes: tuple[Axis, ...]
    """Logical name of each dimension of `shape`."""
    attribute: str = ""
    """Dotted path to the parameter in a model whose layers are a list."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def block(self) -> int | None:
        """Number of the block that holds it, counted from 0 over all mixers; None outside of the blocks."""
        first, *rest = self.attribute.split(".")
        return int(rest[0]) if first == "layers" else None


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in the file of an artifact."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Return every parameter of the model in file order: embedding, blocks, final norm, head."""
    rename = released_name if is_mmfreelm(config) else str
    return tuple(
        replace(parameter, name=rename(parameter.name), attribute=parameter.name.removeprefix("model."))
        for parameter in _parameters(config)
    )


class _Row(NamedTuple):
    """A parameter without its position in the model: the name is relative to a block or to the top."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    storage: Storage = "float"

    def at_top(self, prefix: str) -> Parameter:
        return Parameter(tuple(self.name.split(".")), None, prefix + self.name, self.shape, self.storage, self.axes)

    def in_block(self, stack: tuple[str, ...], repeat: int, layer: int) -> Parameter:
        path = (*stack, *self.name.split("."))
        return Parameter(path, repeat, f"model.layers.{layer}.{self.name}", self.shape, self.storage, self.axes)


def _parameters(config: ModelConfig) -> list[Parameter]:
    hidden = config.hidden_size
    embedding = _Row("embed_tokens.weight", (config.vocab_size, hidden), ("vocab", "embed"), config.embedding)
    table = [embedding.at_top("model.")]
    if config.num_mlgru_layers:
        table.append(_Row("lower_bounds.weight", (config.num_mlgru_layers, hidden), (None, None)).at_top("model."))
    for layer in range(config.num_layers):
        # One stack for each position in the pattern of token mixers. A pattern of one needs no name for it; the name
        # `place_0` is in the checkpoints of runs.
        repeat, position = divmod(layer, len(config.token_mixer))
        stack = ("layers",) if len(config.token_mixer) == 1 else ("layers", f"place_{position}")
        table += [row.in_block(stack, repeat, layer) for row in _block(config, config.token_mixer[position])]
    table.append(_norm("norm", hidden).at_top("model."))
    if not config.tie_word_embeddings:
        table += [row.at_top("") for row in _head(config)]
    return table


def _head(config: ModelConfig) -> list[_Row]:
    storage: Storage = "ternary" if config.ternary_head else "float"
    rows = [_Row("lm_head.weight", (config.vocab_size, config.hidden_size), ("vocab", "embed"), storage)]
    if config.ternary_head and config.linear_norm:
        rows.append(_norm("lm_head.rms_norm", config.hidden_size))
    return rows


def _block(config: ModelConfig, token_mixer: str) -> list[_Row]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    rows = [_norm("input_layernorm", hidden)]
    rows += _attention(config) if token_mixer == "attention" else _mlgru(config)
    rows.append(_norm("post_attention_layernorm", hidden))
    if config.fused_gate:
        rows += _linear_into_block(config, "mlp.gate_proj", 2 * intermediate)
    else:
        rows += _linear_into_block(config, "mlp.gate_proj", intermediate)
        rows += _linear_into_block(config, "mlp.up_proj", intermediate)
    if config.activation == RATIONAL:
        rows += [_Row(f"mlp.{RATIONAL}.{name}", shape, (None, None)) for name, shape in SHAPES.items()]
    if config.sub_norm:
        rows.append(_norm("mlp.ffn_sub_norm", intermediate))
    return rows + _linear_out_of_block(config, "mlp.down_proj", intermediate)


def _attention(config: ModelConfig) -> list[_Row]:
    query_width = config.num_heads * config.head_dim
    key_width = config.num_kv_heads * config.head_dim
    rows: list[_Row] = []
    for name, width in (("q_proj", query_width), ("k_proj", key_width), ("v_proj", key_width)):
        rows += _linear_into_block(config, f"self_attn.{name}", width)
        if has_bias(config, name):
            rows.append(_Row(f"self_attn.{name}.bias", (width,), ("wide",)))
    if config.qk_norm:
        rows += [_norm("self_attn.q_norm", config.head_dim), _norm("self_attn.k_norm", config.head_dim)]
    if config.sub_norm:
        rows.append(_norm("self_attn.attn_sub_norm", query_width))
    return rows + _linear_out_of_block(config, "self_attn.o_proj", query_width)


def has_bias(config: ModelConfig, module: str) -> bool:
    """Return True if a linear layer of a block has a bias, by the last name of its module."""
    return config.attention_bias and module in ("q_proj", "k_proj", "v_proj")


def _mlgru(config: ModelConfig) -> list[_Row]:
    rows: list[_Row] = []
    for name in ("i_proj", "f_proj", "g_proj"):
        rows += _linear_into_block(config, f"mlgru.{name}", config.hidden_size)
    rows.append(_norm("mlgru.g_norm", config.hidden_size))
    return rows + _linear_out_of_block(config, "mlgru.o_proj", config.hidden_size)


def _linear_into_block(config: ModelConfig, name: str, width: int) -> list[_Row]:
    """Return the rows of a linear layer that reads the residual stream."""
    return _linear(config, name, (width, config.hidden_size), ("wide", "embed"))


def _linear_out_of_block(config: ModelConfig, name: str, width: int) -> list[_Row]:
    """Return the rows of a linear layer that writes to the residual stream."""
    return _linear(config, name, (config.hidden_size, width), ("embed", "wide"))


def _linear(config: ModelConfig, name: str, shape: tuple[int, int], axes: tuple[Axis, Axis]) -> list[_Row]:
    storage: Storage = "ternary" if config.linear == "ternary" else "float"
    rows = [_Row(f"{name}.weight", shape, axes, storage)]
    if config.linear_norm:
        rows.append(_norm(f"{name}.rms_norm", shape[1]))
    return rows


def _norm(name: str, width: int) -> _Row:
    return _Row(f"{name}.weight", (width,), (None,))


@functools.cache
def matrix_axes() -> dict[str, tuple[Axis, ...]]:
    """Return the logical axes of every matrix that devices may split, by the name of its module (such as `q_proj`).

    A module has the same axes in every model, so the table is read off one small model that has all of them.
    """
    every_module = ModelConfig(
        vocab_size=4,
        hidden_size=4,
        intermediate_size=4,
        num_layers=2,
        token_mixer=("attention", "mlgru"),
        num_heads=1,
        num_kv_heads=1,
        tie_word_embeddings=False,
    )
    return {parameter.path[-2]: parameter.axes for parameter in parameters(every_module) if any(parameter.axes)}


def scale_name(name: str) -> str:
    """Return the tensor name of the scale that belongs to a packed weight."""
    return name.removesuffix(".weight") + ".weight_scale"


def stored_tensors(config: ModelConfig, kind: Kind, float_dtype: str = "float32") -> tuple[StoredTensor, ...]:
    """Return the tensors of an artifact of this kind, in file order, with the dtype on disk."""
    return tuple(
        stored for parameter in parameters(config) for stored in stored_form(parameter, config, kind, float_dtype)
    )


def stored_form(parameter: Parameter, config: ModelConfig, kind: Kind, float_dtype: str) -> tuple[StoredTensor, ...]:
    """Return the tensors that store one parameter: the parameter itself, or its codes and their scale."""
    name, shape = parameter.name, parameter.shape
    if kind == "latent" or parameter.storage == "float":
        return (StoredTensor(name, shape, float_dtype),)
    if parameter.storage == "ternary":
        return (
            StoredTensor(name, (packed_rows(shape[0]), shape[1]), "uint8"),
            StoredTensor(scale_name(name), config.ternary_form.stored_shape(*shape), config.scale_dtype),
        )
    return StoredTensor(name, shape, "int8"), StoredTensor(scale_name(name), (shape[0], 1), "float32")


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters of the model. A tied head is counted once."""
    return sum(parameter.size for parameter in parameters(config))


def ternary_parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters that are ternary."""
    return sum(parameter.size for parameter in parameters(config) if parameter.storage == "ternary")


def is_decayed(path: Iterable[str]) -> bool:
    """Return True if a parameter is decayed: matrices are.

    Norms, biases, embeddings, lower bounds and the coefficients of activations are not.
    """
    return not any("norm" in part or part in ("embed_tokens", "lower_bounds", "bias", RATIONAL) for part in path)


def is_block_matrix(path: Iterable[str]) -> bool:
    """Return True if a parameter is a matrix of a block, or a stack of them: those that Muon updates."""
    first, *rest = path
    return first == "layers" and is_decayed(rest)


def block_matrix_parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters in the matrices of the blocks."""
    return sum(parameter.size for parameter in parameters(config) if is_block_matrix(parameter.path))


def tensor_bytes(config: ModelConfig, kind: Kind, float_dtype: str = "float32") -> int:
    """Return the bytes of all tensors of an artifact of this kind, without the file's header."""
    return sum(stored.nbytes for stored in stored_tensors(config, kind, float_dtype))

"""One table of a model's parameters: where the JAX tree keeps each, its tensor name, its shape, how it is stored.

Names and `[out, in]` orientation are Hugging Face's. Everything that counts, saves, loads or converts reads
this table, so no program guesses from shapes or spellings.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.mmfreelm import is_mmfreelm, released_name
from jaxlm.common.architecture.ternary import packed_rows

Storage = Literal["float", "ternary", "int8"]
Kind = Literal["latent", "packed"]
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint32": 4, "uint8": 1, "int8": 1}


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model, one layer of a stacked leaf counted on its own."""

    path: tuple[str, ...]
    """Keys into the JAX parameter tree."""
    layer: int | None
    """Index along the leading axis of the stacked leaf; None where the leaf is not stacked."""
    name: str
    """Tensor name in an artifact."""
    shape: tuple[int, ...]
    storage: Storage
    """What the packed form holds: the float itself, ternary codes and a scale, or int8 codes and row scales."""
    attribute: str = ""
    """Dotted path to it in a model whose layers are a list."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of an artifact's file."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of the model in file order: embedding, blocks, final norm, head."""
    rename = released_name if is_mmfreelm(config) else str
    return tuple(
        replace(parameter, name=rename(parameter.name), attribute=parameter.name.removeprefix("model."))
        for parameter in _parameters(config)
    )


def _parameters(config: ModelConfig) -> list[Parameter]:
    table = [
        Parameter(
            ("embed_tokens", "weight"),
            None,
            "model.embed_tokens.weight",
            (config.vocab_size, config.hidden_size),
            config.embedding,
        )
    ]
    if config.num_mlgru_layers:
        shape = (config.num_mlgru_layers, config.hidden_size)
        table.append(Parameter(("lower_bounds", "weight"), None, "model.lower_bounds.weight", shape, "float"))
    for layer in range(config.num_layers):
        # One stack for each place in the pattern of token mixers; a pattern of one needs no place.
        repeat, place = divmod(layer, len(config.token_mixer))
        stack = ("layers",) if len(config.token_mixer) == 1 else ("layers", f"place_{place}")
        for name, shape, storage in _block(config, config.token_mixer[place]):
            table.append(Parameter((*stack, *name.split(".")), repeat, f"model.layers.{layer}.{name}", shape, storage))
    table.append(Parameter(("norm", "weight"), None, "model.norm.weight", (config.hidden_size,), "float"))
    if not config.tie_word_embeddings:
        storage: Storage = "ternary" if config.ternary_head else "float"
        shape = (config.vocab_size, config.hidden_size)
        table.append(Parameter(("lm_head", "weight"), None, "lm_head.weight", shape, storage))
        if config.ternary_head and config.linear_norm:
            table.append(
                Parameter(
                    ("lm_head", "rms_norm", "weight"),
                    None,
                    "lm_head.rms_norm.weight",
                    (config.hidden_size,),
                    "float",
                )
            )
    return table


Row = tuple[str, tuple[int, ...], Storage]


def _block(config: ModelConfig, token_mixer: str) -> list[Row]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    rows: list[Row] = [("input_layernorm.weight", (hidden,), "float")]
    rows += _attention(config) if token_mixer == "attention" else _mlgru(config)
    rows.append(("post_attention_layernorm.weight", (hidden,), "float"))
    if config.fused_gate:
        rows += _linear(config, "mlp.gate_proj", 2 * intermediate, hidden)
    else:
        rows += _linear(config, "mlp.gate_proj", intermediate, hidden)
        rows += _linear(config, "mlp.up_proj", intermediate, hidden)
    if config.sub_norm:
        rows.append(("mlp.ffn_sub_norm.weight", (intermediate,), "float"))
    rows += _linear(config, "mlp.down_proj", hidden, intermediate)
    return rows


def _attention(config: ModelConfig) -> list[Row]:
    hidden = config.hidden_size
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    rows = _linear(config, "self_attn.q_proj", heads, hidden)
    rows += _linear(config, "self_attn.k_proj", kv_heads, hidden)
    rows += _linear(config, "self_attn.v_proj", kv_heads, hidden)
    if config.sub_norm:
        rows.append(("self_attn.attn_sub_norm.weight", (heads,), "float"))
    return rows + _linear(config, "self_attn.o_proj", hidden, heads)


def _mlgru(config: ModelConfig) -> list[Row]:
    hidden = config.hidden_size
    rows: list[Row] = []
    for name in ("i_proj", "f_proj", "g_proj"):
        rows += _linear(config, f"mlgru.{name}", hidden, hidden)
    rows.append(("mlgru.g_norm.weight", (hidden,), "float"))
    return rows + _linear(config, "mlgru.o_proj", hidden, hidden)


def _linear(config: ModelConfig, name: str, out_features: int, in_features: int) -> list[Row]:
    storage: Storage = "ternary" if config.linear == "ternary" else "float"
    rows: list[Row] = [(f"{name}.weight", (out_features, in_features), storage)]
    if config.linear_norm:
        rows.append((f"{name}.rms_norm.weight", (in_features,), "float"))
    return rows


def scale_name(name: str) -> str:
    """Name of the scale that belongs to a packed weight."""
    return name.removesuffix(".weight") + ".weight_scale"


def stored_tensors(config: ModelConfig, kind: Kind, float_dtype: str = "float32") -> tuple[StoredTensor, ...]:
    """The tensors of an artifact of this kind, in file order, with the dtype each is stored in."""
    return tuple(
        stored for parameter in parameters(config) for stored in stored_form(parameter, config, kind, float_dtype)
    )


def stored_form(parameter: Parameter, config: ModelConfig, kind: Kind, float_dtype: str) -> tuple[StoredTensor, ...]:
    """The tensors that hold one parameter: itself, or codes and their scale."""
    name, shape = parameter.name, parameter.shape
    if kind == "latent" or parameter.storage == "float":
        return (StoredTensor(name, shape, float_dtype),)
    if parameter.storage == "ternary":
        return (
            StoredTensor(name, (packed_rows(shape[0]), shape[1]), "uint8"),
            StoredTensor(scale_name(name), (1,), config.scale_dtype),
        )
    return StoredTensor(name, shape, "int8"), StoredTensor(scale_name(name), (shape[0], 1), "float32")


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the model; a tied head is counted once."""
    return sum(parameter.size for parameter in parameters(config))


def ternary_parameter_count(config: ModelConfig) -> int:
    """Parameters that are ternary."""
    return sum(parameter.size for parameter in parameters(config) if parameter.storage == "ternary")


def tensor_bytes(config: ModelConfig, kind: Kind, float_dtype: str = "float32") -> int:
    """Bytes of the tensors of an artifact of this kind, without the file's header."""
    return sum(stored.nbytes for stored in stored_tensors(config, kind, float_dtype))

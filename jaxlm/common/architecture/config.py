"""ModelConfig: the fields that define a model. There is one decoder; its architecture is data."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from jaxlm.common.architecture.rational import GROUPS, RATIONAL
from jaxlm.common.architecture.rotary import RopeScaling, rope_scaling_from_dict
from jaxlm.common.architecture.ternary import TernaryForm

MIXERS = ("attention", "mlgru")
DEFAULT_THETA = 10000.0
# Fields of attention, with their values in a model that has none.
_WITHOUT_ATTENTION = {
    "num_heads": 0,
    "num_kv_heads": 0,
    "head_dim": 0,
    "rope_theta": DEFAULT_THETA,
    "rope_scaling": None,
    "qk_norm": False,
    "attention_bias": False,
}
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "logit_multiplier")
# Fields that files of version 0.1.0 do not have. A file holds them only where they are not at their default.
LATER_FIELDS = (
    "rope_scaling",
    "qk_norm",
    "attention_bias",
    "scale_per",
    "activation_bits",
    "logit_softcap",
    *MULTIPLIERS,
)
_FLOATS = ("rope_theta", "norm_eps", "initializer_range", "embedding_range", *MULTIPLIERS)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only language model.

    `linear: dense` with the defaults is a Llama. `linear: ternary` is BitNet b1.58: with `sub_norm` the 2B-4T model
    (arXiv 2504.12285), with `linear_norm` the model of arXiv 2402.17764. `token_mixer: mlgru` with ternary linears,
    norms in them, a fused gate and a ternary head is the MatMul-free model (arXiv 2406.02528).

    Raises ValueError on construction when the fields do not fit together.
    """

    vocab_size: int
    """Size of the vocabulary, in tokens: rows of the embedding table."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width of the gated feed-forward layer."""
    num_layers: int
    """Decoder blocks."""
    token_mixer: tuple[str, ...] = ("attention",)
    """Token mixer of each layer: attention or mlgru, or a pattern of both that the layers repeat."""
    num_heads: int = 0
    """Query heads of attention."""
    num_kv_heads: int = 0
    """Key/value heads; each serves an equal group of query heads."""
    head_dim: int = 0
    """Width of a head; 0 means hidden_size / num_heads."""
    max_seq_len: int = 2048
    """Longest sequence, in tokens."""
    rope_theta: float = DEFAULT_THETA
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the rotary frequencies for long sequences: an object with type (linear, llama3, yarn or longrope),
    factor and the fields of that type."""
    qk_norm: bool = False
    """RMSNorm of every query and key head, before the rotary positions (Qwen3)."""
    attention_bias: bool = False
    """Biases of the query, key and value projections (Qwen2)."""
    embedding_multiplier: float = 1.0
    """Factor of the embeddings (MiniCPM's scale_emb)."""
    residual_multiplier: float = 1.0
    """Factor of every output that is added to the residual stream (MiniCPM's scale_depth / sqrt(num_layers))."""
    logit_multiplier: float = 1.0
    """Factor of the last hidden states, so of the logits (MiniCPM's dim_model_base / hidden_size)."""
    logit_softcap: float | None = None
    """Soft cap c of the logits, c tanh(logits / c), as in Gemma 2; null for none."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    activation: Literal["silu", "gelu", "relu2", "rational"] = "silu"
    """Gate function of the feed-forward layer: SwiGLU, GeGLU (exact erf), squared ReLU, or a learned rational function
    for each of 8 groups of channels that starts as SiLU."""
    fused_gate: bool = False
    """Gate and up projection as one matrix, with one scale and one norm, as in MatMul-free models."""
    linear: Literal["dense", "ternary"] = "dense"
    """Linear layers of the blocks: float weights, or ternary ones."""
    scale_per: str = "tensor"
    """Ternary weights with one scale: tensor (a matrix), row (an output), row_blocks:N (one of N equal blocks of rows),
    or group:32, group:64, group:128 (so many inputs of an output)."""
    activation_bits: int | None = 8
    """Bits of what ternary weights multiply: 8, or null for floats."""
    sub_norm: bool = False
    """RMSNorm before o_proj and down_proj (SubLN of BitNet b1.58 2B-4T)."""
    linear_norm: bool = False
    """RMSNorm inside every ternary linear, before its activations are quantized."""
    tie_word_embeddings: bool = True
    """Embedding table as the output head."""
    ternary_head: bool = False
    """Ternary weights in the untied output head too."""
    embedding: Literal["float", "int8", "ternary"] = "float"
    """Embedding table: float, int8 with one scale per row, or ternary."""
    scale_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of ternary scales, in training and on disk; models trained by other programs need float32."""
    initializer_range: float = 0.02
    """Standard deviation of the initial linear weights; o_proj and down_proj: divided by sqrt(2 num_layers)."""
    embedding_range: float = 0.02
    """Standard deviation of the initial embeddings."""
    bos_id: int | None = None
    """Token that starts a document."""
    eos_id: int | None = None
    """Token that ends a document."""
    pad_id: int | None = None
    """Token that fills unused positions."""

    def __post_init__(self) -> None:
        if not isinstance(self.token_mixer, str | list | tuple):
            raise ValueError(f"token_mixer: found {self.token_mixer!r}, expected attention, mlgru or a list of them")
        pattern = (self.token_mixer,) if isinstance(self.token_mixer, str) else tuple(self.token_mixer)
        object.__setattr__(self, "token_mixer", pattern)
        if isinstance(self.rope_scaling, Mapping):
            object.__setattr__(self, "rope_scaling", rope_scaling_from_dict(self.rope_scaling))
        if type(self.logit_softcap) is int:
            object.__setattr__(self, "logit_softcap", float(self.logit_softcap))
        self._check_types()
        self._check_pattern()
        for name in _FLOATS:
            object.__setattr__(self, name, float(getattr(self, name)))  # transformers refuses an int here
        if self.head_dim == 0 and self.num_heads > 0:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"num_heads: found {self.num_heads}, which does not divide hidden_size {self.hidden_size}; "
                    "choose a divisor or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        self._check_sizes()
        self._check_combinations()

    def _check_types(self) -> None:
        for name, expected in get_type_hints(type(self)).items():
            if name == "token_mixer":
                continue
            value = getattr(self, name)
            choices = get_args(expected)
            if choices and not any(choice in (int, type(None)) for choice in choices):
                if value not in choices:
                    raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(map(repr, choices))}")
                continue
            allowed = choices or ((int, float) if expected is float else (expected,))
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise ValueError(f"{name}: found {value!r}, expected {getattr(expected, '__name__', expected)}")

    def _check_pattern(self) -> None:
        for mixer in self.token_mixer:
            if mixer not in MIXERS:
                raise ValueError(f"token_mixer: found {mixer!r}, expected {' or '.join(map(repr, MIXERS))}")
        if not self.token_mixer or self.num_layers % len(self.token_mixer):
            raise ValueError(
                f"token_mixer: found a pattern of {len(self.token_mixer)} layers, expected one that divides num_layers "
                f"{self.num_layers}"
            )

    def _check_attention(self) -> None:
        if self.has_attention:
            for name in ("num_heads", "num_kv_heads", "head_dim"):
                if not getattr(self, name) > 0:
                    raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0")
            if self.num_heads % self.num_kv_heads:
                raise ValueError(
                    f"num_kv_heads: found {self.num_kv_heads}, expected a divisor of num_heads {self.num_heads}"
                )
            if self.head_dim % 2:
                raise ValueError(
                    f"head_dim: found {self.head_dim}, expected an even number (rotary embeddings rotate pairs)"
                )
            if self.rope_scaling is not None:
                self.rope_scaling.check_fits(self.head_dim, self.rope_theta, self.max_seq_len)
            return
        for name, unset in _WITHOUT_ATTENTION.items():
            if getattr(self, name) != unset:
                raise ValueError(
                    f"{name}: found {getattr(self, name)}, but token_mixer {', '.join(self.token_mixer)} has no "
                    "attention; leave it out"
                )

    def _check_sizes(self) -> None:
        self._check_attention()
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "max_seq_len",
            *_FLOATS,
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0")
        if self.logit_softcap is not None and not 0 < self.logit_softcap < math.inf:
            raise ValueError(f"logit_softcap: found {self.logit_softcap}, expected more than 0 and finite, or null")
        if self.initializer_range > 1:
            raise ValueError(f"initializer_range: found {self.initializer_range}, expected at most 1")
        for name in ("bos_id", "eos_id", "pad_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name}: found {value}, expected 0..{self.vocab_size - 1} (vocab_size)")

    def _check_combinations(self) -> None:
        if self.activation_bits not in (8, None):
            raise ValueError(f"activation_bits: found {self.activation_bits}, expected 8 or null")
        if self.activation == RATIONAL and self.intermediate_size % GROUPS:
            raise ValueError(
                f"intermediate_size: found {self.intermediate_size}, expected a multiple of {GROUPS}, the groups of "
                f"activation {RATIONAL!r}"
            )
        if self.linear == "dense" and self.linear_norm:
            raise ValueError("linear_norm: found True with linear 'dense'; it belongs to ternary linears")
        if self.ternary_head and self.tie_word_embeddings:
            raise ValueError(
                "ternary_head: found True with tie_word_embeddings; a tied head is the embedding table, so set "
                "embedding to 'ternary' or tie_word_embeddings to False"
            )
        form = self.ternary_form  # which checks its fields
        if not self.is_ternary:
            default = TernaryForm()
            for name in ("scale_per", "activation_bits"):
                if getattr(form, name) != getattr(default, name):
                    raise ValueError(
                        f"{name}: found {getattr(form, name)!r} for a model without ternary weights; leave it out, or "
                        "set linear to 'ternary'"
                    )
        self._check_ternary_sizes()

    def _check_ternary_sizes(self) -> None:
        """Raise ValueError where a ternary matrix cannot be packed, or does not divide into its scales."""
        heads, table = self.num_heads * self.head_dim, {"vocab_size": self.vocab_size}  # no heads without attention
        columns = {"hidden_size": self.hidden_size}
        if self.linear == "ternary":
            columns |= {"intermediate_size": self.intermediate_size, "num_heads * head_dim": heads}
        rows = columns | {"num_kv_heads * head_dim": self.num_kv_heads * self.head_dim}
        rows = (rows if self.linear == "ternary" else {}) | (
            table if self.ternary_head or self.embedding == "ternary" else {}
        )
        for name, size in rows.items():
            if size % 4:  # the packed layout splits the rows of a matrix into four planes
                raise ValueError(f"{name}: found {size}, expected a multiple of 4 for packed ternary weights")
        kind, _, number = self.scale_per.partition(":")
        for name, size in {"row_blocks": rows, "group": columns}.get(kind, {}).items():
            if size % int(number):
                raise ValueError(f"{name}: found {size}, expected a multiple of {number} (scale_per {self.scale_per})")

    @property
    def has_attention(self) -> bool:
        """True if any layer is attention."""
        return "attention" in self.token_mixer

    @property
    def has_multipliers(self) -> bool:
        """True if embeddings, residuals or logits are multiplied."""
        return any(getattr(self, name) != 1 for name in MULTIPLIERS)

    @property
    def num_repeats(self) -> int:
        """Number of times that the layers repeat the pattern of token mixers."""
        return self.num_layers // len(self.token_mixer)

    @property
    def num_mlgru_layers(self) -> int:
        """Number of layers whose token mixer is recurrent."""
        return self.num_repeats * self.token_mixer.count("mlgru")

    @property
    def ternary_form(self) -> TernaryForm:
        """Scales and activations of the ternary layers."""
        return TernaryForm(self.scale_per, self.scale_dtype, self.activation_bits)

    @property
    def is_ternary(self) -> bool:
        """True if any matrix is ternary."""
        return self.linear == "ternary" or self.ternary_head or self.embedding == "ternary"

    @property
    def has_packed_form(self) -> bool:
        """True if a packed artifact of the model differs from a latent one."""
        return self.is_ternary or self.embedding == "int8"


def fields_of(config: ModelConfig) -> dict[str, Any]:
    """Return all fields of a model as plain values. Those of a rope_scaling are the ones that its type has."""
    found = dataclasses.asdict(config)
    if config.rope_scaling is not None:
        found["rope_scaling"] = {name: value for name, value in found["rope_scaling"].items() if value is not None}
    return found


def recorded_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a model as files hold them: a later field at its default does not change a file."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {
        name: value for name, value in fields_of(config).items() if name not in LATER_FIELDS or value != defaults[name]
    }


def config_from_dict(fields: dict[str, Any]) -> ModelConfig:
    """Return the ModelConfig of these fields. Raises ValueError naming fields that are unknown or missing."""
    known = {field.name: field for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"model settings: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
    if missing := sorted(needed - set(fields)):
        raise ValueError(f"model settings: missing {', '.join(missing)}")
    return ModelConfig(**fields)

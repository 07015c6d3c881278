"""The settings of adapters."""

from dataclasses import dataclass
from typing import Any

from shared_tokenizer.settings import check_bounds, setting

# The settings that mlx-lm keeps in an object of this name.
LORA_PARAMETERS = ("rank", "scale", "dropout", "keys")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which linear layers get an adapter, and of what size. Raises ValueError on a value out of range."""

    rank: int = setting(8, at_least=1)
    """Rank of every adapter."""
    scale: float = setting(20.0, more_than=0)
    """LoRA scale: the output is `W x + scale * B A x` (mlx-lm's convention, not alpha / rank)."""
    dropout: float = setting(0.0, at_least=0, less_than=1)
    """Share of the adapter's inputs that training sets to zero."""
    keys: tuple[str, ...] = ()
    """Linear layers by name, q_proj or self_attn.q_proj; an empty list means all linear layers of the blocks."""
    num_layers: int = setting(0, at_least=0)
    """Number of blocks to adapt, counted from the last; 0 means all."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def lora_parameters(self) -> dict[str, Any]:
        """The settings that mlx-lm calls `lora_parameters`."""
        return {name: getattr(self, name) for name in LORA_PARAMETERS}

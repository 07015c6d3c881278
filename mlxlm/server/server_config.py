"""The settings of the command `mlxlm server`."""

from dataclasses import dataclass, field

from jaxlm.common.serving.serving_config import ServingConfig
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class ServerConfig(ServingConfig):
    """The model that is served, the address, and the limits. Raises ValueError on a value out of range."""

    adapter_path: str | None = None
    """Directory of adapters to add to the model."""
    adapter: list[str] = field(default_factory=list)
    """Adapters that requests may choose, as name=directory; clients ask for the name in the place of the model's."""
    draft_model: str | None = setting(None, is_model=True)
    """Smaller model with the same tokenizer that guesses tokens of a text that is generated alone at temperature 0;
    both need attention in all layers."""
    max_batch: int = setting(32, at_least=1)
    """Texts that are generated together, at most; fewer where memory does not hold their caches."""
    prompt_cache_bytes: int = setting(1 << 30, at_least=0)
    """Bytes of memory for the caches of earlier prompts, which later prompts with the same beginning use; 0 keeps
    none."""
    prefill_step_size: int = setting(256, at_least=1)
    """Tokens of a prompt processed at a time; a disconnect is noticed between them, so take fewer on a slow machine."""
